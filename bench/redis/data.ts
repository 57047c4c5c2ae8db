import { createHash, randomFillSync } from 'node:crypto';
import { type Reply, RespClient } from './resp.ts';

/** A value with Redis' own header fits a 64 KiB allocation, so that the keys take what they say. */
const VALUE_BYTES = 65_000;
const BATCH = 64;
const staticKey = (index: number) => `static:${index}`;

export function keysFor(bytes: number): number {
  return Math.ceil(bytes / VALUE_BYTES);
}

/** Fills Redis with random, incompressible values through one pipelined connection. */
export async function fill(host: string, port: number, bytes: number): Promise<{ keys: number; bytes: number }> {
  const client = await RespClient.connect(host, port);
  const keys = keysFor(bytes);
  try {
    let pending: Promise<Reply>[] = [];
    for (let index = 0; index < keys; index += 1) {
      pending.push(client.command('SET', staticKey(index), randomFillSync(Buffer.allocUnsafe(VALUE_BYTES))));
      await client.drained();
      if (pending.length < BATCH) continue;
      await Promise.all(pending);
      pending = [];
    }
    await Promise.all(pending);
    return { keys, bytes: keys * VALUE_BYTES };
  } finally {
    client.close();
  }
}

/**
 * A checksum of the static keys, computed by Redis itself (DEBUG DIGEST-VALUE) in slices of a few milliseconds, so that
 * the client that writes meanwhile is not held up.
 */
export async function digest(host: string, port: number, keys: number): Promise<string> {
  const client = await RespClient.connect(host, port);
  const hash = createHash('sha256');
  try {
    for (let from = 0; from < keys; from += BATCH) {
      const names = Array.from({ length: Math.min(BATCH, keys - from) }, (_, offset) => staticKey(from + offset));
      const digests = await client.command('DEBUG', 'DIGEST-VALUE', ...names);
      if (!Array.isArray(digests) || digests.length !== names.length) throw new Error('Redis gave no digests');
      for (const each of digests) hash.update(String(each)).update('\n');
    }
    return hash.digest('hex');
  } finally {
    client.close();
  }
}

export interface Identity {
  uptime_s: number;
  process_id: number;
  run_id: string;
  used_memory_bytes: number;
}

/** Who answers: the same process as before says the same, with its uptime going on. */
export async function identity(host: string, port: number): Promise<Identity> {
  const client = await RespClient.connect(host, port);
  try {
    const info = String(await client.command('INFO'));
    const field = (name: string) => new RegExp(`^${name}:(.*?)\\r?$`, 'm').exec(info)?.[1] ?? '';
    return {
      uptime_s: Number(field('uptime_in_seconds')),
      process_id: Number(field('process_id')),
      run_id: field('run_id'),
      used_memory_bytes: Number(field('used_memory')),
    };
  } finally {
    client.close();
  }
}

export const writtenKey = (number: number) => `written:${number}`;
/** The value belongs to the number, so that a write that went astray is noticed too. */
export const writtenValue = (number: number) => `${number}:${createHash('md5').update(String(number)).digest('hex')}`;

/** How many of the acknowledged writes 1..last are missing or wrong. */
export async function countLost(host: string, port: number, last: number): Promise<number> {
  const client = await RespClient.connect(host, port);
  const batch = 1000;
  let lost = 0;
  try {
    for (let from = 1; from <= last; from += batch) {
      const numbers = Array.from({ length: Math.min(batch, last - from + 1) }, (_, offset) => from + offset);
      const values = await client.command('MGET', ...numbers.map(writtenKey));
      const list = Array.isArray(values) ? values : [];
      lost += numbers.filter((number, at) => String(list[at] ?? '') !== writtenValue(number)).length;
    }
    return lost;
  } finally {
    client.close();
  }
}

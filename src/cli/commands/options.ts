import { InvalidArgumentError } from 'commander';
import { parseDuration } from '../format.ts';

/** Parsers of option values; commander shows their message beside the option's name. */
export function duration(text: string): number {
  const value = parseDuration(text);
  if (value === undefined) throw new InvalidArgumentError('It must be like 500ms, 30s, 10m or 2h.');
  return value;
}

/** Units of a rate: decimal bytes, and bits as links are sold in. */
const RATE_UNITS: Readonly<Record<string, number>> = {
  'kb/s': 1e3,
  'mb/s': 1e6,
  'gb/s': 1e9,
  'kbit/s': 125,
  'mbit/s': 125_000,
  'gbit/s': 125_000_000,
};

/** "50MB/s" or "400Mbit/s", in bytes a second. */
export function rate(text: string): number {
  const match = /^(\d+(?:\.\d+)?)\s*([kmg](?:b|bit)\/s)$/i.exec(text);
  const value = Math.round(Number(match?.[1] ?? 0) * (RATE_UNITS[(match?.[2] ?? '').toLowerCase()] ?? 0));
  if (value < 1) throw new InvalidArgumentError('It must be like 50MB/s, 400Mbit/s or 1Gbit/s.');
  return value;
}

export function count(text: string): number {
  const value = /^\d{1,6}$/.test(text) ? Number(text) : 0;
  if (value < 1) throw new InvalidArgumentError('It must be a number from 1.');
  return value;
}

export function port(text: string): number {
  const value = /^\d{1,5}$/.test(text) ? Number(text) : 0;
  if (value < 1 || value > 65_535) throw new InvalidArgumentError('It must be a port from 1 to 65535.');
  return value;
}

export interface Endpoint {
  address: string;
  port: number;
}

/** "0.0.0.0:6379", "[::]:80" or ":8080" (every address). */
export function endpoint(text: string): Endpoint {
  const match = /^(?:\[([^\]]+)\]|([^:]*)):(\d{1,5})$/.exec(text);
  if (match === null) throw new InvalidArgumentError('It must be ADDRESS:PORT, for example 0.0.0.0:6379.');
  const address = match[1] ?? match[2] ?? '';
  return { address: address === '' ? '0.0.0.0' : address, port: port(match[3] ?? '') };
}

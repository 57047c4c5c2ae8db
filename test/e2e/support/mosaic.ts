import assert from 'node:assert/strict';
import { closeSync, openSync, readFileSync, readSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { cgroup2Root } from '#lab/cgroup.ts';
import type { Host } from '#lab/host.ts';
import { PATIENCE } from '#lab/patience.ts';
import { techniqueSchema } from '#src/coordination/schema.ts';
import type { EngineName } from '#src/drivers/contract.ts';
import type { RunResult } from '#src/telemetry/exec.ts';
import { until } from './moves.ts';

/**
 * mosaic (lab/workloads) as end-to-end tests use it: a program with a random address space that knows what every byte of
 * it must be and finds the first that is not.
 */
export const MOSAIC = 'mosaic';
export const TECHNIQUES = techniqueSchema.options;
export type Technique = (typeof TECHNIQUES)[number];
export const ENGINES = ['runc', 'podman'] as const satisfies readonly EngineName[];

const DIR = '/tmp';
const ASK_LIMIT_MS = 60_000 * PATIENCE;
const EXEC_LIMIT_MS = ASK_LIMIT_MS + 10_000;
const START_LIMIT_MS = 30_000;
export const PAGE_BYTES = 4096;

export interface Mosaic {
  name: string;
  engine: (typeof ENGINES)[number];
}

export interface MosaicOptions {
  seed: number;
  mib?: number;
  /** Pages rewritten, structural changes and forks a second, in each process. */
  rate?: number;
  churn?: number;
  forks?: number;
  children?: number;
}

const verdictSchema = z.object({
  ok: z.boolean(),
  wrong: z.int(),
  first: z.string(),
  seed: z.int(),
  processes: z.int(),
  steps: z.int(),
  ticks: z.int(),
  checked: z.int(),
  writes: z.int(),
  changes: z.int(),
  forked: z.int(),
  living: z.int(),
});
export type MosaicVerdict = z.infer<typeof verdictSchema>;

/**
 * The options of a migration with that technique. mosaic changes much for its size, and forks: a freeze may be as long as
 * it takes, so that pre-copy does not give up.
 */
export function withTechnique(technique: Technique): object {
  return { technique, ...(technique === 'pre-copy' ? { maxDowntime_ms: 60_000 } : {}) };
}

export async function startMosaic(host: Host, service: Mosaic, options: MosaicOptions): Promise<void> {
  // Where everything is slow, the program shall not be busier than that for its size.
  const { seed, mib = PATIENCE > 1 ? 4 : 16, rate = 3000 / PATIENCE, churn = 60 / PATIENCE } = options;
  const { forks = PATIENCE > 1 ? 0 : 3, children = 2 } = options;
  const numbers = { seed, mib, rate, churn, forks, children };
  const knobs = Object.entries(numbers).flatMap(([name, value]) => [`--${name}`, String(value)]);
  const command = [MOSAIC, 'run', '--dir', DIR, ...knobs];
  await (service.engine === 'podman' ? startInPodman : startInRunc)(host, service.name, command);
  await until(
    `${service.name} answers`,
    START_LIMIT_MS,
    async () => (await ask(host, service, 'status')).ok || undefined,
  );
}

async function startInPodman(host: Host, name: string, command: readonly string[]): Promise<void> {
  const image = await host.importImage(MOSAIC);
  await host.exec('podman', ['run', '--detach', '--name', name, image, ...command], { timeout_ms: EXEC_LIMIT_MS });
}

const bundle = (name: string): string => `/srv/${name}`;

async function startInRunc(host: Host, name: string, command: readonly string[]): Promise<void> {
  const path = bundle(name);
  await host.exec('sh', ['-ec', `mkdir -p ${path} && cp -a /opt/bundles/${MOSAIC}/rootfs ${path}/rootfs`]);
  await host.exec('runc', ['spec', '--bundle', path]);
  const config = z
    .looseObject({ process: z.looseObject({}), root: z.looseObject({}) })
    .parse(JSON.parse(host.readFile(`${path}/config.json`)));
  config.process['terminal'] = false;
  config.process['args'] = command;
  config.root['readonly'] = false;
  host.writeFile(`${path}/config.json`, JSON.stringify(config));
  // The logger in the background must be told its input: sh gives such a process none of its own.
  const logger = `(exec 3<&0; cat <&3 3<&- >>/var/log/${name}.log 2>&1 &)`;
  await host.exec('sh', ['-c', `{ runc run --detach --bundle ${path} ${name} </dev/null; } 2>&1 | ${logger}`]);
}

export async function removeMosaic(hosts: readonly Host[], service: Mosaic): Promise<void> {
  for (const host of hosts) {
    if (service.engine === 'podman') {
      await host.exec('podman', ['rm', '--force', '--time', '0', '--ignore', service.name], {
        timeout_ms: EXEC_LIMIT_MS,
      });
      continue;
    }
    await host.exec('runc', ['delete', '--force', service.name], { okExitCodes: [0, 1] });
    await host.exec('rm', ['-rf', bundle(service.name)]);
  }
}

function inside(host: Host, service: Mosaic, args: readonly string[]): Promise<RunResult> {
  return host.exec(service.engine, ['exec', service.name, ...args], {
    timeout_ms: EXEC_LIMIT_MS,
    okExitCodes: [0, 1, 2, 3, 125, 126, 127, 255],
  });
}

export async function ask(host: Host, service: Mosaic, ...words: readonly string[]): Promise<MosaicVerdict> {
  const args = [MOSAIC, 'ask', '--dir', DIR, '--timeout-ms', String(ASK_LIMIT_MS), ...words];
  const { stdout, stderr, exitCode } = await inside(host, service, args);
  if (exitCode > 1 || stdout === '') {
    throw new Error(`${service.name} on ${host.name} does not answer "${words.join(' ')}" (${exitCode}): ${stderr}`);
  }
  const verdict = verdictSchema.parse(JSON.parse(stdout));
  // What was said of a wrong byte counts, even if the page that remembers it is itself the wrong one.
  return { ...verdict, ok: exitCode === 0, first: verdict.first === '' ? stderr.trim() : verdict.first };
}

/** Every byte of every process is what it must be; otherwise the failure names the first that is not. */
export async function everyByteRight(host: Host, service: Mosaic): Promise<MosaicVerdict> {
  const verdict = await ask(host, service, 'verify');
  assert.ok(verdict.ok, `${service.name} on ${host.name}: ${verdict.first}`);
  return verdict;
}

/** It went on from where it was, and works. */
export function wentOn(before: MosaicVerdict, after: MosaicVerdict): void {
  assert.equal(after.seed, before.seed);
  assert.ok(after.ticks > before.ticks, `ticks went from ${before.ticks} to ${after.ticks}`);
  assert.ok(after.steps > before.steps, `steps went from ${before.steps} to ${after.steps}`);
  assert.ok(after.writes > before.writes, `writes went from ${before.writes} to ${after.writes}`);
}

/** Machine-wide numbers of a host's mosaic processes that have not ended. */
export function mosaicPids(host: Host): number[] {
  return host.processes().filter(lives);
}

function lives(pid: number): boolean {
  const command = readIfThere(`/proc/${pid}/cmdline`);
  return command.startsWith(`${MOSAIC}\0run`) && !/^State:\s+[ZX]/m.test(readIfThere(`/proc/${pid}/status`));
}

/**
 * Whether one of its processes can do anything on this host: it is there, and neither frozen nor being restored. One that
 * is killed between two looks has no freezer to read; only if it lives after them was it seen to be free.
 */
export function isActive(host: Host): boolean {
  return mosaicPids(host).some((pid) => !isFrozen(pid) && !isStopped(pid) && lives(pid));
}

/** It is there and all of it stands still. */
export function isHeld(host: Host): boolean {
  const pids = mosaicPids(host);
  return pids.length > 0 && pids.every(isFrozen);
}

function isStopped(pid: number): boolean {
  return /^State:\s+[tT]/m.test(readIfThere(`/proc/${pid}/status`));
}

function isFrozen(pid: number): boolean {
  const path = /^0::(.*)$/m.exec(readIfThere(`/proc/${pid}/cgroup`))?.[1];
  // Not whether it is frozen to the last thread: one that waits for memory within the kernel never is.
  return path !== undefined && readIfThere(join(cgroup2Root(), path, 'cgroup.freeze')).trim() === '1';
}

export interface MosaicRegion {
  /** As the machine numbers it, where tests run. */
  pid: number;
  kind: string;
  base: number;
  pages: number;
  /** Addresses of the first page that was written and of the first that never was; 0 when there is none. */
  written: number;
  untouched: number;
}

/** The regions of one of its processes, as they were at the last verification. */
export async function regionsOf(host: Host, service: Mosaic, index: number): Promise<MosaicRegion[]> {
  const { stdout } = await inside(host, service, ['cat', `${DIR}/regions.${index}`]);
  return stdout
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => {
      const [pid = '', kind = '', base = '', pages = '', written = '', untouched = ''] = line.split(' ');
      const [at, first, empty] = [base, written, untouched].map((hex) => Number.parseInt(hex, 16));
      assert.ok(at !== undefined && first !== undefined && empty !== undefined && Number.isInteger(at), line);
      return {
        pid: pidOnMachine(host, Number(pid)),
        kind,
        base: at,
        pages: Number(pages),
        written: first,
        untouched: empty,
      };
    });
}

function pidOnMachine(host: Host, inner: number): number {
  const found = host.processes().find((pid) => {
    const status = readIfThere(`/proc/${pid}/status`);
    return /^Name:\s+mosaic$/m.test(status) && new RegExp(`^NSpid:.*\\s${inner}$`, 'm').test(status);
  });
  assert.ok(found !== undefined, `no process ${inner} of mosaic on ${host.name}`);
  return found;
}

function readIfThere(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}

/** A process's memory, read from outside. */
export function peek(pid: number, address: number, length = PAGE_BYTES): Buffer {
  const fd = openSync(`/proc/${pid}/mem`, 'r');
  try {
    const content = Buffer.alloc(length);
    assert.equal(readSync(fd, content, 0, length, address), length);
    return content;
  } finally {
    closeSync(fd);
  }
}

/** Alters a process's memory behind its back, as wrong memory would. */
export function poke(pid: number, address: number, content: Buffer): void {
  const fd = openSync(`/proc/${pid}/mem`, 'r+');
  try {
    assert.equal(writeSync(fd, content, 0, content.length, address), content.length);
  } finally {
    closeSync(fd);
  }
}

/** Waits until nothing of mosaic's own doing changes its memory any more. */
export async function standStill(host: Host, service: Mosaic): Promise<MosaicVerdict> {
  for (const knob of ['rate', 'churn', 'forks']) await ask(host, service, knob, '0');
  return until(`the forks of ${service.name} end`, START_LIMIT_MS, async () => {
    const verdict = await ask(host, service, 'status');
    return verdict.living === 0 ? verdict : undefined;
  });
}

/** The mount table, processes and files that a service could have left behind on a host. */
export async function leftovers(host: Host, service: Mosaic): Promise<string[]> {
  const script = [
    `ls /run/ums/staging | sed 's/^/staging: /'`,
    `ps -eo stat,args | grep -E '(^| )(criu|perl|conmon .*${service.name}|mosaic run)( |$)' | grep -v '^Z' | grep -v grep | sed 's/^/process: /' || true`,
    `grep -E '/${service.name}|/run/ums/staging/' /proc/mounts | sed 's/^/mount: /' || true`,
  ].join('\n');
  const { stdout } = await host.exec('sh', ['-c', script], { timeout_ms: EXEC_LIMIT_MS });
  return stdout.split('\n').filter((line) => line !== '');
}

export async function nothingLeft(host: Host, service: Mosaic): Promise<void> {
  await until(`nothing of ${service.name} is left on ${host.name}`, 20_000, async () => {
    const found = await leftovers(host, service);
    if (found.length > 0) throw new Error(found.join('\n'));
    return true;
  });
}

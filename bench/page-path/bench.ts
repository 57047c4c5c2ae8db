import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { formatBytes, formatTable } from '#src/cli/format.ts';
import { AGENT_NODE_FLAGS } from '#src/agent/node-flags.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { PAGE_BYTES } from '#src/transfer/pages/model.ts';
import { whole } from '../flags.ts';
import { median } from '../measure/statistics.ts';
import type { Bench, BenchOptions, BenchResult } from '../registry.ts';
import { atMost, type BenchCheck, type Reporter } from '../report.ts';
import { doneSchema, type Message, messageSchema, type Settings } from './ends.ts';
import { MemoryAtHand } from './memory-at-hand.ts';

const MIB = 1024 * 1024;
const GB = 1e9;
const RSS_LIMIT_MIB = 256;
const LIMITS_GB_S = { plain: 1, tls: 0.6 };

const flagsSchema = z.object({
  size: z.int(),
  connections: z.int(),
  dedupe: z.boolean(),
  compression: z.enum(['auto', 'none', 'lz4', 'zstd']),
  only: z.enum(['tcp', 'tls']).optional(),
  fresh: z.boolean().default(false),
});

type Done = z.infer<typeof doneSchema>;
interface Measured {
  name: string;
  tls: boolean;
  compressible: boolean;
  bytes: number;
  /** Bytes a second at which this machine gave out as much memory right before, in a file of one writer. */
  fill_bytes_s: number;
  source: Done;
  destination: Done;
}

export const pagePath: Bench = {
  name: 'page-path',
  what: 'memory pages from one process to another without any service: throughput a core, with and without TLS',
  repeat: 3,
  examples: ['page-path', 'page-path --size 1024 --repeat 5', 'page-path --only tls --compression none'],
  options: (command) =>
    void command
      .option('--size <mib>', 'MiB of memory', whole(16, 65_536), 4096)
      .option('--connections <n>', 'bulk connections', whole(1, 32), 2)
      .option('--compression <how>', 'auto, none, lz4 or zstd', 'auto')
      .option('--no-dedupe', 'do not look for pages that were sent before')
      .option('--fresh', 'with memory that this machine has not touched before, whatever its host takes for it')
      .option('--only <link>', 'tcp or tls alone'),
  run,
};

async function run(report: Reporter, options: BenchOptions): Promise<BenchResult> {
  const flags = flagsSchema.parse(options.flags);
  const measured: Measured[] = [];
  for (let repetition = 1; repetition <= options.repeat; repetition += 1) {
    // Ways take turns, so that what else happens on the machine hits all of them alike.
    for (const tls of [false, true]) {
      if (flags.only !== undefined && tls !== (flags.only === 'tls')) continue;
      for (const compressible of [false, true]) {
        const one = await measure(flags, tls, compressible, options.signal);
        measured.push(one);
        await options.results.repetition(`${one.name}-${repetition}`, one);
        report.event('repetition', { ...one });
        report.say(`${one.name} ${repetition}: ${speed(one.bytes / one.source.cost.elapsed_s)} on the clock`);
      }
    }
  }
  const groups = [...Map.groupBy(measured, ({ name }) => name)].map(([name, of]) => summary(name, of));
  report.say(`\n${render(groups)}`);
  return { checks: groups.flatMap(judge), figures: { ...flags, groups, repetitions: measured } };
}

async function measure(
  flags: z.infer<typeof flagsSchema>,
  tls: boolean,
  compressible: boolean,
  signal: AbortSignal,
): Promise<Measured> {
  const directory = await mkdtemp('/dev/shm/ums-bench-');
  const { connections, compression, dedupe, size } = flags;
  const pages = (size * MIB) / PAGE_BYTES;
  const settings: Settings = { tls, compressible, compression, dedupe, connections, pages, directory };
  const children: ChildProcess[] = [];
  try {
    const destination = startEnd('destination', settings, children, signal);
    const source = startEnd('source', settings, children, signal);
    const address = await destination.next((message) => ('address' in message ? message.address : undefined));
    const atHand = await MemoryAtHand.take(join(directory, 'at-hand'), pages * PAGE_BYTES, signal);
    const { fill_bytes_s } = atHand;
    if (flags.fresh) await atHand.giveBack();
    source.process.send(address);
    await source.next(isWarm);
    destination.process.send({});
    await destination.next(isWarm);
    source.process.send({});
    const done = Promise.all([source.next(doneOf), destination.next(doneOf)]);
    // Nobody may be at work on the memory when it goes.
    await Promise.allSettled([done]);
    await atHand.giveBack();
    const [sent, received] = await done;
    destination.process.send({});
    await Promise.all([source.ended, destination.ended]);
    const name = `${tls ? 'tls' : 'tcp'}-${compressible ? 'compressible' : 'incompressible'}`;
    return { name, tls, compressible, bytes: pages * PAGE_BYTES, fill_bytes_s, source: sent, destination: received };
  } finally {
    for (const child of children) child.kill('SIGKILL');
    await rm(directory, { recursive: true, force: true });
  }
}

function isWarm(message: Message): true | undefined {
  return 'warm' in message ? message.warm : undefined;
}

function doneOf(message: Message): Done | undefined {
  return 'done' in message ? message.done : undefined;
}

interface End {
  process: ChildProcess;
  ended: Promise<unknown>;
  next<T>(pick: (message: Message) => T | undefined): Promise<T>;
}

function startEnd(role: string, settings: Settings, children: ChildProcess[], signal: AbortSignal): End {
  const execArgv = [...AGENT_NODE_FLAGS, ...(process.env['UMS_BENCH_NODE']?.split(' ') ?? [])];
  const child = fork(join(import.meta.dirname, `${role}.ts`), [JSON.stringify(settings)], { execArgv, signal });
  children.push(child);
  child.on('error', () => undefined);
  const ended = once(child, 'exit');
  const gone = ended.then(() => failed(`the ${role} ended early`));
  return {
    process: child,
    ended,
    next: (pick) =>
      Promise.race([
        gone,
        new Promise<never>((_, reject) => {
          child.on('message', (raw) => {
            const message = messageSchema.parse(raw);
            if ('failed' in message) reject(error(message.failed));
          });
        }),
        new Promise<ReturnType<typeof pick> & {}>((resolve) => {
          child.on('message', (raw) => {
            const picked = pick(messageSchema.parse(raw));
            if (picked !== undefined && picked !== null) resolve(picked);
          });
        }),
      ]),
  };
}

function error(reason: string): UmsError {
  return new UmsError('UMS_E_TRANSFER', { message: `The page path failed: ${reason}.`, fault: 'ums' });
}

function failed(reason: string): never {
  throw error(reason);
}

interface Summary {
  name: string;
  tls: boolean;
  compressible: boolean;
  repetitions: number;
  fill_bytes_s: number;
  wall_bytes_s: number;
  source_bytes_core_s: number;
  destination_bytes_core_s: number;
  source_rss_bytes: number;
  destination_rss_bytes: number;
  wire_share: number;
}

function summary(name: string, of: readonly Measured[]): Summary {
  const mid = (value: (one: Measured) => number): number => median(of.map(value));
  return {
    name,
    tls: of[0]?.tls ?? false,
    compressible: of[0]?.compressible ?? false,
    repetitions: of.length,
    fill_bytes_s: mid(({ fill_bytes_s }) => fill_bytes_s),
    wall_bytes_s: mid(({ bytes, source }) => bytes / source.cost.elapsed_s),
    source_bytes_core_s: mid(({ bytes, source }) => bytes / source.cost.cpu_s),
    destination_bytes_core_s: mid(({ bytes, destination }) => bytes / destination.cost.cpu_s),
    source_rss_bytes: mid(({ source }) => source.cost.peak_rss_bytes),
    destination_rss_bytes: mid(({ destination }) => destination.cost.peak_rss_bytes),
    wire_share: mid(({ bytes, source }) => (source.figures['wire_bytes'] ?? 0) / bytes),
  };
}

function speed(bytes_s: number): string {
  return `${(bytes_s / GB).toFixed(2)} GB/s`;
}

function render(groups: readonly Summary[]): string {
  return formatTable(
    [
      { title: 'link, memory', value: (group: Summary) => group.name, least: 20 },
      { title: 'fill', value: (group) => speed(group.fill_bytes_s), align: 'right' },
      { title: 'wall', value: (group) => speed(group.wall_bytes_s), align: 'right' },
      { title: 'source/core', value: (group) => speed(group.source_bytes_core_s), align: 'right' },
      { title: 'dest./core', value: (group) => speed(group.destination_bytes_core_s), align: 'right' },
      { title: 'source RSS', value: (group) => formatBytes(group.source_rss_bytes), align: 'right' },
      { title: 'dest. RSS', value: (group) => formatBytes(group.destination_rss_bytes), align: 'right' },
      { title: 'wire', value: (group) => `${(group.wire_share * 100).toFixed(1)} %`, align: 'right' },
    ],
    groups,
    120,
  );
}

function judge(group: Summary): BenchCheck[] {
  const limit = group.tls ? LIMITS_GB_S.tls : LIMITS_GB_S.plain;
  const least = (name: string, bytes_s: number): BenchCheck => {
    const value = bytes_s / GB;
    return { name, value, limit, ok: value >= limit };
  };
  const rss = Math.max(group.source_rss_bytes, group.destination_rss_bytes) / MIB;
  return [
    least(`${group.name}: GB/s a core at the source, at least`, group.source_bytes_core_s),
    least(`${group.name}: GB/s a core at the destination, at least`, group.destination_bytes_core_s),
    atMost(`${group.name}: MiB of memory of either process`, rss, RSS_LIMIT_MIB),
  ];
}

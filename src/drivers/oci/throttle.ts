import { mkdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { z } from 'zod';
import { UmsError } from '#src/telemetry/errors.ts';
import { isMissing, parseCgroups } from './cgroup.ts';

/**
 * Gives a service less processor time for a while, so that it dirties less memory. What it had is written down before
 * anything is changed, so that an agent that was killed can still give it back.
 */
const CGROUP_ROOTS = ['/sys/fs/cgroup', '/sys/fs/cgroup/unified'];
const CPU_V1_ROOTS = ['/sys/fs/cgroup/cpu,cpuacct', '/sys/fs/cgroup/cpu'];
/** Microseconds; the kernel's own default. */
const PERIOD_US = 100_000;
/** Microseconds; the kernel takes no less. */
const QUOTA_MIN_US = 1000;
/** Milliseconds over which is measured what the service uses. */
const MEASURE_MS = 100;
/** Parts of one processor below which a service counts as using this much, so that an idle one is not stopped. */
const USE_MIN = 0.05;

const recordSchema = z.object({
  directory: z.string(),
  version: z.union([z.literal(1), z.literal(2)]),
  /** The file's content before: cpu.max, or cpu.cfs_quota_us. */
  before: z.string(),
  period_us: z.number(),
  /** Parts of one processor that the service used. */
  used: z.number(),
});
type ThrottleRecord = z.infer<typeof recordSchema>;

export class Throttle {
  readonly #root: string;

  constructor(runDir: string) {
    this.#root = join(runDir, 'throttle');
  }

  /** False when the kernel offers no such control for the group that these processes are in. */
  async set(id: string, pids: readonly number[], share: number | undefined): Promise<boolean> {
    if (share === undefined) return await this.#giveBack(id);
    if (!(share > 0 && share <= 1)) {
      throw new UmsError('UMS_E_INTERNAL', { message: `A share of ${share} is none`, fault: 'ums' });
    }
    const record = (await this.#read(id)) ?? (await this.#begin(id, pids));
    if (record === undefined) return false;
    const quota_us = Math.max(QUOTA_MIN_US, Math.round(record.used * share * record.period_us));
    return await put(record, record.version === 2 ? `${quota_us} ${record.period_us}` : String(quota_us));
  }

  async #begin(id: string, pids: readonly number[]): Promise<ThrottleRecord | undefined> {
    const [pid] = pids;
    const found = pid === undefined ? undefined : await findControl(pid);
    if (found === undefined) return undefined;
    const limit = limitOf(found);
    const record = { ...found, used: Math.min(await measureUse(found), limit) };
    await mkdir(this.#root, { recursive: true, mode: 0o700 });
    await writeFile(`${this.#path(id)}.new`, JSON.stringify(record), { mode: 0o600 });
    await rename(`${this.#path(id)}.new`, this.#path(id));
    return record;
  }

  async #giveBack(id: string): Promise<boolean> {
    const record = await this.#read(id);
    if (record === undefined) return true;
    await put(record, record.before);
    await rm(this.#path(id), { force: true });
    return true;
  }

  async #read(id: string): Promise<ThrottleRecord | undefined> {
    const text = await readIfThere(this.#path(id));
    return text === undefined ? undefined : recordSchema.parse(JSON.parse(text));
  }

  #path(id: string): string {
    return join(this.#root, `${id}.json`);
  }
}

type Control = Omit<ThrottleRecord, 'used'>;

async function findControl(pid: number): Promise<Control | undefined> {
  const text = (await readIfThere(`/proc/${pid}/cgroup`)) ?? '';
  const { unified } = parseCgroups(text);
  if (unified !== undefined && unified !== '/') {
    for (const root of CGROUP_ROOTS) {
      const directory = join(root, unified);
      const before = (await readIfThere(join(directory, 'cpu.max')))?.trim();
      if (before !== undefined) {
        return { directory, version: 2, before, period_us: Number(before.split(' ')[1] ?? PERIOD_US) };
      }
    }
  }
  const cpu = text.split('\n').find((line) => line.split(':')[1]?.split(',').includes('cpu') === true);
  const group = cpu?.split(':').slice(2).join(':') ?? '/';
  if (group === '/') return undefined;
  for (const root of CPU_V1_ROOTS) {
    const directory = join(root, group);
    const before = (await readIfThere(join(directory, 'cpu.cfs_quota_us')))?.trim();
    const period = (await readIfThere(join(directory, 'cpu.cfs_period_us')))?.trim();
    if (before !== undefined) return { directory, version: 1, before, period_us: Number(period ?? PERIOD_US) };
  }
  return undefined;
}

/** Parts of one processor that the service may use. */
function limitOf(control: Control): number {
  const quota = Number(control.before.split(' ')[0]);
  return Number.isFinite(quota) && quota > 0 ? quota / control.period_us : availableParallelism();
}

async function measureUse(control: Control): Promise<number> {
  const begin_us = await usage_us(control);
  const began_ms = performance.now();
  await sleep(MEASURE_MS);
  const used = ((await usage_us(control)) - begin_us) / 1000 / (performance.now() - began_ms);
  return Math.max(USE_MIN, used);
}

async function usage_us(control: Control): Promise<number> {
  if (control.version === 2) {
    const stat = (await readIfThere(join(control.directory, 'cpu.stat'))) ?? '';
    return Number(/^usage_usec (\d+)$/m.exec(stat)?.[1] ?? '0');
  }
  return Number((await readIfThere(join(control.directory, 'cpuacct.usage'))) ?? '0') / 1000;
}

/** False when the group went away: then there is nothing to hold back, and nothing to give back. */
async function put(record: ThrottleRecord, value: string): Promise<boolean> {
  const file = record.version === 2 ? 'cpu.max' : 'cpu.cfs_quota_us';
  try {
    await writeFile(join(record.directory, file), value, { flag: 'r+' });
    return true;
  } catch (error) {
    if (isMissing(error)) return false;
    throw error;
  }
}

async function readIfThere(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    if (isMissing(error)) return undefined;
    throw error;
  }
}

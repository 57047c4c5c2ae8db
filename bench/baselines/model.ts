import type { Lab } from '#lab/lab.ts';
import { qualityOf, type Quality } from '../measure/service-quality.ts';
import { checkMemory, type Engine, pidOf, PULSE, type PulseSettings, readPulse, untilLog } from '../pulse/service.ts';

/** One move without `ums`, measured with the same workload and the same judgement. */
export interface BaselineOutcome extends PulseSettings, Quality {
  how: string;
  total_ms: number;
  /** What travelled, in bytes; files as they lie on disk. */
  bytes: number;
  continuous: boolean;
  memory_ok: boolean;
  /** Milliseconds of each part. */
  parts: Record<string, number>;
}

const TICKS_AFTER = 1200;
const LIMIT_MS = 60_000;

export class Stopwatch {
  readonly parts: Record<string, number> = {};
  readonly began_at = Date.now();

  async time<Result>(name: string, act: () => Promise<Result>): Promise<Result> {
    const began = performance.now();
    try {
      return await act();
    } finally {
      this.parts[name] = performance.now() - began;
    }
  }
}

/** What became of the service on the second host. */
export async function seenOnBeta(lab: Lab, engine: Engine, watch: Stopwatch, signal: AbortSignal) {
  const to = Date.now();
  const host = lab.host('beta');
  const pid = await pidOf(host, engine, PULSE);
  const now = (await readPulse(host, pid)).entries.at(-1)?.n ?? 0;
  const isBack = (n: number | undefined) => (n ?? 0) >= now + TICKS_AFTER;
  const seen = await untilLog(host, pid, signal, LIMIT_MS, 'does not tick', (log) => isBack(log.entries.at(-1)?.n));
  const quality = qualityOf(seen, { from: watch.began_at, to });
  const log = await checkMemory(host, pid, signal);
  return {
    ...quality,
    total_ms: to - watch.began_at,
    continuous: log.continuous,
    memory_ok: log.checksums_ok > 0 && log.checksums_bad === 0,
    parts: watch.parts,
  };
}

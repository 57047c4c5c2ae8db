import type { Host } from '#lab/host.ts';
import { qualityOf } from '../measure/service-quality.ts';
import { checkMemory, pidOf, pulseArgs, readPulse, removeContainers, runBundle, untilLog } from '../pulse/service.ts';

/**
 * The local floor: `runc checkpoint` and `runc restore` of an 8 MiB container on one host, one right after the other,
 * images in memory. It is what runc and CRIU take when nothing has to travel, there is no memory to speak of and nobody in
 * between. The container is as `runc spec` makes it, network namespace and all, and so are those of runc's that `ums` moves
 * beside it.
 */
export const FLOOR_MIB = 8;
const NAME = 'bench-floor';
const AREA = '/run/bench-floor';
const CALM_TICKS = 1000;
const LIMIT_MS = 60_000;
const SCRIPT = `
rm -rf "$2"; mkdir -p "$2"
runc checkpoint --image-path "$2/images" --work-path "$2/work" "$1" >/dev/null
runc restore --detach --bundle "/srv/$1" --image-path "$2/images" --work-path "$2/work" "$1" </dev/null >/dev/null 2>&1
`;

export interface Floor {
  downtime_ms: number;
  total_ms: number;
  continuous: boolean;
  memory_ok: boolean;
}

export async function measureFloor(host: Host, signal: AbortSignal): Promise<Floor> {
  await removeContainers(host, NAME);
  try {
    await runBundle(host, NAME, pulseArgs({ mib: FLOOR_MIB, dirty_kb_s: 0 }), false);
    const calm = CALM_TICKS;
    const ticks = async (more: number) =>
      untilLog(
        host,
        await pidOf(host, 'runc', NAME),
        signal,
        LIMIT_MS,
        'does not tick',
        (log) => lastTick(log) >= more,
      );
    const before = lastTick(await ticks(calm));
    const from = Date.now();
    await host.exec('sh', ['-ec', SCRIPT, 'sh', NAME, AREA], { timeout_ms: LIMIT_MS });
    const to = Date.now();
    await ticks(before + calm);
    const pid = await pidOf(host, 'runc', NAME);
    const quality = qualityOf(await readPulse(host, pid), { from, to });
    const log = await checkMemory(host, pid, signal);
    return {
      downtime_ms: quality.downtime_ms,
      total_ms: to - from,
      continuous: log.continuous,
      memory_ok: log.checksums_ok === 1 && log.checksums_bad === 0,
    };
  } finally {
    await removeContainers(host, NAME);
    await host.exec('rm', ['-rf', AREA]);
  }
}

function lastTick(log: { entries: readonly { n: number }[] }): number {
  return log.entries.at(-1)?.n ?? 0;
}

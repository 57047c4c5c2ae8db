import { once } from 'node:events';
import { setTimeout as delay } from 'node:timers/promises';
import type { Host } from '#lab/host.ts';
import type { Lab } from '#lab/lab.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { Rsync } from '../measure/rsync.ts';
import { makeBundle, PULSE, pulseArgs, type PulseSettings, removePulse, startPulse } from '../pulse/service.ts';
import { type BaselineOutcome, seenOnBeta, Stopwatch } from './model.ts';

/**
 * The fog paper's way: runc checkpoints, rsync copies, runc restores. Its post-copy leaves the memory at the source,
 * where CRIU's page server hands out each page that is asked for. Its pre-copy and hybrid need soft-dirty tracking in
 * the kernel (`criu check --feature mem_dirty_track`), so they can be run only where that is.
 */
export const RUNC_TECHNIQUES = ['cold', 'post-copy'] as const;
export type RuncTechnique = (typeof RUNC_TECHNIQUES)[number];

const AREA = '/srv/bench-images';
const BUNDLE = `/srv/${PULSE}`;
const LOG = `${BUNDLE}/rootfs/pulse.log`;
const PAGE_PORT = 27_441;
const LIMIT_MS = 900_000;
/** While the service writes, CRIU fetches little but what is asked for, a page for each time there and back. */
const LAZY_LIMIT_MS = 2_700_000;
const CHECKPOINT = 'runc checkpoint --image-path "$2/images" --work-path "$2/work" "$1" >/dev/null';
/** Says on its output when everything but the memory is written: the status descriptor must be for writing only. */
const LAZY_CHECKPOINT = `
rm -f "$2/status"; mkfifo "$2/status"
(head -c 1 "$2/status" >/dev/null; echo ready) &
exec 7>"$2/status"
runc checkpoint --lazy-pages --page-server "0.0.0.0:$3" --status-fd 7 \\
  --image-path "$2/images" --work-path "$2/work" "$1" >/dev/null 2>&1
`;
const RESTORE = `
runc restore --detach $3 --bundle "/srv/$1" --image-path "$2/images" --work-path "$2/work" "$1" </dev/null >/dev/null 2>&1 || {
  grep Error "$2/work/restore.log" >&2; exit 1; }
`;

export async function moveByRunc(
  lab: Lab,
  technique: RuncTechnique,
  settings: Omit<PulseSettings, 'engine'>,
  signal: AbortSignal,
): Promise<BaselineOutcome> {
  const [alpha, beta] = [lab.host('alpha'), lab.host('beta')];
  await removePulse(lab);
  for (const host of [alpha, beta]) await host.exec('sh', ['-ec', 'rm -rf "$1"; mkdir -p "$1/work"', 'sh', AREA]);
  const rsync = await Rsync.open(alpha, beta);
  try {
    await makeBundle(beta, BUNDLE, pulseArgs(settings));
    await startPulse(alpha, { ...settings, engine: 'runc' }, signal);
    const watch = new Stopwatch();
    const move = technique === 'cold' ? moveCold : movePostCopy;
    await move(alpha, beta, rsync, watch, signal);
    const seen = await seenOnBeta(lab, 'runc', watch, signal);
    const bytes = await sizeOf(alpha);
    const lazy = technique === 'cold' ? 0 : settings.mib * 1024 * 1024;
    return { how: `runc + rsync, ${technique}`, engine: 'runc', ...settings, ...seen, bytes: bytes + lazy };
  } finally {
    await rsync.close();
    await removePulse(lab);
    for (const host of [alpha, beta]) await host.exec('rm', ['-rf', AREA]);
  }
}

async function sizeOf(host: Host): Promise<number> {
  const { stdout } = await host.exec('du', ['--bytes', '--summarize', `${AREA}/images`]);
  return Number(stdout.split('\t')[0]);
}

async function moveCold(alpha: Host, beta: Host, rsync: Rsync, watch: Stopwatch, signal: AbortSignal): Promise<void> {
  const limit = { timeout_ms: LIMIT_MS, signal };
  await watch.time('dump', () => alpha.exec('sh', ['-c', CHECKPOINT, 'sh', PULSE, AREA], limit));
  // The log lies in the root file system and is open: it must be the one of the checkpoint.
  await watch.time('dump_transfer', () => rsync.copy([`${AREA}/images`, LOG]));
  await watch.time('resume', () => beta.exec('sh', ['-c', RESTORE, 'sh', PULSE, AREA, ''], limit));
}

async function movePostCopy(
  alpha: Host,
  beta: Host,
  rsync: Rsync,
  watch: Stopwatch,
  signal: AbortSignal,
): Promise<void> {
  const script = ['-c', LAZY_CHECKPOINT, 'sh', PULSE, AREA, String(PAGE_PORT)];
  const lazyArgs = ['lazy-pages', '--page-server', '--address', alpha.address, '--port', String(PAGE_PORT)];
  const checkpoint = alpha.spawn('sh', script, { stdio: ['ignore', 'pipe', 'ignore'] });
  const served = once(checkpoint, 'exit');
  let daemon: ReturnType<Host['spawn']> | undefined;
  try {
    await watch.time('dump', () => untilReady(checkpoint));
    await watch.time('dump_transfer', () => rsync.copy([`${AREA}/images`, LOG]));
    const paths = ['--images-dir', `${AREA}/images`, '--work-dir', `${AREA}/work`];
    daemon = beta.spawn('criu', [...lazyArgs, ...paths, '--log-file', 'lazy.log'], { stdio: 'ignore' });
    const fetched = once(daemon, 'exit');
    const limit = { timeout_ms: LIMIT_MS, signal };
    const untilSocket = 'for i in $(seq 500); do [ -S "$2/work/lazy-pages.socket" ] && break; sleep 0.01; done';
    const restore = ['-c', `${untilSocket}\n${RESTORE}`, 'sh', PULSE, AREA, '--lazy-pages'];
    await watch.time('resume', () => beta.exec('sh', restore, limit));
    await watch.time('faulted_transfer', () => within(Promise.all([fetched, served]), LAZY_LIMIT_MS, signal));
  } finally {
    // Without the daemon at the destination the source's page server ends, and with it the checkpoint.
    if (daemon?.exitCode === null) daemon.kill('SIGTERM');
    else if (checkpoint.exitCode === null) checkpoint.kill('SIGTERM');
  }
}

async function within<Result>(work: Promise<Result>, limit_ms: number, signal: AbortSignal): Promise<Result> {
  const timer = new AbortController();
  const either = AbortSignal.any([signal, timer.signal]);
  const late = delay(limit_ms, undefined, { signal: either }).then(() => {
    throw new UmsError('UMS_E_LAB', { message: 'Not all memory has arrived in time.', fault: 'ums' });
  });
  try {
    return await Promise.race([work, late]);
  } finally {
    timer.abort();
  }
}

async function untilReady(child: ReturnType<Host['spawn']>): Promise<void> {
  const { stdout } = child;
  if (stdout === null) throw new Error('the checkpoint has no output');
  await new Promise<void>((resolve, reject) => {
    const failed = () => reject(new UmsError('UMS_E_LAB', { message: 'runc made no lazy checkpoint.', fault: 'ums' }));
    stdout.once('data', () => resolve());
    child.once('exit', failed);
  });
}

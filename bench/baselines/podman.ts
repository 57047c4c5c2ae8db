import type { Lab } from '#lab/lab.ts';
import { Rsync } from '../measure/rsync.ts';
import { PULSE, type PulseSettings, removePulse, startPulse } from '../pulse/service.ts';
import { type BaselineOutcome, seenOnBeta, Stopwatch } from './model.ts';

/** What a user of Podman does today: checkpoint --export, rsync over ssh, restore --import. */
const ARCHIVE = '/srv/bench-checkpoint.tar.zst';
const LIMIT_MS = 600_000;

export async function moveByPodman(
  lab: Lab,
  settings: Omit<PulseSettings, 'engine'>,
  signal: AbortSignal,
): Promise<BaselineOutcome> {
  const [alpha, beta] = [lab.host('alpha'), lab.host('beta')];
  await removePulse(lab);
  const removeArchives = async () => {
    for (const host of [alpha, beta]) await host.exec('rm', ['-f', ARCHIVE]);
  };
  await removeArchives();
  await beta.importImage('pulse');
  const rsync = await Rsync.open(alpha, beta);
  try {
    await startPulse(alpha, { ...settings, engine: 'podman' }, signal);
    const watch = new Stopwatch();
    const limit = { timeout_ms: LIMIT_MS, signal };
    const checkpoint = ['container', 'checkpoint', '--export', ARCHIVE, PULSE];
    await watch.time('checkpoint', () => alpha.exec('podman', checkpoint, limit));
    await watch.time('copy', () => rsync.copy([ARCHIVE]));
    await watch.time('restore', () => beta.exec('podman', ['container', 'restore', '--import', ARCHIVE], limit));
    const seen = await seenOnBeta(lab, 'podman', watch, signal);
    const { stdout } = await alpha.exec('stat', ['--format', '%s', ARCHIVE]);
    return {
      how: 'podman export + rsync + import',
      engine: 'podman',
      ...settings,
      ...seen,
      bytes: Number(stdout.trim()),
    };
  } finally {
    await rsync.close();
    await removeArchives();
    await removePulse(lab);
  }
}

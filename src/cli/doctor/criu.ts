import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { criuVersion, versionAtLeast } from '#src/checkpoint/criu.ts';
import { probeCriu } from '#src/checkpoint/probe.ts';
import { run } from '#src/telemetry/exec.ts';
import { toUmsError } from '#src/telemetry/errors.ts';
import { type Check, missing, ok, warning } from './checks.ts';

/** CRIU's own names of what it can use of this kernel, and what each is for. */
const FEATURES = [
  ['uffd', 'faulting pages in (post-copy)'],
  ['uffd-noncoop', 'faulting pages in across forks (post-copy)'],
  ['pagemap_scan', 'finding written pages (pre-copy)'],
  ['mem_dirty_track', 'soft-dirty pages (pre-copy, older way)'],
  ['clone3_set_tid', 'process ids at restore'],
  ['network_lock_nftables', 'holding packets with nftables'],
  ['overlayfs_maps', 'mapped files on overlay'],
  ['timens', 'time namespaces'],
  ['pidfd_store', 'process descriptors'],
] as const;

const STEP_LIMIT_MS = 20_000;
const GET_CRIU =
  'Debian: apt-get install criu, version 4.2 or newer (from testing on Debian 13; older ones fail on newer kernels).';

/** What CRIU can do is found out by letting it: the probe of the agent dumps and restores a small program. */
export async function criuChecks(): Promise<Check[]> {
  const works = 'CRIU dumps and restores a program here';
  if ((await criuVersion()) === undefined) {
    const reason = await whyNot();
    return [
      missing('criu', 'criu.there', 'CRIU', reason, GET_CRIU),
      missing('criu', 'criu.works', works, 'not tried', GET_CRIU),
    ];
  }
  const directory = await mkdtemp(join(tmpdir(), 'ums-doctor-'));
  try {
    const probe = await probeCriu({ stateDir: directory });
    const there = versionAtLeast(probe.version, '4.2')
      ? ok('criu', 'criu.there', 'CRIU 4.2', probe.version)
      : warning('criu', 'criu.there', 'CRIU 4.2', probe.version, GET_CRIU);
    const worksCheck = probe.works
      ? ok('criu', 'criu.works', works, 'with a socket, a pipe and an open file')
      : missing('criu', 'criu.works', works, probe.problem ?? 'it does not', GET_CRIU);
    return [
      there,
      worksCheck,
      ...(await Promise.all(FEATURES.map((feature) => featureCheck(feature, probe.features)))),
    ];
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

/** Why there is no CRIU that starts, in the system's own words. */
async function whyNot(): Promise<string> {
  try {
    await run('criu', ['--version'], { timeout_ms: STEP_LIMIT_MS });
    return 'it does not say its version';
  } catch (thrown) {
    return toUmsError(thrown).message;
  }
}

async function featureCheck(
  [feature, what]: (typeof FEATURES)[number],
  known: Readonly<Record<string, boolean>>,
): Promise<Check> {
  const id = `criu.feature.${feature}`;
  const label = `${feature}: ${what}`;
  const there = known[feature] ?? (await hasFeature(feature));
  if (there) return ok('criu', id, label, 'supported');
  return warning(
    'criu',
    id,
    label,
    'not supported by this kernel or CRIU',
    'A kernel that has it; ums does without where it can.',
  );
}

async function hasFeature(feature: string): Promise<boolean> {
  const answer = await run('criu', ['check', '--feature', feature], {
    timeout_ms: STEP_LIMIT_MS,
    okExitCodes: [0, 1, 255],
  });
  return answer.exitCode === 0;
}

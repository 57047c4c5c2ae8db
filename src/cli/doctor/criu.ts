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

const GET_CRIU =
  'Debian: apt-get install criu, version 4.2 or newer (from testing on Debian 13; older ones fail on newer kernels).';

export async function criuChecks(): Promise<Check[]> {
  let version: string;
  try {
    version =
      /Version:\s*(\S+)/.exec((await run('criu', ['--version'], { timeout_ms: 10_000 })).stdout)?.[1] ?? 'unknown';
  } catch (thrown) {
    const seen = toUmsError(thrown).message;
    return [
      missing('criu', 'criu.there', 'CRIU', seen, GET_CRIU),
      missing('criu', 'criu.works', 'CRIU dumps and restores here', 'not tried', GET_CRIU),
    ];
  }
  const there =
    Number.parseFloat(version) >= 4
      ? ok('criu', 'criu.there', 'CRIU 4', version)
      : warning('criu', 'criu.there', 'CRIU 4', version, GET_CRIU);
  return [there, await worksCheck(), ...(await Promise.all(FEATURES.map(featureCheck)))];
}

async function featureCheck([feature, what]: (typeof FEATURES)[number]): Promise<Check> {
  const id = `criu.feature.${feature}`;
  const label = `${feature}: ${what}`;
  try {
    await run('criu', ['check', '--feature', feature], { timeout_ms: 20_000 });
    return ok('criu', id, label, 'supported');
  } catch (thrown) {
    return warning(
      'criu',
      id,
      label,
      toUmsError(thrown).message,
      'A kernel that has it; ums does without where it can.',
    );
  }
}

async function worksCheck(): Promise<Check> {
  const what = 'CRIU starts on this kernel';
  try {
    await run('criu', ['check'], { timeout_ms: 20_000 });
    return ok('criu', 'criu.works', what, 'criu check says it looks good');
  } catch (thrown) {
    return missing('criu', 'criu.works', what, toUmsError(thrown).message, GET_CRIU);
  }
}

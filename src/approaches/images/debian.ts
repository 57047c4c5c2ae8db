import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { run } from '#src/telemetry/exec.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { debianMirror } from './mirror.ts';

/**
 * Root file systems of Debian 13 with a CRIU that works, made by mmdebstrap: for the capsule, and for the lab's test
 * hosts. Downloaded packages are kept beside what is built of them, so that the second of these fetches only what the
 * first had no use for.
 */
export const SUITE = 'trixie';
/** CRIU 4.2.1: Debian 13's 4.1.1 cannot dump an internet socket on kernels that refuse SO_PASSCRED for one. */
export const FROM_TESTING = ['criu', 'libcriu2', 'libcompel1', 'libnet9', 'libnl-3-200'] as const;
const KEYRING = '/usr/share/keyrings/debian-archive-keyring.gpg';
const BUILD_LIMIT_MS = 900_000;

export interface DebianRoot {
  /** What it is for, as a sentence about its failure says it. */
  what: string;
  /** A directory, or a file whose name ends in .tar. */
  target: string;
  packages: readonly string[];
  /** Where downloaded packages are kept. */
  archives: string;
  /** A container image: engines make its devices themselves. */
  withoutDevices?: true;
  /** Paths of packages that are only there because another package names theirs. */
  without?: readonly string[];
}

/** Where downloaded packages are kept in a cache. It can be removed at any time. */
export function debianArchives(cache: string): string {
  return join(cache, 'debs');
}

/** What decides what is in such a root, for the key under which it is kept. */
export function debianRecipe(packages: readonly string[]): string[] {
  return [process.arch, SUITE, packages.join(' '), FROM_TESTING.join(' ')];
}

export async function buildDebian(root: DebianRoot): Promise<void> {
  const mirror = debianMirror();
  const preferences = `${root.target}.preferences`;
  writeFileSync(
    preferences,
    `Package: *\nPin: release a=testing\nPin-Priority: 100\n\nPackage: ${FROM_TESTING.join(' ')}\nPin: release a=testing\nPin-Priority: 990\n`,
  );
  const args = argumentsOf(root, mirror, preferences);
  try {
    // It ends when this process does, however that ends.
    await run('setpriv', ['--pdeathsig', 'TERM', 'mmdebstrap', ...args], {
      timeout_ms: BUILD_LIMIT_MS,
      pickLine: aptLine,
    });
  } catch (error) {
    throw new UmsError('UMS_E_PREREQUISITE', {
      message: `${root.what} could not be built: ${error instanceof Error ? error.message : String(error)}`,
      fault: 'user',
      state: 'Nothing was kept; the next run begins anew.',
      mend: `Check that ${mirror} can be reached and carries ${SUITE} and testing.`,
      cause: error,
      ...(error instanceof UmsError && error.detail !== undefined ? { detail: error.detail } : {}),
    });
  } finally {
    rmSync(preferences, { force: true });
  }
}

function argumentsOf(root: DebianRoot, mirror: string, preferences: string): string[] {
  return [
    '--variant=minbase',
    '--quiet',
    // Not the keys that this machine happens to trust: Debian's own, as its package delivers them.
    `--keyring=${KEYRING}`,
    `--include=${root.packages.join(',')}`,
    `--setup-hook=mkdir -p "$1"/etc/apt/preferences.d && cp ${preferences} "$1"/etc/apt/preferences.d/testing`,
    `--setup-hook=mkdir -p ${root.archives} "$1"/var/cache/apt/archives`,
    `--setup-hook=sync-in ${root.archives} /var/cache/apt/archives`,
    `--customize-hook=sync-out /var/cache/apt/archives ${root.archives}`,
    '--skip=essential/unlink',
    ...(root.withoutDevices === true ? ['--skip=output/dev'] : []),
    '--aptopt=APT::Install-Recommends "false"',
    '--aptopt=Acquire::Languages "none"',
    ...(root.without ?? []).map((path) => `--dpkgopt=path-exclude=${path}`),
    '--dpkgopt=path-exclude=/usr/share/doc/*',
    '--dpkgopt=path-exclude=/usr/share/man/*',
    '--dpkgopt=path-exclude=/usr/share/locale/*',
    SUITE,
    root.target,
    `deb ${mirror} ${SUITE} main`,
    `deb [check-valid-until=no] ${mirror} testing main`,
  ];
}

function aptLine(stderr: string): string | undefined {
  return stderr.split('\n').findLast((line) => /^(E|Err|error):/i.test(line.trim()));
}

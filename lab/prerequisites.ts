import { existsSync } from 'node:fs';
import { run } from '#src/telemetry/exec.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { rootFileSystemIsBuilt } from './rootfs.ts';
import type { Say } from './say.ts';

/** A Debian package, a file that proves it is there, and the reason it is needed. */
export interface Prerequisite {
  package: string;
  proof: string;
  why: string;
}

/** What the lab needs from Debian on the machine itself. */
export const PREREQUISITES: readonly Prerequisite[] = [
  { package: 'iproute2', proof: '/sbin/ip', why: 'sets up the network of the test hosts' },
  { package: 'nftables', proof: '/usr/sbin/nft', why: 'partitions the network' },
  { package: 'procps', proof: '/sbin/sysctl', why: 'reads and sets kernel parameters' },
];

/** What building the root file system of the test hosts needs besides; where it is built already, nobody does. */
export const BUILD_PREREQUISITES: readonly Prerequisite[] = [
  { package: 'mmdebstrap', proof: '/usr/bin/mmdebstrap', why: 'makes the root file system of the test hosts' },
  {
    package: 'debian-archive-keyring',
    proof: '/usr/share/keyrings/debian-archive-keyring.gpg',
    why: 'checks its packages',
  },
  { package: 'gcc', proof: '/usr/bin/gcc', why: 'compiles the workloads and the wire' },
  { package: 'libc6-dev', proof: '/usr/include/stdio.h', why: 'the C library for them' },
];

const INSTALL_LIMIT_MS = 600_000;

function missing(wanted: readonly Prerequisite[]): Prerequisite[] {
  return wanted.filter((needed) => !existsSync(needed.proof));
}

export async function installPrerequisites(say: Say): Promise<void> {
  await installPackages(rootFileSystemIsBuilt() ? PREREQUISITES : [...PREREQUISITES, ...BUILD_PREREQUISITES], say);
}

export async function installPackages(wanted: readonly Prerequisite[], say: Say): Promise<void> {
  const absent = missing(wanted);
  if (absent.length === 0) return;
  for (const { package: name, why } of absent) say(`Installing ${name} from Debian: ${why}`);
  if (!existsSync('/usr/bin/apt-get')) {
    throw new UmsError('UMS_E_PREREQUISITE', {
      message: `The lab needs ${absent.map((needed) => needed.package).join(', ')}, and this machine has no apt-get`,
      fault: 'user',
      mend: 'Run the lab on Debian 12 or 13, or install these programs by the means of your distribution.',
    });
  }
  const env = { DEBIAN_FRONTEND: 'noninteractive' };
  // A source that has nothing to do with us may be broken; only the packages themselves matter.
  await run('apt-get', ['update', '-qq'], { env, timeout_ms: INSTALL_LIMIT_MS, okExitCodes: [0, 100] });
  const packages = absent.map((needed) => needed.package);
  // Another installation may be under way: apt's own, or a second run of this.
  const wait = ['-o', 'DPkg::Lock::Timeout=300'];
  await run('apt-get', ['install', '-y', '-qq', '--no-install-recommends', ...wait, ...packages], {
    env,
    timeout_ms: INSTALL_LIMIT_MS,
  });
  const still = missing(wanted);
  if (still.length > 0) {
    throw new UmsError('UMS_E_PREREQUISITE', {
      message: `Installed, but not found: ${still.map((needed) => needed.proof).join(', ')}`,
      fault: 'user',
      mend: 'Look at what `apt-get install` says for these packages.',
    });
  }
}

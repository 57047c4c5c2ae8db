import { readFileSync } from 'node:fs';
import type { Command } from 'commander';
import { GRANTS, lacks, type Seen } from '#src/approaches/container-level/needs.ts';
import { ownCapabilities } from '#src/approaches/container-level/prepare.ts';
import { probeCriu } from '#src/checkpoint/probe.ts';
import type { Runner } from '../command.ts';

const EXIT_LACKING = 4;
const CONSEQUENCES = { start: 'nothing starts', move: 'nothing moves', some: 'not everything moves' } as const;
const HELP = `
Examples:
  podman exec cache ums capsule doctor
  docker run --rm --entrypoint ums ums-capsule capsule doctor

Exit status 4 when something is missing. It tries a dump and a restore of a small program.
`;

export function addCapsuleDoctor(capsule: Command, runner: Runner): void {
  const doctor = capsule
    .command('doctor')
    .description('Say what this capsule lacks of its platform, what fails without it, and how it is granted')
    .addHelpText('after', HELP);
  runner.action(doctor, async (cli) => {
    const found = lacks(look());
    const criu = await probeCriu({ stateDir: '/var/lib/ums' });
    const able = found.length === 0 && criu.works;
    cli.show({ able, lacks: found, criu: { works: criu.works, problem: criu.problem ?? null }, grants: GRANTS }, () =>
      [
        ...found.map((lack) => `✗ ${lack.what} (${CONSEQUENCES[lack.for]}): without it ${lack.without}`),
        criu.works ? '✔ CRIU dumped and restored a small program' : `✗ CRIU does not work here: ${criu.problem ?? ''}`,
        ...(able
          ? ['✔ Everything is granted']
          : ['', ...GRANTS.flatMap(({ platform, how }) => [`${platform}:`, `  ${how}`])]),
      ].join('\n'),
    );
    return able ? 0 : EXIT_LACKING;
  });
}

function look(): Seen {
  const status = readFileSync('/proc/self/status', 'utf8');
  return {
    capabilities: ownCapabilities(),
    seccomp: Number(/^Seccomp:\s*(\d+)$/m.exec(status)?.[1] ?? 0),
    profile: securityProfile(),
  };
}

/** Reading it fails where the kernel has no module that would have one. */
function securityProfile(): string {
  try {
    return readFileSync('/proc/self/attr/current', 'utf8').replaceAll('\0', '');
  } catch {
    return '';
  }
}

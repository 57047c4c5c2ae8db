import type { Finding } from '../contract.ts';
import { bindFindings, deviceFindings, findingOf, portFindings } from '../oci/findings.ts';
import { findProgram } from '../oci/runtime.ts';
import type { Mount, Specification } from '../specification.ts';
import { info, inspectContainer, inspectVolume, isInstalled, networkExists } from './api.ts';
import { RUNTIME } from './create-body.ts';

/** What stands against recreating the container here. Creates nothing. */
export async function canCreate(specification: Specification): Promise<Finding[]> {
  if (!isInstalled()) {
    return [
      findingOf(
        'error',
        'engine.missing',
        'Docker does not run here',
        'The service is a Docker container.',
        'apt install docker.io docker-cli',
      ),
    ];
  }
  const findings = [...(await runtimeFindings())];
  const { name } = specification;
  if ((await inspectContainer(name)) !== undefined) {
    findings.push(
      findingOf(
        'error',
        'name.taken',
        `A container named ${name} exists here`,
        'The service keeps its name.',
        `docker rename ${name} OTHER, or remove it`,
      ),
    );
  }
  for (const mount of specification.mounts) findings.push(...(await mountFindings(mount)));
  for (const network of specification.network.networks) {
    if (await networkExists(network)) continue;
    findings.push(
      findingOf(
        'error',
        'network.missing',
        `There is no network ${network} here`,
        'The service is connected to it.',
        `docker network create ${network}`,
      ),
    );
  }
  findings.push(...(await portFindings(specification.ports)));
  for (const device of specification.devices) findings.push(...(await deviceFindings(device.source)));
  return findings;
}

/** Docker restores a container through a runtime that it must have been told of. */
async function runtimeFindings(): Promise<Finding[]> {
  const findings: Finding[] = [];
  if (!(RUNTIME in (await info()).Runtimes)) {
    findings.push(
      findingOf(
        'error',
        'runtime.unknown',
        `Docker does not know the runtime ${RUNTIME} here`,
        'It starts a container out of a checkpoint only through that.',
        'ums install --engine docker',
      ),
    );
  }
  for (const [program, id] of [
    ['runc', 'runtime.missing'],
    ['docker', 'client.missing'],
  ] as const) {
    if ((await findProgram(program)) !== undefined) continue;
    const package_ = program === 'docker' ? 'docker-cli' : program;
    findings.push(
      findingOf('error', id, `There is no ${program} here`, 'Restoring needs it.', `apt install ${package_}`),
    );
  }
  return findings;
}

async function mountFindings(mount: Mount): Promise<Finding[]> {
  if (mount.kind === 'tmpfs') return [];
  if (mount.kind === 'bind') return await bindFindings(mount);
  if (mount.anonymous) return [];
  const there = (await inspectVolume(mount.name)) !== undefined;
  if (mount.shared === there) return [];
  return mount.shared
    ? [
        findingOf(
          'error',
          'volume.missing',
          `There is no volume named ${mount.name} here`,
          'It was declared shared, so the destination must have it, on the same storage.',
          'docker volume create with the options that it has at the source, or migrate without sharing it',
        ),
      ]
    : [
        findingOf(
          'error',
          'volume.taken',
          `A volume named ${mount.name} exists here`,
          'The service’s volume keeps its name, and nothing is overwritten.',
          `docker volume rm ${mount.name}, if nobody needs it`,
        ),
      ];
}

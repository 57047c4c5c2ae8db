import type { Finding } from '../contract.ts';
import { bindFindings, deviceFindings, findingOf, portFindings } from '../oci/findings.ts';
import { findProgram } from '../oci/runtime.ts';
import type { Mount, Specification } from '../specification.ts';
import { inspectContainer, inspectVolume, networkExists, podmanVersion } from './cli.ts';

/** What stands against recreating the container here. Creates nothing. */
export async function canCreate(specification: Specification): Promise<Finding[]> {
  if ((await podmanVersion()) === undefined) {
    return [
      findingOf(
        'error',
        'engine.missing',
        'Podman is not installed here',
        'The service is a Podman container.',
        'apt install podman',
      ),
    ];
  }
  const findings: Finding[] = [];
  if ((await findProgram('runc')) === undefined) {
    findings.push(
      findingOf('error', 'runtime.missing', 'runc is not installed here', 'Restoring needs it.', 'apt install runc'),
    );
  }
  const name = specification.name;
  if ((await inspectContainer(name)) !== undefined) {
    findings.push(
      findingOf(
        'error',
        'name.taken',
        `A container named ${name} exists here`,
        'The service keeps its name.',
        `podman rename ${name} OTHER, or remove it`,
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
        `podman network create ${network}`,
      ),
    );
  }
  findings.push(...(await portFindings(specification.ports)));
  for (const device of specification.devices) findings.push(...(await deviceFindings(device.source)));
  if (specification.init && (await findProgram('catatonit')) === undefined) {
    findings.push(
      findingOf(
        'warning',
        'init.missing',
        'There is no catatonit here',
        'The service runs below Podman’s init program, which must be the same on both sides.',
        'apt install catatonit',
      ),
    );
  }
  return findings;
}

async function mountFindings(mount: Mount): Promise<Finding[]> {
  if (mount.kind === 'volume') {
    if (mount.shared) {
      if ((await inspectVolume(mount.name)) !== undefined) return [];
      return [
        findingOf(
          'error',
          'volume.missing',
          `There is no volume named ${mount.name} here`,
          'It was declared shared, so the destination must have it, on the same storage.',
          `podman volume create with the options that it has at the source, or migrate without sharing it`,
        ),
      ];
    }
    if (mount.anonymous || (await inspectVolume(mount.name)) === undefined) return [];
    return [
      findingOf(
        'error',
        'volume.taken',
        `A volume named ${mount.name} exists here`,
        'The service’s volume keeps its name, and nothing is overwritten.',
        `podman volume rm ${mount.name}, if nobody needs it`,
      ),
    ];
  }
  if (mount.kind === 'tmpfs') return [];
  return await bindFindings(mount);
}

import { stat } from 'node:fs/promises';
import type { Finding } from '../contract.ts';
import { isMissing } from '../oci/cgroup.ts';
import { findingOf, portFindings } from '../oci/findings.ts';
import { findProgram } from '../oci/runtime.ts';
import type { Mount, Specification } from '../specification.ts';
import { inspectContainer, inspectVolume, networkExists, podmanVersion } from './cli.ts';
import { entriesOf } from './create.ts';

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
  const there = await exists(mount.source);
  switch (mount.transfer) {
    case 'expect':
      if (there) return [];
      return [
        findingOf(
          'error',
          'mount.missing',
          `${mount.source} does not exist here`,
          `The service mounts it at ${mount.destination}.`,
          'Make it, or migrate with --bind-mounts copy',
        ),
      ];
    case 'copy':
      if (!there || (await entriesOf(mount.source)).length === 0) return [];
      return [
        findingOf(
          'error',
          'mount.taken',
          `${mount.source} exists here and is not empty`,
          'The service’s copy of it would be mixed into it.',
          'Empty or move it, or migrate with --bind-mounts expect',
        ),
      ];
    case 'undecided':
      return [
        findingOf(
          'error',
          'mount.undecided',
          `The service mounts the host’s ${mount.source}`,
          'Only you know whether its content belongs to the service or to the host.',
          'Say --bind-mounts copy to take it along, or --bind-mounts expect to use what is at the destination',
        ),
      ];
  }
}

async function deviceFindings(path: string): Promise<Finding[]> {
  if (await exists(path)) return [];
  return [
    findingOf(
      'error',
      'device.missing',
      `There is no ${path} here`,
      'The service uses the device.',
      'Load its driver, or move to a system that has it',
    ),
  ];
}

async function exists(path: string): Promise<boolean> {
  try {
    await stat(path);
    return true;
  } catch (error) {
    if (isMissing(error)) return false;
    throw error;
  }
}

import type { Finding } from '../contract.ts';
import type { Mount, Specification } from '../specification.ts';
import { bindFindings, deviceFindings, findingOf, portFindings } from './findings.ts';

/** Questions to an engine that knows things by name, and the command with which a person asks it. */
export interface NamingEngine {
  command: string;
  hasContainer: (name: string) => Promise<boolean>;
  hasVolume: (name: string) => Promise<boolean>;
  hasNetwork: (name: string) => Promise<boolean>;
}

/** What is taken or missing here of what a container needs under any engine. */
export async function engineFindings(specification: Specification, engine: NamingEngine): Promise<Finding[]> {
  const { name, mounts, network, ports, devices } = specification;
  const { command } = engine;
  const findings: Finding[] = [];
  if (await engine.hasContainer(name)) {
    findings.push(
      findingOf(
        'error',
        'name.taken',
        `A container named ${name} exists here`,
        'The service keeps its name.',
        `${command} rename ${name} OTHER, or remove it`,
      ),
    );
  }
  for (const mount of mounts) findings.push(...(await mountFindings(mount, engine)));
  for (const each of network.networks) {
    if (await engine.hasNetwork(each)) continue;
    findings.push(
      findingOf(
        'error',
        'network.missing',
        `There is no network ${each} here`,
        'The service is connected to it.',
        `${command} network create ${each}`,
      ),
    );
  }
  findings.push(...(await portFindings(ports)));
  for (const device of devices) findings.push(...(await deviceFindings(device.source)));
  return findings;
}

async function mountFindings(mount: Mount, { command, hasVolume }: NamingEngine): Promise<Finding[]> {
  if (mount.kind === 'tmpfs') return [];
  if (mount.kind === 'bind') return await bindFindings(mount);
  if (mount.anonymous && !mount.shared) return [];
  if (mount.shared === (await hasVolume(mount.name))) return [];
  return mount.shared
    ? [
        findingOf(
          'error',
          'volume.missing',
          `There is no volume named ${mount.name} here`,
          'It was declared shared, so the destination must have it, on the same storage.',
          `${command} volume create with the options that it has at the source, or migrate without sharing it`,
        ),
      ]
    : [
        findingOf(
          'error',
          'volume.taken',
          `A volume named ${mount.name} exists here`,
          'The service’s volume keeps its name, and nothing is overwritten.',
          `${command} volume rm ${mount.name}, if nobody needs it`,
        ),
      ];
}

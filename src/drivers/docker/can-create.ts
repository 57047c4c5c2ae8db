import type { Finding } from '../contract.ts';
import { engineFindings, type NamingEngine } from '../oci/engine-findings.ts';
import { findingOf } from '../oci/findings.ts';
import { findProgram } from '../oci/runtime.ts';
import type { Specification } from '../specification.ts';
import { info, inspectContainer, inspectVolume, isInstalled, networkExists } from './api.ts';
import { RUNTIME } from './create-body.ts';

const DOCKER: NamingEngine = {
  command: 'docker',
  hasContainer: async (name) => (await inspectContainer(name)) !== undefined,
  hasVolume: async (name) => (await inspectVolume(name)) !== undefined,
  hasNetwork: networkExists,
};

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
  return [...(await runtimeFindings()), ...(await engineFindings(specification, DOCKER))];
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

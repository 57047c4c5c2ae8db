import type { Finding } from '../contract.ts';
import { engineFindings, type NamingEngine } from '../oci/engine-findings.ts';
import { findingOf } from '../oci/findings.ts';
import { findProgram } from '../oci/runtime.ts';
import type { Specification } from '../specification.ts';
import { inspectContainer, inspectVolume, networkExists, podmanVersion } from './cli.ts';

const PODMAN: NamingEngine = {
  command: 'podman',
  hasContainer: async (name) => (await inspectContainer(name)) !== undefined,
  hasVolume: async (name) => (await inspectVolume(name)) !== undefined,
  hasNetwork: networkExists,
};

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
  findings.push(...(await engineFindings(specification, PODMAN)));
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

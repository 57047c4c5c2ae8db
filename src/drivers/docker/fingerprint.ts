import { UmsError } from '#src/telemetry/errors.ts';
import type { EngineFingerprint } from '../contract.ts';
import { runcVersion } from '../oci/runtime.ts';
import { info, isInstalled } from './api.ts';

type Lack = Required<Pick<EngineFingerprint, 'problem' | 'mend'>>;

/** Docker here, in the name of a driver that uses it; `lacks` says what that needs beside a Docker that answers. */
export async function dockerFingerprint(
  engine: EngineFingerprint['engine'],
  lacks: (runtime: string | undefined) => Promise<Lack | undefined>,
): Promise<EngineFingerprint> {
  const runtime = await runcVersion();
  const base = { engine, version: '', runtime: runtime ?? '' } as const;
  const without = (lack: Lack): EngineFingerprint => ({ ...base, available: false, ...lack });
  if (!isInstalled()) return without({ problem: 'Docker does not run', mend: 'apt install docker.io docker-cli' });
  try {
    const lack = await lacks(runtime);
    return lack === undefined ? { ...base, version: (await info()).ServerVersion, available: true } : without(lack);
  } catch (error) {
    if (!(error instanceof UmsError)) throw error;
    return without({ problem: error.message, mend: error.mend ?? 'See what dockerd says.' });
  }
}

import { UmsError } from '#src/telemetry/errors.ts';
import { findProgram } from '../oci/runtime.ts';
import { addressIn } from '../scheduler/http.ts';

/** Nomad's own variables, as its command reads them; the agent has them in its environment. */
const DEFAULT_ADDRESS = 'http://127.0.0.1:4646';
const DEFAULT_NAMESPACE = 'default';

export interface NomadAccess {
  address: string;
  token: string | undefined;
  namespace: string;
}

/** Costs a look for one file. */
export async function isInstalled(env: NodeJS.ProcessEnv = process.env): Promise<boolean> {
  return given(env, 'NOMAD_ADDR') !== undefined || (await findProgram('nomad')) !== undefined;
}

export function readAccess(env: NodeJS.ProcessEnv = process.env): NomadAccess {
  const { address } = addressIn('NOMAD_ADDR', given(env, 'NOMAD_ADDR') ?? DEFAULT_ADDRESS);
  const namespace = given(env, 'NOMAD_NAMESPACE') ?? DEFAULT_NAMESPACE;
  if (namespace === '*') {
    throw new UmsError('UMS_E_USAGE', {
      message: 'NOMAD_NAMESPACE names all namespaces, and an agent looks after one',
      fault: 'user',
      mend: 'Name one of them in the environment of the agent.',
    });
  }
  return { address, token: given(env, 'NOMAD_TOKEN'), namespace };
}

function given(env: NodeJS.ProcessEnv, name: string): string | undefined {
  const value = env[name];
  return value === '' ? undefined : value;
}

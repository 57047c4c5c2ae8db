import { addressIn } from '../scheduler/http.ts';

/** Where Marathon is, from the environment of the agent: it has no place of its own on a host. */
export interface MarathonAccess {
  address: string;
  authorization: string | undefined;
}

export function isConfigured(env: NodeJS.ProcessEnv = process.env): boolean {
  return (env['MARATHON_URL'] ?? '') !== '';
}

/** Undefined where nobody named one. A token is given as DC/OS takes it; without one, a user within the address. */
export function readAccess(env: NodeJS.ProcessEnv = process.env): MarathonAccess | undefined {
  if (!isConfigured(env)) return undefined;
  const { address, user, password } = addressIn('MARATHON_URL', env['MARATHON_URL'] ?? '');
  const token = env['MARATHON_TOKEN'] ?? '';
  if (token !== '') return { address, authorization: `token=${token}` };
  const basic = `Basic ${Buffer.from(`${user}:${password}`).toString('base64')}`;
  return { address, authorization: user === '' ? undefined : basic };
}

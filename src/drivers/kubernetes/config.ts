import { existsSync, readFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { UmsError } from '#src/telemetry/errors.ts';
import { parse } from 'yaml';
import { z } from 'zod';

/**
 * Where the cluster is and who asks, from a kubeconfig: what its administrator gives to everybody else. What has to be run
 * to get a token (exec, auth-provider) is not.
 */
const text = z.string().max(65_536);
const kubeconfigSchema = z.object({
  'current-context': text,
  contexts: z.array(z.object({ name: text, context: z.object({ cluster: text, user: text }) })).max(1000),
  clusters: z
    .array(
      z.object({
        name: text,
        cluster: z.object({
          server: text,
          'certificate-authority': text.optional(),
          'certificate-authority-data': text.optional(),
          'tls-server-name': text.optional(),
        }),
      }),
    )
    .max(1000),
  users: z
    .array(
      z.object({
        name: text,
        user: z.object({
          token: text.optional(),
          tokenFile: text.optional(),
          'client-certificate': text.optional(),
          'client-certificate-data': text.optional(),
          'client-key': text.optional(),
          'client-key-data': text.optional(),
        }),
      }),
    )
    .max(1000),
});

export interface ClusterAccess {
  /** The file it was read from, for messages. */
  file: string;
  server: string;
  serverName: string | undefined;
  ca: string | undefined;
  certificate: string | undefined;
  key: string | undefined;
  token: string | undefined;
}

/** The agent's own choice first, then where kubeadm and people put it. */
function candidates(env: NodeJS.ProcessEnv): string[] {
  const own = env['UMS_KUBECONFIG'];
  if (own !== undefined && own !== '') return [own];
  return ['/etc/kubernetes/admin.conf', join(homedir(), '.kube', 'config')];
}

/** The kubeconfig that is used here; undefined where there is none, and so no Kubernetes. */
export function findKubeconfig(env: NodeJS.ProcessEnv = process.env): string | undefined {
  return candidates(env).find((path) => existsSync(path));
}

export function readKubeconfig(file: string): ClusterAccess {
  try {
    return accessOf(file, readFileSync(file, 'utf8'));
  } catch (error) {
    throw new UmsError('UMS_E_ENGINE', {
      message: `The kubeconfig ${file} cannot be used: ${error instanceof Error ? error.message : String(error)}`,
      fault: 'user',
      mend: 'Name another one by UMS_KUBECONFIG in the environment of the agent.',
      cause: error,
    });
  }
}

export function accessOf(file: string, content: string): ClusterAccess {
  const config = kubeconfigSchema.parse(parse(content));
  const named = config.contexts.find(({ name }) => name === config['current-context'])?.context;
  const cluster = config.clusters.find(({ name }) => name === named?.cluster)?.cluster;
  const user = config.users.find(({ name }) => name === named?.user)?.user;
  if (cluster === undefined || user === undefined) throw new Error('its current context names nothing in it');
  const read = (path: string | undefined, data: string | undefined): string | undefined => {
    if (data !== undefined) return Buffer.from(data, 'base64').toString('utf8');
    return path === undefined ? undefined : readFileSync(resolve(dirname(file), path), 'utf8');
  };
  return {
    file,
    server: cluster.server.replace(/\/$/, ''),
    serverName: cluster['tls-server-name'],
    ca: read(cluster['certificate-authority'], cluster['certificate-authority-data']),
    certificate: read(user['client-certificate'], user['client-certificate-data']),
    key: read(user['client-key'], user['client-key-data']),
    token: user.token ?? read(user.tokenFile, undefined)?.trim(),
  };
}

import { isAbsolute, join, resolve } from 'node:path';
import { UmsError } from '#src/telemetry/errors.ts';
import type { Tree } from '../contract.ts';
import { bareNetwork, type Mount, type Specification } from '../specification.ts';
import { type Config, configSchema } from './schema.ts';

export function parseConfig(text: string, bundle: string): Config {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw badConfig(bundle, error);
  }
  const parsed = configSchema.safeParse(value);
  if (!parsed.success) throw badConfig(bundle, parsed.error);
  return parsed.data;
}

function badConfig(bundle: string, cause: unknown): UmsError {
  return new UmsError('UMS_E_SPECIFICATION', {
    message: `${bundle}/config.json is not an OCI configuration`,
    fault: 'user',
    detail: cause instanceof Error ? cause.message.slice(0, 2000) : String(cause),
    cause,
  });
}

/** Absolute path of the bundle's root file system on the host. */
export function rootfsOf(config: Config, bundle: string): string {
  return isAbsolute(config.root.path) ? resolve(config.root.path) : resolve(bundle, config.root.path);
}

export function bindsOf(config: Config): Extract<Mount, { kind: 'bind' }>[] {
  return config.mounts
    .filter((mount) => mount.type === 'bind' || mount.options.includes('bind') || mount.options.includes('rbind'))
    .map((mount) => ({
      kind: 'bind',
      source: mount.source,
      destination: mount.destination,
      readOnly: mount.options.includes('ro'),
      options: mount.options.slice(0, 32),
      transfer: 'undecided',
    }));
}

export function networkPath(config: Config): string | undefined {
  const path = config.linux.namespaces.find((namespace) => namespace.type === 'network')?.path;
  return path === '' ? undefined : path;
}

function networkMode(config: Config): Specification['network']['mode'] {
  const own = config.linux.namespaces.some((namespace) => namespace.type === 'network');
  return own ? 'private' : 'host';
}

/** A bundle → what it is. Its config.json says everything; the other fields are for people and for checks. */
export function specificationOf(id: string, bundle: string, configText: string): Specification {
  const config = parseConfig(configText, bundle);
  const namespace = (type: string): string =>
    config.linux.namespaces.some((each) => each.type === type) ? 'private' : 'host';
  return {
    version: 1,
    engine: 'runc',
    name: id,
    image: { kind: 'rootfs' },
    command: config.process.args,
    env: config.process.env,
    workingDir: config.process.cwd,
    user: `${config.process.user.uid}:${config.process.user.gid}`,
    groups: [],
    hostname: config.hostname,
    labels: {},
    annotations: config.annotations,
    mounts: bindsOf(config),
    ports: [],
    exposedPorts: [],
    network: bareNetwork(networkMode(config)),
    restartPolicy: { name: 'no', retries: 0 },
    resources: {},
    ulimits: [],
    capabilities: { add: [], drop: [] },
    privileged: false,
    readOnlyRootfs: config.root.readonly,
    securityOptions: config.process.noNewPrivileges ? ['no-new-privileges'] : [],
    devices: [],
    init: false,
    tty: config.process.terminal,
    openStdin: false,
    sysctls: config.linux.sysctl,
    logOptions: {},
    autoRemove: false,
    namespaces: {
      pid: namespace('pid'),
      ipc: namespace('ipc'),
      uts: namespace('uts'),
      user: namespace('user') === 'private' ? 'private' : '',
      cgroup: namespace('cgroup'),
    },
    bundle: { path: bundle, configText },
  };
}

export function refuseUnmovable(specification: Specification, config: Config): void {
  const reason = unmovable(specification, config);
  if (reason === undefined) return;
  throw new UmsError('UMS_E_SPECIFICATION', {
    message: `${specification.name} cannot be moved: ${reason.why}`,
    fault: 'user',
    state: 'Nothing was changed.',
    mend: reason.mend,
  });
}

function unmovable(specification: Specification, config: Config): { why: string; mend: string } | undefined {
  if (specification.tty) {
    return { why: 'it has a terminal whose other end somebody here holds', mend: 'Set process.terminal to false.' };
  }
  if (specification.namespaces.pid !== 'private') {
    return {
      why: 'it has no process id namespace of its own',
      mend: 'Add a pid namespace: process ids cannot be kept on a host that has other processes.',
    };
  }
  if (specification.namespaces.user !== '') {
    return { why: 'it has a user namespace', mend: 'Run it without one.' };
  }
  const shared = config.linux.namespaces.find(
    (each) => each.type !== 'network' && each.path !== undefined && each.path !== '',
  );
  if (shared !== undefined) {
    return { why: `it joins the ${shared.type} namespace ${shared.path ?? ''}`, mend: 'Give it one of its own.' };
  }
  if (rootfsOf(config, specification.bundle?.path ?? '/') === '/') {
    return { why: 'its root file system is the host’s', mend: 'Give it a root file system of its own.' };
  }
  return undefined;
}

export function treesOf(config: Config, bundle: string, copied: (mount: Mount) => boolean): Tree[] {
  const binds = bindsOf(config).filter(copied);
  return [
    { id: 'rootfs', path: rootfsOf(config, bundle), kind: 'plain' },
    ...binds.map((mount): Tree => ({ id: `bind:${mount.source}`, path: mount.source, kind: 'plain' })),
  ];
}

export function logPath(bundle: string): string {
  return join(bundle, 'ums-output.log');
}

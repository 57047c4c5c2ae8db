import { existsSync, readFileSync, statSync } from 'node:fs';
import { hostname } from 'node:os';
import type { Finding, ServiceState, ServiceSummary, Tree } from '../contract.ts';
import { bareNetwork, type Specification } from '../specification.ts';
import { boundOf, groupsOf, lackOf } from './capabilities.ts';
import { stdioOf } from './criu.ts';
import { LAYOUT, type Migratable, migratableSchema } from './layout.ts';

const SHARED_MEMORY = '/dev/shm';

/** Undefined where this is no container of a migratable image. */
export function readMigratable(): Migratable | undefined {
  if (!existsSync(LAYOUT.image)) return undefined;
  return migratableSchema.parse(JSON.parse(readFileSync(LAYOUT.image, 'utf8')));
}

export function summaryOf(image: Migratable, state: ServiceState, pid: number): ServiceSummary {
  return {
    engine: 'init',
    id: image.name,
    name: image.name,
    state,
    image: image.names[0] ?? image.id.slice(7, 19),
    pid,
    ports: image.exposedPorts,
    created_at: statSync('/proc/1').ctime.toISOString(),
  };
}

/** Only what lies within the container: all around it is its orchestrator's, on either side. */
export function specificationOf(image: Migratable, pid: number): Specification {
  return {
    version: 1,
    engine: 'init',
    name: image.name,
    image: { kind: 'image', id: image.id, names: image.names, size_bytes: 0 },
    entrypoint: image.entrypoint,
    command: image.command,
    env: image.env,
    workingDir: image.workingDir,
    user: image.user,
    groups: groupsOf(pid === 0 ? 1 : pid),
    hostname: hostname(),
    labels: {},
    annotations: {},
    mounts: [],
    ports: [],
    network: bareNetwork('private'),
    restartPolicy: { name: 'no', retries: 0 },
    resources: {},
    ulimits: [],
    // Of its first process: nobody that descends from it may do more.
    capabilities: { add: boundOf(pid === 0 ? 1 : pid), drop: [] },
    privileged: false,
    readOnlyRootfs: false,
    securityOptions: [],
    devices: [],
    init: true,
    tty: false,
    openStdin: false,
    sysctls: {},
    logOptions: {},
    autoRemove: false,
    exposedPorts: image.exposedPorts,
    namespaces: { pid: '', ipc: '', uts: '', user: '', cgroup: '' },
  };
}

/** The directories that the image names, and shared memory, which is a file system that CRIU takes for the container's. */
export function treesOf(image: Migratable): Tree[] {
  return [SHARED_MEMORY, ...image.files]
    .filter((path) => existsSync(path))
    .map((path) => ({ id: `files:${path}`, path, kind: 'plain', confined: false }));
}

const PTRACE_SCOPE = '/proc/sys/kernel/yama/ptrace_scope';

/** What this container lacks for giving its service away or for receiving one. */
export function abilityProblem(): { problem: string; mend: string } | undefined {
  const scope = existsSync(PTRACE_SCOPE) ? readFileSync(PTRACE_SCOPE, 'utf8') : undefined;
  return lackOf(readFileSync('/proc/self/status', 'utf8'), scope);
}

/** Whether a service with these standard descriptors finds its like here; the init's are the container's. */
export function stdioFindings(stdio: readonly string[]): Finding[] {
  const terminal = stdio.find((target) => target.startsWith('/dev/pts/') || target === '/dev/console');
  if (terminal === undefined) return [];
  return [
    {
      severity: 'error',
      id: 'service.terminal',
      what: `The container has a terminal (${terminal}).`,
      why: 'A terminal belongs to the engine that made it, and cannot be given to a restored service.',
      mend: 'Run the container without a terminal (no --tty).',
    },
  ];
}

export function ownStdio(): string[] {
  return stdioOf(1);
}

import { setTimeout as delay } from 'node:timers/promises';
import { readFile } from 'node:fs/promises';
import { z } from 'zod';
import { removeBundle } from '#lab/bundle.ts';
import type { Host } from '#lab/host.ts';
import type { Lab } from '#lab/lab.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { parsePulseLog, type PulseLog } from '../measure/pulse-log.ts';
import { agentOf } from '../moves.ts';

/** The workload pulse (lab/workloads/pulse.c) as a container of an engine on a lab host. */
export const ENGINES = ['runc', 'podman', 'docker'] as const;
export type Engine = (typeof ENGINES)[number];

export interface PulseSettings {
  engine: Engine;
  mib: number;
  dirty_kb_s: number;
  /** All writes go to this first share of its memory. */
  hot_percent?: number;
  read_kb_s?: number;
  zero_mib?: number;
  compressible?: boolean;
  /** A client outside asks it. Only then a bundle of plain runc, whose network nobody makes, uses its host's. */
  reachable?: boolean;
}

export const PULSE = 'bench-pulse';
/** The service listens here, its Frontman there. */
const SERVICE_PORT = 7101;
export const FRONTMAN_PORT = 7100;
const LOG = '/pulse.log';

const LIMIT_MS = 120_000;
const POLL_MS = 20;
const CALM_TICKS = 2200;

/** Takes away what an earlier run may have left on any host: containers, bundles, Frontmen. */
export async function removePulse(lab: Lab): Promise<void> {
  await Promise.all(lab.hosts.map((host) => removeFrom(lab, host)));
}

async function removeFrom(lab: Lab, host: Host): Promise<void> {
  const client = agentOf(lab, host.name);
  try {
    for (const frontman of await client.frontmen()) {
      if (frontman.listen.port === FRONTMAN_PORT) await client.removeFrontman(frontman.id);
    }
  } finally {
    await client.close();
  }
  await removeContainers(host, PULSE);
}

export async function removeContainers(host: Host, name: string): Promise<void> {
  const limit = { timeout_ms: LIMIT_MS };
  await host.exec('podman', ['rm', '--force', '--ignore', '--time', '0', name], limit);
  await host.exec('sh', ['-c', 'docker rm --force "$1" >/dev/null 2>&1 || true', 'sh', name], limit);
  await removeBundle(host, name);
}

function option(name: string, value: number | undefined): string[] {
  return value === undefined ? [] : [name, String(value)];
}

export function pulseArgs(settings: Omit<PulseSettings, 'engine'>, port?: number, log = LOG): string[] {
  const { mib, dirty_kb_s, hot_percent, read_kb_s, zero_mib, compressible } = settings;
  return [
    'pulse',
    'hold',
    ...option('--size', mib),
    ...option('--dirty', dirty_kb_s),
    ...option('--hot', hot_percent),
    ...option('--read', read_kb_s),
    ...option('--zero', zero_mib),
    ...(compressible === true ? ['--compressible'] : []),
    ...option('--port', port),
    '--log',
    log,
  ];
}

/** Starts it and waits until its memory is filled and it has ticked calmly for a while. */
export async function startPulse(host: Host, settings: PulseSettings, signal: AbortSignal): Promise<void> {
  const args = pulseArgs(settings, SERVICE_PORT);
  const { engine } = settings;
  if (engine === 'runc') await runBundle(host, PULSE, args, settings.reachable);
  else {
    const image = await host.importImage('pulse', engine);
    await host.exec(engine, ['run', '--detach', '--name', PULSE, image, ...args], { timeout_ms: LIMIT_MS });
  }
  await untilTick(host, engine, PULSE, CALM_TICKS, signal);
}

const configSchema = z.looseObject({
  process: z.looseObject({}),
  root: z.looseObject({}),
  linux: z.looseObject({ namespaces: z.array(z.looseObject({ type: z.string() })) }),
});

/** A bundle of plain runc as `runc spec` makes it, or on the host's own network, so that its port can be reached. */
export async function runBundle(
  host: Host,
  name: string,
  args: readonly string[],
  reachable: boolean | undefined,
  image = 'pulse',
): Promise<void> {
  const bundle = `/srv/${name}`;
  await makeBundle(host, bundle, args, reachable, image);
  const script = 'runc run --detach --bundle "$1" "$2" </dev/null >/dev/null 2>&1';
  await host.exec('sh', ['-c', script, 'sh', bundle, name], { timeout_ms: LIMIT_MS });
}

export async function makeBundle(
  host: Host,
  bundle: string,
  args: readonly string[],
  reachable = false,
  image = 'pulse',
): Promise<void> {
  const script = 'mkdir -p "$1"; cp -a "/opt/bundles/$2/rootfs" "$1/rootfs"';
  await host.exec('sh', ['-ec', script, 'sh', bundle, image]);
  await host.exec('runc', ['spec', '--bundle', bundle]);
  const config = configSchema.parse(JSON.parse(host.readFile(`${bundle}/config.json`)));
  config.process['terminal'] = false;
  config.process['args'] = args;
  config.root['readonly'] = false;
  const { namespaces } = config.linux;
  config.linux.namespaces = namespaces.filter((namespace) => !reachable || namespace.type !== 'network');
  host.writeFile(`${bundle}/config.json`, JSON.stringify(config, undefined, 2));
}

const runcStateSchema = z.object({ pid: z.int().positive(), status: z.string() });

/** The first process of the container as its host numbers it. */
export async function pidOf(host: Host, engine: Engine, name: string): Promise<number> {
  if (engine === 'runc') {
    const { stdout } = await host.exec('runc', ['state', name], { timeout_ms: LIMIT_MS });
    return runcStateSchema.parse(JSON.parse(stdout)).pid;
  }
  const args = ['container', 'inspect', '--format', '{{.State.Pid}}', name];
  const { stdout } = await host.exec(engine, args, { timeout_ms: LIMIT_MS });
  return z.coerce.number().int().positive().parse(stdout.trim());
}

/** A file inside a container, read from the machine: no process has to be started in it. */
async function readInside(host: Host, pid: number, path: string): Promise<string> {
  return readFile(host.path(`/proc/${pid}/root${path}`), 'utf8');
}

export async function readPulse(host: Host, pid: number): Promise<PulseLog> {
  return parsePulseLog(await readInside(host, pid, LOG));
}

async function untilTick(host: Host, engine: Engine, name: string, tick: number, signal: AbortSignal): Promise<void> {
  const pid = await pidOf(host, engine, name);
  await untilLog(host, pid, signal, LIMIT_MS, 'does not tick', (log) => (log.entries.at(-1)?.n ?? 0) >= tick);
}

/** Reads the log again and again until it says what is waited for. */
export async function untilLog(
  host: Host,
  pid: number,
  signal: AbortSignal,
  limit_ms: number,
  otherwise: string,
  wanted: (log: PulseLog) => boolean,
): Promise<PulseLog> {
  const limit = Date.now() + limit_ms;
  for (;;) {
    signal.throwIfAborted();
    const log = await readPulse(host, pid).catch((thrown: unknown) => {
      // It has not made its log yet, or is gone.
      if (Date.now() > limit) throw thrown;
      return undefined;
    });
    if (log !== undefined && wanted(log)) return log;
    if (Date.now() > limit) {
      throw new UmsError('UMS_E_LAB', { message: `The workload on ${host.name} ${otherwise}.`, fault: 'service' });
    }
    await delay(POLL_MS * 5, undefined, { signal });
  }
}

const checksums = (log: PulseLog): number => log.checksums_ok + log.checksums_bad;

/** Lets it look at all of its memory. It stands still meanwhile, so nothing is measured afterwards. */
export async function checkMemory(host: Host, pid: number, signal: AbortSignal): Promise<PulseLog> {
  const before = await readPulse(host, pid);
  await host.exec('kill', ['-USR1', String(pid)]);
  return untilLog(
    host,
    pid,
    signal,
    LIMIT_MS,
    'does not check its memory',
    (log) => checksums(log) > checksums(before),
  );
}

/** A Frontman on the host where the service is, for the client outside. */
export async function frontPulse(lab: Lab, host: Host): Promise<void> {
  const client = agentOf(lab, host.name);
  try {
    await client.addFrontman({
      service: PULSE,
      listen: { address: '0.0.0.0', port: FRONTMAN_PORT },
      port: SERVICE_PORT,
      mode: 'tcp',
    });
  } finally {
    await client.close();
  }
}

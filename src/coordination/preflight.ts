import { statfs } from 'node:fs/promises';
import { dirname } from 'node:path';
import { compareHosts, type HostFingerprint } from '#src/checkpoint/fingerprint.ts';
import { checkProcesses } from '#src/checkpoint/preflight.ts';
import type { Driver, EngineFingerprint, Finding, ServiceDescription, Tree } from '#src/drivers/contract.ts';
import { imagesOf, type Specification } from '#src/drivers/specification.ts';
import { translate } from '#src/drivers/translation.ts';
import type { ErrorCode } from '#src/telemetry/error-codes.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { run } from '#src/telemetry/exec.ts';
import type { Choice } from '#src/decision/index.ts';
import type { SagaContext } from './context.ts';
import { forecast, type ForecastInputs } from './forecast.ts';
import { greet } from './greet.ts';
import { peerCheckResponseSchema, PROTOCOL, type Sizes } from './messages.ts';
import { likelyTracker, whyNotApart, whyNotLazy } from './plan.ts';
import { statusOf } from './process-status.ts';
import { sampleMemory } from './sample.ts';
import type { MigrateOptions } from './schema.ts';
import { applySharedChoice, sharedFindings, volumesOf } from './shared-storage.ts';
import { wayFindings } from './way.ts';

export interface Forecast {
  choice: Choice;
  inputs: ForecastInputs;
}

export interface Preflight {
  description: ServiceDescription;
  sizes: Sizes;
  findings: Finding[];
  /** Why memory cannot travel on the page path; undefined when it can. */
  notLazy: string | undefined;
  /** What each technique is predicted to take, and which one is best. Asked for once: the service is looked at for a while. */
  forecast: () => Promise<Forecast>;
  /** The code with which a migration is refused for these findings. */
  blockingCode: ErrorCode;
}

/** Codes for findings that people meet often enough to want their own. */
const CODES: readonly [prefix: string, code: ErrorCode][] = [
  ['name.', 'UMS_E_NAME_TAKEN'],
  ['volume.taken', 'UMS_E_NAME_TAKEN'],
  ['port.', 'UMS_E_PORT_TAKEN'],
  ['room.', 'UMS_E_NO_ROOM'],
  ['engine.', 'UMS_E_ENGINE_MISSING'],
  ['approach.', 'UMS_E_APPROACH'],
];

export function codeOf(finding: Finding): ErrorCode {
  return CODES.find(([prefix]) => finding.id.startsWith(prefix))?.[1] ?? 'UMS_E_PREFLIGHT';
}

/** A service, and the driver of the engine that has it. */
export interface Found {
  driver: Driver;
  description: ServiceDescription;
}

/** Splits `ENGINE:NAME`; a plain name is looked for in every engine. */
export async function findService(context: SagaContext, reference: string): Promise<Found> {
  const { first, only } = await findFirst(context, reference);
  await only;
  return first;
}

/**
 * The answer of the engine that knows the service first, so that looking at it need not wait for the others: a command
 * line engine takes up to 0.1 s to say that it knows nothing. `only` rejects if another engine has one of that name too.
 */
export async function findFirst(
  context: SagaContext,
  reference: string,
): Promise<{ first: Found; only: Promise<void> }> {
  const colon = reference.indexOf(':');
  const wanted = colon > 0 ? reference.slice(0, colon) : undefined;
  const name = colon > 0 ? reference.slice(colon + 1) : reference;
  const engines = await context.engines();
  const asked = engines.filter(({ available, engine }) => available && (wanted === undefined || engine === wanted));
  const lacking = engines.filter(({ engine }) => wanted === undefined || engine === wanted);
  if (asked.length === 0 && lacking.length > 0) throw noEngine(context, lacking);
  const answers = asked.map(({ engine }) => tryDescribe(context.driver(engine), name));
  const all = Promise.all(answers).then((each) => each.filter((answer) => answer !== undefined));
  const only = all.then(([one, another]) => {
    if (one !== undefined && another !== undefined) throw ambiguous(name, one, another);
  });
  // Whoever looks at the service meanwhile may fail before anybody hears of it.
  only.catch(() => undefined);
  const first = await earliest(answers);
  if (first !== undefined) return { first, only };
  // Either nobody knows it, or an engine could not say.
  await all;
  throw new UmsError('UMS_E_SERVICE_UNKNOWN', {
    message: `There is no service ${JSON.stringify(reference)} on ${context.systemName}.`,
    fault: 'user',
    state: 'Nothing was changed.',
    mend: 'List the services with: ums ls',
  });
}

/** None of the engines that could know it can be used: why, is what helps. */
function noEngine(context: SagaContext, lacking: readonly EngineFingerprint[]): UmsError {
  const why = lacking.map(({ engine, problem }) => `${engine}: ${problem ?? 'it does not answer'}`);
  return new UmsError('UMS_E_PREREQUISITE', {
    message: `No engine can be used on ${context.systemName} (${why.join('; ')}).`,
    fault: 'user',
    state: 'Nothing was changed.',
    mend: lacking.find(({ mend }) => mend !== undefined)?.mend ?? 'See what is missing with: ums doctor',
  });
}

/** The first answer that is one. */
async function earliest<T>(answers: readonly Promise<T | undefined>[]): Promise<T | undefined> {
  const { promise, resolve } = Promise.withResolvers<T | undefined>();
  const told = answers.map((answer) =>
    answer.then((value) => {
      if (value !== undefined) resolve(value);
    }),
  );
  void Promise.allSettled(told).then(() => resolve(undefined));
  return await promise;
}

function ambiguous(name: string, one: Found, another: Found): UmsError {
  return new UmsError('UMS_E_SERVICE_AMBIGUOUS', {
    message: `${JSON.stringify(name)} is a service of ${one.driver.engine} and of ${another.driver.engine}.`,
    fault: 'user',
    state: 'Nothing was changed.',
    mend: `Say which: ${one.driver.engine}:${name} or ${another.driver.engine}:${name}`,
  });
}

async function tryDescribe(driver: Driver, name: string): Promise<Found | undefined> {
  try {
    return { driver, description: await driver.describe(name) };
  } catch (error) {
    if (error instanceof UmsError && error.code === 'UMS_E_SERVICE_UNKNOWN') return undefined;
    throw error;
  }
}

/** Memory that a dump will carry: anonymous and shared pages of every process (proc(5), RssAnon and RssShmem). */
export async function memoryBytes(pids: readonly number[]): Promise<number> {
  let total_bytes = 0;
  for (const pid of pids) {
    const status = await statusOf(pid);
    for (const match of status.matchAll(/^Rss(?:Anon|Shmem):\s+(\d+) kB$/gm)) total_bytes += Number(match[1]) * 1024;
  }
  return total_bytes;
}

async function fileBytes(description: ServiceDescription): Promise<number> {
  const paths = movingTrees(description).map(({ path }) => path);
  if (paths.length === 0) return 0;
  // du exits with 1 for files that vanish under it, which a running service is free to do.
  const { stdout } = await run('du', ['-sxB1', '--', ...paths], { timeout_ms: 300_000, okExitCodes: [0, 1] });
  return stdout.split('\n').reduce((sum, line) => sum + (Number.parseInt(line, 10) || 0), 0);
}

/** The trees that travel: a bound directory only if the user said that its content moves, a shared volume never. */
export function movingTrees(description: ServiceDescription): Tree[] {
  const bound = new Set(
    description.specification.mounts.flatMap((mount) =>
      mount.kind === 'bind' && mount.transfer === 'copy' ? [`bind:${mount.source}`] : [],
    ),
  );
  const shared = new Set(volumesOf(description.specification).shared.map((name) => `volume:${name}`));
  return description.trees.filter(
    (tree) => (!tree.id.startsWith('bind:') || bound.has(tree.id)) && !shared.has(tree.id),
  );
}

function applyBindChoice(specification: Specification, choice: MigrateOptions['bindMounts']): Specification {
  return {
    ...specification,
    mounts: specification.mounts.map((mount) =>
      mount.kind === 'bind' && mount.transfer === 'undecided' && choice !== 'refuse'
        ? { ...mount, transfer: mount.readOnly ? ('expect' as const) : choice }
        : mount,
    ),
  };
}

/** Everything that can be known before touching anything, about both sides. */
export async function preflight(
  context: SagaContext,
  found: Found | Promise<Found>,
  destination: string,
  options: MigrateOptions,
  migration: string | undefined,
  signal: AbortSignal,
): Promise<Preflight> {
  // Asked first, because a connection may have to be made; whoever is refused before does not hear what came of it.
  const greeting = greet(context, destination, signal);
  greeting.catch(() => undefined);
  const { driver, description: described } = await found;
  const chosen = applyBindChoice(described.specification, options.bindMounts);
  const own = applySharedChoice(chosen, options.sharedVolumes);
  // Whoever asked for a way that there is not shall read of that, and not of what else is in the way.
  const closed = wayFindings(own, options);
  const { specification, losses } = translate(own, closed.length === 0 ? options.engine : undefined);
  const description = { ...described, specification, losses: [...described.losses, ...losses] };
  const { summary } = description;
  const findings: Finding[] = [...closed];
  const holder = context.journal.lockHolder(driver.engine, summary.id);
  if (holder !== undefined && holder !== migration) throw busy(specification.name, holder);
  if (summary.state !== 'running') throw notRunning(specification.name, summary.state);
  const pids = await driver.processes(description.handle);
  // It takes a while, in which the rest is asked for. Where the technique is settled nothing depends on it, and it waits
  // until somebody asks.
  const sampling = options.technique === 'auto' ? sampleMemory(pids, signal) : undefined;
  sampling?.catch(() => undefined);
  const [fingerprint, state_bytes, file_bytes, criuFindings, guestFindings] = await Promise.all([
    context.fingerprint(),
    memoryBytes(pids),
    fileBytes(description),
    checkProcesses(pids),
    guests(pids),
  ]);
  const image_bytes = imagesOf(specification).reduce(
    (sum, image) => sum + (image.kind === 'image' ? image.size_bytes : 0),
    0,
  );
  const sizes: Sizes = { state_bytes, file_bytes, image_bytes };
  findings.push(...criuFindings, ...guestFindings, ...undecidedBinds(specification));
  findings.push(...sharedFindings(specification, options.sharedVolumes));
  for (const loss of description.losses) {
    findings.push({
      severity: 'warning',
      id: 'specification.loss',
      what: loss,
      why: 'It cannot be recreated as it is.',
      mend: 'Accept it, or change the service first.',
    });
  }
  const hello = await greeting;
  if (hello.protocol.min > PROTOCOL.max || hello.protocol.max < PROTOCOL.min) throw noCommonVersion(context, hello);
  findings.push(...compareHosts(fingerprint, hello.fingerprint));
  const theirs = await context.peers.request(destination, {
    method: 'POST',
    path: '/peer/v1/check',
    body: { specification, fingerprint, sizes },
    schema: peerCheckResponseSchema,
    timeout_ms: 60_000,
    signal,
  });
  findings.push(...theirs.findings);
  const notLazy = driver.whyNotLazy ?? whyNotApart(specification) ?? whyNotLazy(fingerprint, hello.fingerprint);
  const forecasting = async (): Promise<Forecast> => {
    const inputs: ForecastInputs = {
      engine: driver.engine,
      destination,
      sizes,
      sample: await (sampling ?? sampleMemory(pids, signal)),
      processes: pids.length,
      rtt_ms: await context.peers.ping(destination),
      goals: { max_downtime_ms: options.maxDowntime_ms, max_rounds: options.maxRounds, on_stall: options.onStall },
      tracker: likelyTracker(fingerprint),
      notLazy,
    };
    return { choice: forecast(context, inputs), inputs };
  };
  const blocking = findings.find((finding) => finding.severity === 'error');
  return {
    description,
    sizes,
    findings,
    notLazy,
    forecast: forecasting,
    blockingCode: blocking === undefined ? 'UMS_E_PREFLIGHT' : codeOf(blocking),
  };
}

/**
 * Processes that were put into the service from outside (`podman exec`): their parent is not one of the service's, so
 * they are not of the tree that CRIU dumps, and end with the source's copy (proc(5): PPid, NSpid).
 */
async function guests(pids: readonly number[]): Promise<Finding[]> {
  const found: string[] = [];
  for (const pid of pids) {
    const status = await statusOf(pid);
    const parent = Number(/^PPid:\s+(\d+)$/m.exec(status)?.[1] ?? '0');
    const inside = /^NSpid:.*\s(\d+)$/m.exec(status)?.[1];
    const isFirst = inside === '1' || pid === pids[0];
    if (status !== '' && !isFirst && !pids.includes(parent))
      found.push(/^Name:\s+(.+)$/m.exec(status)?.[1] ?? `${pid}`);
  }
  if (found.length === 0) return [];
  return [
    {
      severity: 'warning',
      id: 'process.guest',
      what: `Started from outside and not moved: ${found.slice(0, 5).join(', ')}${found.length > 5 ? ` and ${found.length - 5} more` : ''}.`,
      why: 'Such a process (podman exec, a health check) is no descendant of the service’s first process; it ends here.',
      mend: 'Let it end first, or start it again at the destination.',
    },
  ];
}

function undecidedBinds(specification: Specification): Finding[] {
  return specification.mounts
    .filter((mount) => mount.kind === 'bind' && mount.transfer === 'undecided')
    .map((mount) => ({
      severity: 'error',
      id: 'mount.bind',
      what: `The service mounts ${mount.kind === 'bind' ? mount.source : ''} of its host at ${mount.destination}.`,
      why: 'ums cannot know whether that directory belongs to the service or to the host.',
      mend: 'Say --bind-mounts copy (its content moves) or --bind-mounts expect (the destination has it already).',
    }));
}

/** The destination's part of the check: what this system thinks of receiving the service. */
export async function checkHere(
  context: SagaContext,
  specification: Specification,
  source: HostFingerprint,
  sizes: Sizes,
): Promise<{ findings: Finding[]; needsImage: boolean; asError: (finding: Finding) => UmsError }> {
  const findings: Finding[] = [];
  const engine = (await context.engines()).find((one) => one.engine === specification.engine);
  let needsImage = false;
  if (engine === undefined || !engine.available) {
    findings.push({
      severity: 'error',
      id: 'engine.missing',
      what: `${context.systemName} has no usable ${specification.engine}.`,
      why: engine?.problem ?? 'This agent has no driver for it.',
      mend: engine?.mend ?? `Install ${specification.engine} on ${context.systemName}.`,
    });
  } else {
    const driver = context.driver(specification.engine);
    findings.push(...(await driver.canCreate(specification)));
    needsImage = !(await driver.hasImage(specification));
  }
  const here = await context.fingerprint();
  findings.push(...compareHosts(source, here).filter((finding) => finding.severity === 'error'));
  const room = { ...here, diskAvailable_bytes: await roomFor(specification) };
  findings.push(...roomFindings(context.systemName, room, sizes, needsImage));
  return {
    findings,
    needsImage,
    asError: (finding) =>
      new UmsError(codeOf(finding), {
        message: finding.what,
        fault: 'destination',
        state: 'Nothing was touched.',
        mend: finding.mend,
        detail: finding.why,
      }),
  };
}

/** Where the files of a service will lie, by the engines' defaults; another place shows when it is full. */
const PODMAN_STORAGE = '/var/lib/containers/storage';

async function roomFor(specification: Specification): Promise<number> {
  let path = specification.bundle?.path ?? PODMAN_STORAGE;
  for (;;) {
    try {
      const info = await statfs(path);
      return info.bavail * info.bsize;
    } catch (error) {
      // What does not exist yet will be made in the next directory above it that does.
      if (path === '/' || !(error instanceof Error && 'code' in error && error.code === 'ENOENT')) throw error;
      path = dirname(path);
    }
  }
}

/**
 * Room at the destination: the memory of the service twice (its images stay in memory until it is handed over) and the
 * files once, each with a tenth to spare.
 */
export function roomFindings(name: string, here: HostFingerprint, sizes: Sizes, needsImage: boolean): Finding[] {
  const room = [
    {
      id: 'room.memory',
      needed: sizes.state_bytes * 2,
      free: here.memoryAvailable_bytes,
      kind: 'memory',
      why: 'The checkpoint stays in memory beside the restored service until it is handed over.',
      mend: `Free memory on ${name} or choose another system.`,
    },
    {
      id: 'room.staging',
      needed: sizes.state_bytes,
      free: here.stagingAvailable_bytes,
      kind: 'memory for staging',
      why: 'The checkpoint is received into a file system in memory, which is limited (usually to 90 % of all memory).',
      mend: `End other migrations to ${name}, or enlarge the tmpfs /run/ums/staging there (mount -o remount,size=…).`,
    },
    {
      id: 'room.disk',
      needed: sizes.file_bytes + (needsImage ? sizes.image_bytes * 2 : 0),
      free: here.diskAvailable_bytes,
      kind: 'disk',
      why: 'The files of the service, and its image if it is not there yet, are copied.',
      mend: `Free disk on ${name} or choose another system.`,
    },
  ];
  return room.flatMap(({ id, needed, free, kind, why, mend }): Finding[] => {
    const wanted = Math.ceil(needed * 1.1);
    if (wanted <= free) return [];
    const what = `${name} has too little free ${kind}: ${mib(free)} MiB of the ${mib(wanted)} MiB needed.`;
    return [{ severity: 'error', id, what, why, mend }];
  });
}

function mib(bytes: number): number {
  return Math.round(bytes / 1_048_576);
}

function busy(name: string, holder: string): UmsError {
  return new UmsError('UMS_E_SERVICE_BUSY', {
    message: `${name} already takes part in migration ${holder}.`,
    fault: 'user',
    state: 'That migration goes on undisturbed.',
    mend: `Wait for it (ums show ${holder}) or cancel it (ums cancel ${holder}).`,
  });
}

function notRunning(name: string, state: string): UmsError {
  return new UmsError('UMS_E_SERVICE_NOT_RUNNING', {
    message: `${name} is ${state}: there is no running state to move.`,
    fault: 'user',
    state: 'Nothing was changed.',
    mend: 'Start it first.',
  });
}

function noCommonVersion(
  context: SagaContext,
  hello: { name: string; protocol: { min: number; max: number } },
): UmsError {
  return new UmsError('UMS_E_PEER_VERSION', {
    message: `${context.systemName} speaks protocol ${PROTOCOL.min} to ${PROTOCOL.max}, ${hello.name} speaks ${hello.protocol.min} to ${hello.protocol.max}.`,
    fault: 'destination',
    state: 'Nothing was changed.',
    mend: 'Upgrade the older of the two agents.',
  });
}

import { setTimeout as sleep } from 'node:timers/promises';
import { z } from 'zod';
import { type CapsuleSeen, capsuleSeen } from '#src/approaches/container-level/outside.ts';
import { SERVICE } from '#src/approaches/container-level/layout.ts';
import type { Finding } from '#src/drivers/contract.ts';
import type { Specification } from '#src/drivers/specification.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import type { SagaContext } from '../context.ts';
import { specificationOf } from '../context.ts';
import type { Row } from '../journal.ts';
import { codeOf, findService, type Found } from '../preflight.ts';
import type { Migration, MigrateOptions } from '../schema.ts';
import type { SourceStep } from '../source/steps.ts';
import type { SourceState } from '../states.ts';
import { InnerAgent } from './inner-agent.ts';
import {
  arrivedRequestSchema,
  arrivedResponseSchema,
  dropResponseSchema,
  type Receiver,
  type ReceiveRequest,
  receiveRequestSchema,
  receiveFindingsSchema,
  receiveResponseSchema,
} from './messages.ts';

/**
 * The source's part of a move from capsule to capsule. The agents within the two capsules move the service by a saga of
 * their own, which alone says where it lives; this one prepares both sides, follows, and cleans up after it.
 */
const LOOK_EVERY_MS = 100;
const PAUSE_MS = 1000;
const CHECK_LIMIT_MS = 60_000;
const RECEIVE_LIMIT_MS = 300_000;

export const APPROACH = 'container-level';

/** Whether this migration is one from capsule to capsule. */
export function isNested(row: Row): boolean {
  return row.data['approach'] === APPROACH;
}

export function capsuleOf(found: Found): CapsuleSeen | undefined {
  return capsuleSeen(found.description.summary.pid);
}

async function theCapsule(context: SagaContext, row: Row): Promise<CapsuleSeen> {
  const found = await findService(context, `${row.engine}:${row.engine_id}`);
  const seen = capsuleOf(found);
  if (seen !== undefined) return seen;
  throw new UmsError('UMS_E_SERVICE_GONE', {
    message: `${row.service} is no running capsule any more.`,
    fault: 'service',
    mend: 'Look at its log; start it again if it is still wanted.',
  });
}

function receiveRequest(id: string, specification: Specification, engine: string, seen: CapsuleSeen): ReceiveRequest {
  const own = new Set([seen.peerPort, seen.pairingPort]);
  return {
    id,
    name: specification.name,
    engine,
    capabilities: [...seen.capabilities],
    ports: specification.ports
      .filter(({ containerPort }) => !own.has(containerPort))
      .map(({ hostPort, containerPort, protocol }) => ({ host: hostPort, inside: containerPort, protocol })),
  };
}

function askedEngine(row: Row): string {
  return row.options.engine ?? row.engine;
}

/** What of the outer container the one at the destination will not have. */
function losses({ name, labels, mounts, env, restartPolicy }: Specification): Finding[] {
  const lost = [
    ...(Object.keys(labels).some((label) => !label.startsWith('ums.') && !label.startsWith('org.opencontainers.'))
      ? ['labels']
      : []),
    ...(mounts.length === 0 ? [] : ['volumes']),
    ...(env.some((entry) => !/^(?:PATH|HOSTNAME|container|TERM|HOME)=/.test(entry)) ? ['environment'] : []),
    ...(restartPolicy.name === 'no' ? [] : ['restart policy']),
  ];
  if (lost.length === 0) return [];
  return [
    {
      severity: 'warning',
      id: 'capsule.loss',
      what: `The capsule ${name} at the destination is a fresh one: ${lost.join(', ')} of the one here are not given to it.`,
      why: 'What the service itself was given of them it keeps; the rest is the engine’s, in its own words.',
      mend: `Start an empty capsule ${name} there as it shall be: it is then used.`,
    },
  ];
}

export interface NestedCheck {
  findings: Finding[];
  blocking: UmsError | undefined;
}

/** Everything that can be known of both sides without touching anything. */
export async function checkNested(
  context: SagaContext,
  found: Found,
  request: { id: string; to: string; options: MigrateOptions },
  signal: AbortSignal,
): Promise<NestedCheck> {
  const { driver, description } = found;
  const seen = capsuleOf(found);
  if (seen === undefined) throw new Error('no capsule');
  const engine = request.options.engine ?? driver.engine;
  const inside = await new InnerAgent(seen.pid).services();
  const service = inside.find(({ name }) => name === SERVICE);
  const findings = [
    ...(service?.state === 'running' ? [] : [empty(description.specification.name, service?.state)]),
    ...(service?.migration == null ? [] : [moving(description.specification.name, service.migration)]),
  ];
  const theirs = await context.peers.request(request.to, {
    method: 'POST',
    path: '/peer/v1/capsules/check',
    body: receiveRequest(request.id, description.specification, engine, seen),
    schema: receiveFindingsSchema,
    timeout_ms: CHECK_LIMIT_MS,
    signal,
  });
  findings.push(...theirs.findings, ...losses(description.specification));
  const first = findings.find(({ severity }) => severity === 'error');
  const blocking =
    first === undefined
      ? undefined
      : new UmsError(codeOf(first), { message: first.what, fault: 'user', mend: first.mend, detail: first.why });
  return { findings, blocking };
}

function empty(name: string, state: string | undefined): Finding {
  return {
    severity: 'error',
    id: 'approach.capsule-empty',
    what: `The capsule ${name} has no service that runs${state === undefined ? '' : ` (it is ${state})`}.`,
    why: 'What moves is the service within it.',
    mend: 'Start it, or look where it has moved: ums systems, in the capsule.',
  };
}

function moving(name: string, migration: string): Finding {
  return {
    severity: 'error',
    id: 'approach.capsule-moving',
    what: `The service in ${name} takes part in migration ${migration} of its capsule’s own agent.`,
    why: 'One migration of a service has to end before another begins.',
    mend: 'Wait for it.',
  };
}

export async function checkingNested(context: SagaContext, row: Row, signal: AbortSignal): Promise<SourceState> {
  const found = await findService(context, `${row.engine}:${row.engine_id}`);
  const { id, destination: to, options } = row;
  const { findings, blocking } = await checkNested(context, found, { id, to, options }, signal);
  for (const finding of findings) context.journal.emit(row.id, { event: 'finding', finding });
  if (blocking !== undefined) throw blocking;
  context.journal.emit(row.id, { event: 'note', text: z.string().parse(row.data['why']) });
  return 'reserving';
}

/** An empty capsule waits at the destination, and the two agents within know each other. */
export async function reservingNested(context: SagaContext, row: Row, signal: AbortSignal): Promise<SourceState> {
  const seen = await theCapsule(context, row);
  const wanted = receiveRequest(row.id, specificationOf(row), askedEngine(row), seen);
  context.journal.merge(row.id, { received: wanted });
  const { system, token } = await context.peers.request(row.destination, {
    method: 'POST',
    path: '/peer/v1/capsules/receive',
    body: wanted,
    schema: receiveResponseSchema,
    timeout_ms: RECEIVE_LIMIT_MS,
    signal,
  });
  const inner = new InnerAgent(seen.pid);
  const paired = (await inner.systems()).some(({ name, status }) => name === system && status === 'reachable');
  if (!paired) await inner.join(token);
  context.journal.merge(row.id, { inner: { to: system, id: null } });
  return 'nested';
}

const innerSchema = z.object({ to: z.string(), id: z.string().nullable() });

/** Options that mean the same to the inner agents. What is kept at the source is the outer container's business. */
function innerOptions({ engine: _engine, approach: _approach, ...rest }: MigrateOptions): Partial<MigrateOptions> {
  return { ...rest, keepSourceStopped: false };
}

/**
 * The inner agents move the service. Nothing here ends that: a failure to see how it stands is tried again until it can
 * be seen, because only the inner saga knows which of the two capsules has the service.
 */
export const nested: SourceStep = {
  async run(context, row, signal) {
    // Finding it costs the start of an engine's command, which would be taken from the service that is being moved.
    const known: Known = { inner: undefined };
    for (;;) {
      signal.throwIfAborted();
      const now = await look(context, row, known, signal);
      if (now === 'arrived') return 'removing';
      if (now?.state === 'done') return keep(context, row, now);
      if (now?.state === 'aborted') return goBack(context, row, now);
      await sleep(now === undefined ? PAUSE_MS : LOOK_EVERY_MS, undefined, { signal });
    }
  },
};

interface Known {
  inner: InnerAgent | undefined;
}

async function look(
  context: SagaContext,
  row: Row,
  known: Known,
  signal: AbortSignal,
): Promise<Migration | 'arrived' | undefined> {
  const { journal, log } = context;
  try {
    const inner = (known.inner ??= new InnerAgent((await theCapsule(context, row)).pid));
    const id = innerSchema.parse(journal.get(row.id).data['inner']).id ?? (await begin(context, row, inner));
    const now = await inner.migration(id);
    await mirror(context, row, now);
    if (journal.get(row.id).cancel_requested) await cancel(context, row, inner, now);
    return now;
  } catch (error) {
    signal.throwIfAborted();
    known.inner = undefined;
    if (neverBegan(journal.get(row.id), error)) return refused(context, row, error);
    if (isGone(error)) {
      // The capsule here has ended, and with it whoever could say: then the other one knows.
      const there = await askReceiver(context, row).catch(() => 'busy' as const);
      if (there === 'occupied') return 'arrived';
      if (there === 'empty') return refused(context, row, error);
    }
    log.warn({ migration: row.id, err: error }, 'how the move in the capsule stands cannot be seen; asked again');
    return undefined;
  }
}

/** The inner agent has said no: then there never was a migration, and the service is where it was. */
function neverBegan(row: Row, error: unknown): error is UmsError {
  const begun = innerSchema.parse(row.data['inner']).id !== null;
  return !begun && error instanceof UmsError && error.code !== 'UMS_E_AGENT_UNREACHABLE';
}

function isGone(error: unknown): error is UmsError {
  return error instanceof UmsError && ['UMS_E_SERVICE_GONE', 'UMS_E_SERVICE_UNKNOWN'].includes(error.code);
}

function refused(context: SagaContext, row: Row, error: UmsError): Migration {
  return { ...context.journal.view(row.id), state: 'aborted', error: error.toReport() };
}

/**
 * Begins it once. If this agent was killed right after it had asked, the inner one knows a migration to that system which
 * began after this one; the receiving capsule is there for nobody else.
 */
async function begin(context: SagaContext, row: Row, inner: InnerAgent): Promise<string> {
  const { to } = innerSchema.parse(row.data['inner']);
  const known = (await inner.migrations()).find(
    ({ role, destination, started_at }) => role === 'source' && destination === to && started_at >= row.started_at,
  );
  const { id } = known ?? (await inner.migrate(SERVICE, to, innerOptions(row.options)));
  context.journal.merge(row.id, { inner: { to, id } });
  return id;
}

/** What the inner migration goes through is told as this one's. */
async function mirror(context: SagaContext, row: Row, now: Migration): Promise<void> {
  const { journal } = context;
  const seen = z.object({ state: z.string() }).safeParse(journal.get(row.id).data['innerSeen']).data?.state;
  if (seen === now.state) return;
  journal.jot(row.id, { innerSeen: { state: now.state } });
  if (now.state === 'holding') await context.traffic.hold(row.service_uid, row.id);
  journal.emit(row.id, { event: 'note', text: `in the capsule: ${now.state}` });
  if (now.in_doubt && now.error !== null) {
    journal.update(row.id, { in_doubt: true });
    const mend = `In the capsule ${row.service}: ums recover ${now.id} explains both choices.`;
    journal.emit(row.id, { event: 'in_doubt', error: { ...now.error, mend } });
  } else if (journal.get(row.id).in_doubt) journal.update(row.id, { in_doubt: false });
}

async function cancel(context: SagaContext, row: Row, inner: InnerAgent, now: Migration): Promise<void> {
  context.journal.update(row.id, { cancel_requested: false });
  try {
    await inner.cancel(now.id);
  } catch (error) {
    // Too late: it goes on, and this one with it.
    if (!(error instanceof UmsError && error.code === 'UMS_E_MIGRATION_STATE')) throw error;
    context.journal.emit(row.id, { event: 'note', text: error.message });
  }
}

function keep(context: SagaContext, row: Row, now: Migration): SourceState {
  const { journal } = context;
  journal.update(row.id, {
    state_bytes: now.state_bytes,
    in_doubt: false,
    ...(now.downtime_ms === null ? {} : { downtime_ms: now.downtime_ms }),
  });
  journal.addWire(row.id, now.bytes_on_wire);
  const path = now.memory?.path ?? 'images';
  journal.merge(row.id, {
    plan: { technique: now.technique, path, why: `${now.technique}, as the agents in the capsules chose.` },
    ...(now.memory === null ? {} : { memory: { ...now.memory } }),
  });
  return 'removing';
}

function goBack(context: SagaContext, row: Row, now: Migration): SourceState {
  const told = now.error ?? new UmsError('UMS_E_CANCELLED', { message: 'It went back.', fault: 'ums' }).toReport();
  context.journal.update(row.id, { in_doubt: false, error: told });
  return 'aborting';
}

/** A Frontman here leads to the capsule there from now on. That the service has moved does not depend on it. */
async function passTrafficOn(context: SagaContext, row: Row): Promise<void> {
  const wanted = receiveRequestSchema.parse(row.data['received']);
  try {
    await context.peers.request(row.destination, {
      method: 'POST',
      path: '/peer/v1/capsules/arrived',
      body: arrivedRequestSchema.parse({ ...wanted, serviceUid: row.service_uid }),
      schema: arrivedResponseSchema,
      timeout_ms: CHECK_LIMIT_MS,
    });
  } catch (error) {
    // A destination that cannot be reached is asked again; one that says no will say no again.
    if (!(error instanceof UmsError) || UNHEARD.includes(error.code)) throw error;
    context.journal.emit(row.id, { event: 'note', text: `A Frontman cannot lead there: ${error.message}` });
  }
  await context.traffic.release(row.service_uid, row.id, { kind: 'peer', peer: row.destination });
}

const UNHEARD: readonly string[] = ['UMS_E_PEER_UNREACHABLE', 'UMS_E_TIMEOUT'];

/** The outer container has nothing left that moved; its volumes are whoever's they were. */
export async function removingNested(context: SagaContext, row: Row): Promise<SourceState> {
  const driver = context.driver(row.engine);
  await passTrafficOn(context, row);
  if (row.options.keepSourceStopped) await driver.discard(row.handle);
  else await driver.remove(row.handle, { volumes: false });
  return 'done';
}

/** The service never left; what was made for it at the destination goes, now or when that can be reached again. */
export async function abortingNested(context: SagaContext, row: Row): Promise<SourceState> {
  await context.traffic.release(row.service_uid, row.id, { kind: 'here' });
  if (row.data['received'] !== undefined && !(await tellReceiver(context, row))) {
    context.journal.update(row.id, { peer_told: false });
  }
  return 'aborted';
}

/** True when the destination has heard that its capsule is not needed. */
export async function tellReceiver(context: SagaContext, row: Row): Promise<boolean> {
  try {
    return (await askReceiver(context, row)) !== 'busy';
  } catch (error) {
    context.log.debug({ migration: row.id, err: error }, 'the destination does not say what became of its capsule');
    return false;
  }
}

/** Says that the capsule there is not needed, and hears whether the service is in it all the same. */
async function askReceiver(context: SagaContext, row: Row): Promise<Receiver> {
  const { capsule } = await context.peers.request(row.destination, {
    method: 'POST',
    path: '/peer/v1/capsules/drop',
    body: receiveRequestSchema.parse(row.data['received']),
    schema: dropResponseSchema,
    timeout_ms: CHECK_LIMIT_MS,
  });
  return capsule;
}

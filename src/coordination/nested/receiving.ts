import { createServer } from 'node:net';
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { launcherOf, OF_SOME } from '#src/approaches/container-level/launch.ts';
import { type CapsuleSeen, capsuleSeen } from '#src/approaches/container-level/outside.ts';
import type { Driver, EngineName, Finding, ServiceSummary } from '#src/drivers/contract.ts';
import { engineSchema } from '#src/drivers/specification.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import type { SagaContext } from '../context.ts';
import { codeOf } from '../preflight.ts';
import { InnerAgent } from './inner-agent.ts';
import type { Receiver, ReceiveRequest } from './messages.ts';

/**
 * The destination's part of a move from capsule to capsule: an empty one must wait here. One of the same name that a
 * person has started is taken; otherwise the engine that is wanted starts one, which is known by the migration's id as the
 * name of its system, so that whatever was interrupted finds it again.
 */
const START_LIMIT_MS = 90_000;
const POLL_MS = 100;

interface Capsule {
  driver: Driver;
  summary: ServiceSummary;
  seen: CapsuleSeen;
}

/** Those that run under one engine: the one that receives is where it was asked for, and each engine's list costs a command. */
async function capsules(context: SagaContext, engine: string): Promise<Capsule[]> {
  const known = knownEngine(engine);
  const here = (await context.engines()).find((each) => each.engine === engine);
  if (known === undefined || here?.available !== true) return [];
  const driver = context.driver(known);
  return (await driver.list()).flatMap((summary) => {
    const seen = summary.state === 'running' ? capsuleSeen(summary.pid) : undefined;
    return seen === undefined ? [] : [{ driver, summary, seen }];
  });
}

/** The one that was made for this migration, or else one of that name under that engine. */
async function receiverOf(context: SagaContext, { id, name, engine }: ReceiveRequest): Promise<Capsule | undefined> {
  const all = await capsules(context, engine);
  return all.find(({ seen }) => seen.system === id) ?? all.find(({ summary }) => summary.name === name);
}

/** One that can receive: it was made for that, or it waits for anybody. */
async function waiting(context: SagaContext, wanted: ReceiveRequest): Promise<Capsule | undefined> {
  const capsule = await receiverOf(context, wanted);
  if (capsule === undefined || capsule.seen.system === wanted.id) return capsule;
  return (await isEmpty(capsule)) ? capsule : undefined;
}

async function holds({ seen }: Capsule): Promise<Receiver> {
  const inner = new InnerAgent(seen.pid);
  // In this order: what arrives between the two questions is seen by the second.
  const busy = (await inner.migrations()).some(({ state }) => state !== 'done' && state !== 'aborted');
  if (busy) return 'busy';
  return (await inner.services()).length > 0 ? 'occupied' : 'empty';
}

async function isEmpty(capsule: Capsule): Promise<boolean> {
  return (await holds(capsule)) === 'empty';
}

function knownEngine(engine: string): EngineName | undefined {
  return engineSchema.safeParse(engine).data;
}

/** What stands in the way of receiving, found without touching anything. */
export async function checkReceiving(context: SagaContext, wanted: ReceiveRequest): Promise<Finding[]> {
  const here = context.systemName;
  const known = knownEngine(wanted.engine);
  const engine = (await context.engines()).find((each) => each.engine === wanted.engine);
  const launcher = launcherOf(wanted.engine);
  if (known === undefined || engine?.available !== true || launcher === undefined) {
    const why = engine?.problem ?? 'Its agent has no driver for it.';
    const mend = engine?.mend ?? 'Choose another with --engine.';
    return [{ severity: 'error', id: 'engine.missing', what: `${here} has no usable ${wanted.engine}.`, why, mend }];
  }
  const capsule = await waiting(context, wanted);
  if (capsule !== undefined) return lacking(capsule, wanted);
  if (await isNameTaken(context.driver(known), wanted.name)) {
    return [
      {
        severity: 'error',
        id: 'name.taken',
        what: `${wanted.engine} on ${here} has a container ${wanted.name} already, which is no empty capsule.`,
        why: 'The capsule that receives the service has the name of the one that it leaves.',
        mend: 'Rename or remove that one.',
      },
    ];
  }
  if (await launcher.hasImage()) return [];
  return [
    {
      severity: 'error',
      id: 'approach.capsule-image',
      what: `${wanted.engine} on ${here} does not have the capsule’s image ${launcher.image}.`,
      why: 'An empty capsule must be started there to receive the service.',
      mend: `ums image build capsule --output capsule.tar, and load it into ${wanted.engine} there; or start an empty capsule ${wanted.name} by hand.`,
    },
  ];
}

/** Of a capsule that a person has started: it may have been granted less than the one that the service is in. */
function lacking({ seen, summary }: Capsule, { capabilities }: ReceiveRequest): Finding[] {
  const lacks = OF_SOME.filter((name) => capabilities.includes(name) && !seen.capabilities.has(name));
  if (lacks.length === 0) return [];
  return [
    {
      severity: 'error',
      id: 'approach.capsule-capabilities',
      what: `The empty capsule ${summary.name} lacks ${lacks.join(', ')}, which the one that has the service has.`,
      why: 'A process that was given a capability cannot be restored without it, nor what it made with it.',
      mend: `Start it anew with ${lacks.map((name) => `--cap-add ${name}`).join(' ')}, or remove it: one is started that has them.`,
    },
  ];
}

async function isNameTaken(driver: Driver, name: string): Promise<boolean> {
  return (await driver.list()).some((summary) => summary.name === name);
}

/** An empty capsule, and a token to pair with it. May be asked again: the capsule is the same one. */
export async function receive(
  context: SagaContext,
  wanted: ReceiveRequest,
): Promise<{ system: string; token: string }> {
  const blocking = (await checkReceiving(context, wanted)).find(({ severity }) => severity === 'error');
  if (blocking !== undefined) {
    const { what: message, mend, why: detail } = blocking;
    throw new UmsError(codeOf(blocking), {
      message,
      fault: 'destination',
      state: 'Nothing was touched.',
      mend,
      detail,
    });
  }
  if ((await waiting(context, wanted)) === undefined) await launch(context, wanted);
  const inner = await answering(context, wanted);
  return { system: await inner.name(), token: await inner.invite() };
}

async function launch(context: SagaContext, wanted: ReceiveRequest): Promise<void> {
  const [peer = 0, pairing = 0] = await freePorts(2);
  const agent = ['--peer-port', String(peer), '--pairing-port', String(pairing)];
  const args = ['--name', wanted.id, '--peer-address', context.peerAddress, ...agent];
  const own = [peer, pairing].map((port) => ({ host: port, inside: port, protocol: 'tcp' }));
  await launcherOf(wanted.engine)?.start({
    name: wanted.name,
    args,
    capabilities: wanted.capabilities,
    ports: [...own, ...wanted.ports],
  });
}

/** Ports that nobody listens on at this moment: the capsule's agent needs them at once. */
async function freePorts(count: number): Promise<number[]> {
  const servers = Array.from({ length: count }, () => createServer().listen(0));
  await Promise.all(servers.map((server) => once(server, 'listening')));
  const ports = servers.map((server) => {
    const address = server.address();
    return typeof address === 'object' && address !== null ? address.port : 0;
  });
  await Promise.all(servers.map((server) => once(server.close(), 'close')));
  return ports;
}

async function answering(context: SagaContext, wanted: ReceiveRequest): Promise<InnerAgent> {
  const limit = Date.now() + START_LIMIT_MS;
  let last: unknown;
  while (Date.now() < limit) {
    try {
      const capsule = await waiting(context, wanted);
      if (capsule !== undefined) {
        const inner = new InnerAgent(capsule.seen.pid);
        await inner.name();
        return inner;
      }
    } catch (error) {
      last = error;
    }
    await sleep(POLL_MS);
  }
  throw new UmsError('UMS_E_TIMEOUT', {
    message: `The capsule ${wanted.name} does not answer on ${context.systemName}.`,
    fault: 'destination',
    mend: `Look at its log there: ${wanted.engine} logs ${wanted.name}`,
    detail: last instanceof Error ? last.message : 'no capsule was seen',
  });
}

/** Removes the capsule that was made for a migration, unless the service is in it: then it is where that lives. */
export async function dropReceiver(context: SagaContext, wanted: ReceiveRequest): Promise<Receiver> {
  const capsule = await receiverOf(context, wanted);
  if (capsule === undefined) return 'empty';
  const held = await holds(capsule);
  if (held !== 'empty' || capsule.seen.system !== wanted.id) return held;
  const { handle } = await capsule.driver.describe(capsule.summary.id);
  await capsule.driver.remove(handle, { volumes: false });
  return 'empty';
}

/** The service has come to its capsule here: whoever passes traffic on to it finds it by its uid. */
export async function arrived(
  context: SagaContext,
  wanted: ReceiveRequest,
  serviceUid: string,
): Promise<Record<string, never>> {
  const capsule = await receiverOf(context, wanted);
  if (capsule === undefined) {
    throw new UmsError('UMS_E_SERVICE_UNKNOWN', {
      message: `There is no capsule ${wanted.name} on ${context.systemName}.`,
      fault: 'destination',
      mend: 'Look at what runs there: ums ls',
    });
  }
  const { driver, summary } = capsule;
  const { handle } = await driver.describe(summary.id);
  context.journal.adoptService(driver.engine, summary.id, serviceUid, handle);
  await context.traffic.setRoute(serviceUid, { kind: 'here' });
  return {};
}

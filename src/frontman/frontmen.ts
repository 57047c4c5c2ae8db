import { randomBytes } from 'node:crypto';
import type { DatabaseSync } from 'node:sqlite';
import type { Duplex } from 'node:stream';
import { toUmsError, UmsError } from '#src/telemetry/errors.ts';
import type { Logger } from '#src/telemetry/log.ts';
import {
  ANSWERS,
  answerOf,
  DEFAULT_LIMITS,
  type FrontmanRequest,
  type FrontmanStatus,
  type Limits,
  type LocalAddress,
  type OpenPeerStream,
  peerStreamHeaderSchema,
  Refusal,
  type Route,
  type Target,
  toRefusal,
} from './contract.ts';
import { Counters } from './counters.ts';
import type { Front } from './front.ts';
import { Gate } from './gate.ts';
import { HttpFront } from './http-front.ts';
import { join } from './pass.ts';
import { farewell, pause, tune } from './streams.ts';
import { type FrontmanRecord, FrontmanTable } from './table.ts';
import { TcpFront } from './tcp-front.ts';

export interface FrontmenParts {
  database: DatabaseSync;
  openPeerStream: OpenPeerStream;
  localAddress: LocalAddress;
  log: Logger;
  limits?: Partial<Limits>;
}

const RELISTEN_MS = 1000;
const OPEN_HERE: Route = { target: { kind: 'here' }, state: 'open', holder: null };

/** All Frontmen of one agent, the gates of the services they stand for, and the far side of other agents' Frontmen. */
export class Frontmen {
  readonly counters: Counters;
  readonly #parts: FrontmenParts;
  readonly #limits: Limits;
  readonly #table: FrontmanTable;
  readonly #gates = new Map<string, Gate>();
  readonly #fronts = new Map<string, Front>();
  readonly #tunnels = new Set<Duplex>();
  readonly #closing = new AbortController();

  constructor(parts: FrontmenParts) {
    this.#parts = parts;
    this.#limits = { ...DEFAULT_LIMITS, ...parts.limits };
    this.#table = new FrontmanTable(parts.database);
    this.counters = new Counters(parts.log);
    for (const [serviceUid, route] of this.#table.routes())
      this.#gates.set(serviceUid, this.#newGate(serviceUid, route));
  }

  /** Listens again on everything the table holds. What was held stays held. */
  async start(): Promise<void> {
    for (const record of this.#table.frontmen()) {
      const front = this.#newFront(record);
      this.#fronts.set(record.id, front);
      try {
        await front.listen();
      } catch (thrown) {
        // The agent must come up with everything else it looks after; the address may only be late.
        this.#parts.log.error(
          { frontman: record.id, error: toUmsError(thrown).toReport() },
          'frontman does not listen',
        );
        void this.#listenLater(front);
      }
    }
  }

  async add(request: FrontmanRequest, serviceUid: string): Promise<FrontmanStatus> {
    const record: FrontmanRecord = { ...request, id: `f-${randomBytes(6).toString('hex')}`, serviceUid };
    for (const { record: other } of this.#fronts.values()) {
      if (other.listen.address === record.listen.address && other.listen.port === record.listen.port) {
        throw new UmsError('UMS_E_PORT_TAKEN', {
          message: `The Frontman ${other.id} of ${other.service} already listens on ${other.listen.address}:${other.listen.port}.`,
          fault: 'user',
          state: 'No Frontman was made.',
          mend: `Choose another port, or remove that one: ums frontman rm ${other.id}`,
        });
      }
    }
    const front = this.#newFront(record);
    await front.listen();
    try {
      this.#table.insert(record);
    } catch (thrown) {
      await front.close();
      throw thrown;
    }
    this.#fronts.set(record.id, front);
    this.#parts.log.info({ frontman: record.id, service: record.service, listen: record.listen }, 'frontman made');
    return this.#status(front);
  }

  async remove(id: string): Promise<void> {
    const front = this.#fronts.get(id);
    if (front === undefined) {
      throw new UmsError('UMS_E_FRONTMAN', {
        message: `There is no Frontman ${id} on this system.`,
        fault: 'user',
        state: 'Nothing was changed.',
        mend: 'List them with: ums frontman ls',
      });
    }
    this.#table.remove(id);
    this.#fronts.delete(id);
    await front.close();
  }

  list(): FrontmanStatus[] {
    return [...this.#fronts.values()].map((front) => this.#status(front));
  }

  /**
   * Makes the service's traffic wait, durably. Resolves when no byte of an old connection can reach the service any
   * more. Calling it again with the same holder is harmless.
   */
  async hold(serviceUid: string, holder: string): Promise<void> {
    const gate = this.#gate(serviceUid);
    const { route } = gate;
    this.#refuseOtherHolder(serviceUid, route, holder);
    if (route.state === 'open') this.#table.setRoute(serviceUid, { ...route, state: 'holding', holder });
    await gate.hold(holder);
  }

  /** Sets where the service is and lets the traffic that waits go there. Calling it again is harmless. */
  release(serviceUid: string, holder: string, target: Target): void {
    const gate = this.#gate(serviceUid);
    this.#refuseOtherHolder(serviceUid, gate.route, holder);
    this.#table.setRoute(serviceUid, { target, state: 'open', holder: null });
    gate.release(target);
  }

  /** Changes where the service is, and leaves it held if it is. */
  setRoute(serviceUid: string, target: Target): void {
    const gate = this.#gate(serviceUid);
    this.#table.setRoute(serviceUid, { ...gate.route, target });
    gate.setTarget(target);
  }

  routeOf(serviceUid: string): Route | undefined {
    return this.#gates.get(serviceUid)?.route;
  }

  /** Drops what is known about a service that is no more. Its Frontmen, if any, look for it here again. */
  forget(serviceUid: string): void {
    this.#table.forgetRoute(serviceUid);
    const gate = this.#gates.get(serviceUid);
    this.#gates.delete(serviceUid);
    gate?.close();
  }

  async close(): Promise<void> {
    this.#closing.abort();
    for (const gate of this.#gates.values()) gate.close();
    for (const tunnel of this.#tunnels) tunnel.destroy();
    await Promise.all([...this.#fronts.values()].map((front) => front.close()));
  }

  /** The far side: a stream from another agent that wants to reach a service here, or one that has moved on from here. */
  acceptPeerStream(peer: string, header: unknown, socket: Duplex): void {
    this.#tunnels.add(socket);
    socket.once('close', () => this.#tunnels.delete(socket));
    socket.on('error', () => socket.destroy());
    void this.#passTunnel(peer, header, socket);
  }

  async #passTunnel(peer: string, rawHeader: unknown, socket: Duplex): Promise<void> {
    const gone = new AbortController();
    const onClose = (): void => gone.abort();
    socket.once('close', onClose);
    tune(socket);
    try {
      const parsed = peerStreamHeaderSchema.safeParse(rawHeader);
      if (!parsed.success) throw new Refusal('malformed', `a stream's header makes no sense: ${parsed.error.message}`);
      if (this.#tunnels.size > this.#limits.maxConnections) throw new Refusal('full', 'too many streams from peers');
      const { service, port, holdLimit_ms, drain_ms } = parsed.data;
      const deadline = performance.now() + holdLimit_ms;
      const hops = Math.min(parsed.data.hops, this.#limits.hops);
      const ask = { port, deadline, hops, gone: gone.signal, cameFrom: peer };
      const gate = await this.#knownGate(service);
      await gate.open(drain_ms === undefined ? ask : { ...ask, drain_ms }, (lease) => {
        socket.write(Uint8Array.of(ANSWERS.connected));
        join(socket, lease, this.#limits, drain_ms);
      });
      this.counters.add('tunnelled');
    } catch (thrown) {
      const refusal = toRefusal(thrown);
      this.counters.refused(refusal, { peer });
      if (socket.destroyed) return;
      socket.write(Uint8Array.of(answerOf(refusal.kind)));
      farewell(socket, this.#limits.linger_ms);
    } finally {
      socket.off('close', onClose);
    }
  }

  /** A stream for a service that nobody here knows must not leave a gate behind, however often it is tried. */
  async #knownGate(serviceUid: string): Promise<Gate> {
    const known = this.#gates.get(serviceUid);
    if (known !== undefined) return known;
    const address = await this.#parts.localAddress(serviceUid);
    if (address === undefined) throw new Refusal('absent', 'the service is not on this system');
    return this.#gate(serviceUid);
  }

  async #listenLater(front: Front): Promise<void> {
    for (;;) {
      await pause(RELISTEN_MS, this.#closing.signal);
      if (this.#closing.signal.aborted || this.#fronts.get(front.record.id) !== front) return;
      try {
        await front.listen();
        this.#parts.log.info({ frontman: front.record.id }, 'frontman listens again');
        return;
      } catch (thrown) {
        this.#parts.log.debug(
          { frontman: front.record.id, error: toUmsError(thrown).toReport() },
          'still not listening',
        );
      }
    }
  }

  #refuseOtherHolder(serviceUid: string, route: Route, holder: string): void {
    if (route.holder === null || route.holder === holder) return;
    throw new UmsError('UMS_E_SERVICE_BUSY', {
      message: `The traffic of service ${serviceUid} is held by ${route.holder}.`,
      fault: 'user',
      state: 'Its traffic goes on waiting.',
      mend: `Wait for that migration to end, or look at it: ums show ${route.holder}`,
    });
  }

  #gate(serviceUid: string): Gate {
    const known = this.#gates.get(serviceUid);
    if (known !== undefined) return known;
    const gate = this.#newGate(serviceUid, OPEN_HERE);
    this.#gates.set(serviceUid, gate);
    return gate;
  }

  #newGate(serviceUid: string, route: Route): Gate {
    const { openPeerStream, localAddress } = this.#parts;
    return new Gate({ serviceUid, route, openPeerStream, localAddress, limits: this.#limits });
  }

  #newFront(record: FrontmanRecord): Front {
    const gate = (): Gate => this.#gate(record.serviceUid);
    const parts = { record, gate, limits: this.#limits, counters: this.counters };
    return record.mode === 'http' ? new HttpFront(parts) : new TcpFront(parts);
  }

  #status(front: Front): FrontmanStatus {
    const { serviceUid, ...record } = front.record;
    const { state, target } = this.#gate(serviceUid).route;
    return {
      ...record,
      status: state,
      target: target.kind === 'here' ? 'here' : target.peer,
      connections: front.connections,
      waiting: front.waiting,
    };
  }
}

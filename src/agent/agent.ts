import { chmod, mkdir, rm } from 'node:fs/promises';
import { release } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import type { FastifyInstance } from 'fastify';
import { probeCriu } from '#src/checkpoint/probe.ts';
import { fingerprintHost } from '#src/checkpoint/fingerprint.ts';
import { Breakpoints } from '#src/coordination/breakpoints.ts';
import { type SagaContext } from '#src/coordination/context.ts';
import { Coordinator } from '#src/coordination/coordinator.ts';
import { Journal } from '#src/coordination/journal.ts';
import { type Hello, PROTOCOL } from '#src/coordination/messages.ts';
import { sweepPageCaches } from '#src/coordination/page-caches.ts';
import { findService } from '#src/coordination/preflight.ts';
import type { Driver, DriverOptions, EngineFingerprint, EngineName } from '#src/drivers/contract.ts';
import { createDrivers } from '#src/drivers/registry.ts';
import { Frontmen } from '#src/frontman/frontmen.ts';
import { createPeerHttpServer, DEFAULT_LIMITS, PeerClient, PeerServer } from '#src/transfer/channel/index.ts';
import type { Logger } from '#src/telemetry/log.ts';
import { toUmsError, UmsError } from '#src/telemetry/errors.ts';
import { Invitations } from '#src/trust/invitations.ts';
import { join as joinInvitation } from '#src/trust/join.ts';
import { Trust } from '#src/trust/trust.ts';
import type { Frontman, PairedSystem, System } from './api.ts';
import type { z } from 'zod';
import type { frontmanRequestSchema } from './api.ts';
import type { AgentConfig } from './config.ts';
import { createHttp } from './http.ts';
import { registerLocalApi } from './local-api.ts';
import { registerPeerApi, registerStreams } from './peer-api.ts';
import { prepareStaging, sweepStaging } from './staging.ts';
import { VERSION } from './version.ts';

/** Fingerprints change slowly and cost child processes; a check that is seconds old is as good. */
const FINGERPRINT_LIFE_MS = 10_000;
const ROTATION_PERIOD_MS = 3_600_000;
const ADDRESS_LIFE_MS = 2000;
const ADDRESSES_MAX = 4096;

/** One system's agent: the paper's Coordinator and Migration Interface in one daemon. Wires the rooms together. */
export class Agent {
  readonly context: SagaContext;
  readonly coordinator: Coordinator;
  readonly frontmen: Frontmen;
  readonly #config: AgentConfig;
  readonly #log: Logger;
  readonly #trust: Trust;
  readonly #invitations: Invitations;
  readonly #peers: PeerClient;
  readonly #peerServer: PeerServer;
  readonly #local: FastifyInstance;
  readonly #peerHttp: FastifyInstance;
  readonly #database: DatabaseSync;
  readonly #drivers: Map<EngineName, Driver>;
  readonly #startedAt = Date.now();
  readonly #addresses = new Map<string, { at: number; value: Promise<string | undefined> }>();
  #rotation: NodeJS.Timeout | undefined;
  #enginesCache: { at: number; value: Promise<EngineFingerprint[]> } | undefined;

  static async open(config: AgentConfig, log: Logger): Promise<Agent> {
    await mkdir(config.stateDir, { recursive: true, mode: 0o700 });
    await mkdir(join(config.runDir, 'api'), { recursive: true, mode: 0o755 });
    const database = new DatabaseSync(join(config.stateDir, 'ums.db'));
    const stagingRoot = await prepareStaging(config.runDir, config.stagingDir);
    const trust = await Trust.open({
      directory: join(config.stateDir, 'trust'),
      db: database,
      name: config.name,
      address: config.peerAddress,
      port: config.peerPort,
      log,
      ...(config.leafLife_ms === undefined ? {} : { leafLife_ms: config.leafLife_ms }),
    });
    return new Agent(config, log, database, trust, stagingRoot);
  }

  private constructor(config: AgentConfig, log: Logger, database: DatabaseSync, trust: Trust, stagingRoot: string) {
    this.#config = config;
    this.#log = log;
    this.#database = database;
    this.#trust = trust;
    this.#drivers = createDrivers(driverOptions(config));
    this.#peers = new PeerClient({ trust, log, idle_ms: config.peerTimeout_ms });
    const listenAddress = config.listenAddress ?? config.peerAddress;
    this.#invitations = new Invitations({ trust, host: listenAddress, port: config.pairingPort, log });
    const journal = new Journal(database);
    this.frontmen = new Frontmen({
      database,
      openPeerStream: (peer, header, options) => this.#peers.openDuplex(peer, header, options),
      localAddress: (uid) => this.#serviceAddress(uid),
      log,
    });
    this.context = {
      systemName: config.name,
      peerAddress: config.peerAddress,
      journal,
      driver: (engine) => this.#driver(engine),
      engines: () => this.#engines(),
      peers: this.#peers,
      traffic: {
        hold: (uid, holder) => this.frontmen.hold(uid, holder),
        release: (uid, holder, target) => Promise.resolve(this.frontmen.release(uid, holder, target)),
        setRoute: (uid, target) => {
          if (target.kind === 'here') this.#arrived(uid);
          this.frontmen.setRoute(uid, target);
        },
      },
      fingerprint: () => fingerprintHost({ diskDir: config.stateDir, stagingDir: stagingRoot }),
      stagingRoot,
      pageCaches: { root: join(config.stateDir, 'page-caches'), limit_bytes: config.pageCache_bytes },
      breakpoints: new Breakpoints(config.faultInjection),
      log,
    };
    this.coordinator = new Coordinator(this.context);
    this.#local = createHttp(log, {}, 'UMS_E_USAGE');
    const limits = { ...DEFAULT_LIMITS, idle_ms: config.peerTimeout_ms };
    this.#peerHttp = createHttp(
      log,
      { serverFactory: (handler) => createPeerHttpServer(handler, limits) },
      'UMS_E_PEER_MESSAGE',
    );
    this.#peerServer = new PeerServer({
      trust,
      host: listenAddress,
      port: config.peerPort,
      httpServer: this.#peerHttp.server,
      log,
      limits,
    });
  }

  /** Recovers first, then opens the doors: no request may meet a half-known journal. */
  async start(): Promise<void> {
    registerLocalApi(this.#local, this);
    registerPeerApi(this.#peerHttp, this);
    registerStreams(this.#peerServer, this);
    await this.#peerHttp.ready();
    await this.frontmen.start();
    await this.coordinator.recover();
    await sweepStaging(this.context.stagingRoot, this.context.journal);
    await sweepPageCaches(this.context.pageCaches.root);
    await this.#peerServer.listen();
    const socket = join(this.#config.runDir, 'api', 'agent.sock');
    await rm(socket, { force: true });
    await this.#local.listen({ path: socket });
    await chmod(socket, 0o600);
    this.#rotation = setInterval(() => void this.#rotateDue(), ROTATION_PERIOD_MS);
    this.#rotation.unref();
    this.#log.info({ name: this.#config.name, version: VERSION, socket }, 'agent ready');
  }

  async stop(): Promise<void> {
    clearInterval(this.#rotation);
    await this.#local.close();
    await this.coordinator.stop();
    await this.#invitations.close();
    await this.#peerServer.close();
    await this.frontmen.close();
    await this.#peerHttp.close();
    this.#database.close();
  }

  #driver(engine: EngineName): Driver {
    const driver = this.#drivers.get(engine);
    if (driver !== undefined) return driver;
    throw new UmsError('UMS_E_ENGINE_MISSING', {
      message: `This agent has no driver for ${engine}.`,
      fault: 'user',
      mend: 'Run the same version of ums on both systems.',
    });
  }

  #engines(): Promise<EngineFingerprint[]> {
    if (this.#enginesCache === undefined || Date.now() - this.#enginesCache.at > FINGERPRINT_LIFE_MS) {
      const value = Promise.all([...this.#drivers.values()].map((driver) => driver.fingerprint()));
      this.#enginesCache = { at: Date.now(), value };
      // A failure is not remembered.
      value.catch(() => {
        this.#enginesCache = undefined;
      });
    }
    return this.#enginesCache.value;
  }

  /**
   * Where the Frontman reaches a service on this host. Asked for every connection, so an answer is kept for a moment; a
   * container that was started anew has another address, to which the Frontman's own retries then lead.
   */
  #serviceAddress(uid: string): Promise<string | undefined> {
    const known = this.#addresses.get(uid);
    if (known !== undefined && Date.now() - known.at < ADDRESS_LIFE_MS) return known.value;
    if (this.#addresses.size >= ADDRESSES_MAX) this.#addresses.clear();
    const value = this.#lookUpAddress(uid);
    this.#addresses.set(uid, { at: Date.now(), value });
    value.then(
      (address) => {
        if (address === undefined) this.#addresses.delete(uid);
      },
      () => this.#addresses.delete(uid),
    );
    return value;
  }

  async #lookUpAddress(uid: string): Promise<string | undefined> {
    const service = this.context.journal.serviceByUid(uid);
    if (service === undefined) return undefined;
    const driver = [...this.#drivers.values()].find((candidate) => candidate.engine === service.engine);
    return await driver?.address(service.handle);
  }

  /** A service that has just arrived: its address is looked up before the first client asks. */
  #arrived(uid: string): void {
    this.#addresses.delete(uid);
    this.#serviceAddress(uid).catch((error: unknown) => {
      this.#log.warn({ service: uid, err: error }, 'the address of a service that arrived is not known yet');
    });
  }

  async describeSystem(): Promise<System> {
    const criu = await probeCriu({ stateDir: this.#config.stateDir });
    return {
      name: this.#config.name,
      version: VERSION,
      protocol: PROTOCOL,
      peer_address: this.#config.peerAddress,
      peer_port: this.#config.peerPort,
      kernel: release(),
      criu: { version: criu.version, works: criu.works, problem: criu.problem },
      engines: await this.#engines(),
      pid: process.pid,
      started_at: this.#startedAt,
    };
  }

  async hello(): Promise<Hello> {
    return {
      name: this.#config.name,
      version: VERSION,
      protocol: PROTOCOL,
      fingerprint: await this.context.fingerprint(),
      engines: await this.#engines(),
    };
  }

  describePeers(): Promise<PairedSystem[]> {
    return Promise.all(this.#trust.peers().map((peer) => this.#describePeer(peer.name)));
  }

  async #describePeer(name: string): Promise<PairedSystem> {
    const peer = this.#trust.peer(name);
    if (peer === undefined) throw unknownSystem(name);
    const base = {
      name: peer.name,
      address: peer.address,
      port: peer.port,
      certificate_expires_at: peer.certificate_expires_at,
      paired_at: peer.paired_at,
    };
    try {
      return { ...base, status: 'reachable', rtt_ms: await this.#peers.ping(name), problem: null };
    } catch (error) {
      const failure = toUmsError(error);
      const status =
        failure.code === 'UMS_E_PEER_REVOKED' || failure.code === 'UMS_E_PEER_UNPAIRED'
          ? 'revoked'
          : failure.code === 'UMS_E_PEER_EXPIRED'
            ? 'expired'
            : 'unreachable';
      return { ...base, status, rtt_ms: null, problem: failure.message };
    }
  }

  invite(ttl_s: number): Promise<{ token: string; expires_at: number }> {
    return this.#invitations.invite({ ttl_s });
  }

  async join(token: string): Promise<PairedSystem> {
    const peer = await joinInvitation(this.#trust, token);
    return this.#describePeer(peer.name);
  }

  async rotate(name: string): Promise<PairedSystem> {
    await this.#peers.rotate(name);
    return this.#describePeer(name);
  }

  revoke(name: string): Promise<void> {
    if (this.#trust.peer(name) === undefined) throw unknownSystem(name);
    this.#trust.revoke(name);
    return Promise.resolve();
  }

  async #rotateDue(): Promise<void> {
    for (const name of this.#trust.dueForRotation()) {
      try {
        await this.#peers.rotate(name);
      } catch (error) {
        this.#log.warn({ peer: name, err: error }, 'certificate could not be renewed; tried again in an hour');
      }
    }
    if (await this.#trust.renewServerLeaf()) this.#peerServer.renewCertificate();
  }

  listFrontmen(): Frontman[] {
    return this.frontmen.list();
  }

  async addFrontman(wanted: z.infer<typeof frontmanRequestSchema>): Promise<Frontman> {
    const { journal } = this.context;
    const { driver, description } = await findService(this.context, wanted.service);
    const uid = journal.knowService(driver.engine, description.summary.id, description.handle);
    const frontman = await this.frontmen.add({ ...wanted, service: description.specification.name }, uid);
    // It runs here, so an earlier one of the same name that moved away no longer says where it is.
    const route = this.frontmen.routeOf(uid);
    if (description.summary.state === 'running' && route?.state === 'open' && route.target.kind === 'peer') {
      this.frontmen.setRoute(uid, { kind: 'here' });
    }
    return frontman;
  }
}

function driverOptions({ stateDir, runDir, bundleOutput, bundleErrors }: AgentConfig): DriverOptions {
  if (bundleOutput === undefined) return { stateDir, runDir };
  return { stateDir, runDir, output: { out: bundleOutput, err: bundleErrors ?? bundleOutput } };
}

function unknownSystem(name: string): UmsError {
  return new UmsError('UMS_E_SYSTEM_UNKNOWN', {
    message: `No system named ${name} is paired with this one.`,
    fault: 'user',
    state: 'Nothing was changed.',
    mend: 'See the paired systems with: ums systems',
  });
}

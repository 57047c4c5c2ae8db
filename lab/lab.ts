import { existsSync, mkdirSync, readdirSync, realpathSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { UmsError } from '#src/telemetry/errors.ts';
import { agentExists, killAgent, pairAgents, type StartAgentOptions, startAgent, stopAgent } from './agents.ts';
import { cgroup2Root, killCgroup, removeCgroup } from './cgroup.ts';
import { removeContexts, writeContexts } from './contexts.ts';
import { CONTAINERD } from './containerd.ts';
import { startDaemon } from './daemon.ts';
import { DOCKER } from './docker.ts';
import { Host } from './host.ts';
import { buildKubernetes, kubernetesCache } from './kubernetes/binaries.ts';
import { startKubernetes } from './kubernetes/cluster.ts';
import { startSwarm } from './swarm.ts';
import { withLock } from './lock.ts';
import {
  cacheDir,
  cgroupName,
  checkHostNames,
  checkLabName,
  hostMac,
  type LabPaths,
  labPaths,
  OUTSIDE,
  OUTSIDE_MAC,
} from './names.ts';
import { applyCuts, type Cut, cutRules, plugIn, unplug } from './network.ts';
import { raisePipeLimit, restorePipeLimit } from './pipes.ts';
import { installPrerequisites } from './prerequisites.ts';
import { buildRootFileSystem, lowerDirs } from './rootfs.ts';
import { type Say, saySilently } from './say.ts';
import { type LabState, type Link, PERFECT_LINK, readState, writeState } from './state.ts';
import { hostStatus, type LabStatus } from './status.ts';
import { removeTree } from './trees.ts';
import { applyLink, startWire, type Wire, wireKeeper } from './wiring.ts';
import { type LinkRequest, measureLink, type Measurement, parseRate } from './links.ts';

export const DEFAULT_HOSTS = ['alpha', 'beta'] as const;
const LOCK_LIMIT_S = 600;
/** Marks a directory as the lab's own, to be removed with it. */
const MARKER = '.made-by-ums-lab';
const CHECKOUT = resolve(import.meta.dirname, '..');

export interface UpOptions {
  /** Names of hosts that there shall be, in addition to those there are. Default: alpha and beta for a new lab. */
  hosts?: readonly string[];
  /** False leaves the agents to the caller. */
  agents?: boolean;
  faultInjection?: boolean;
  /** Engines that run as daemons, to be started on every host. */
  engines?: readonly DaemonEngine[];
}

export const DAEMON_ENGINES = ['docker', 'swarm', 'containerd', 'kubernetes'] as const;
export type DaemonEngine = (typeof DAEMON_ENGINES)[number];
const START: Record<DaemonEngine, (host: Host) => Promise<void>> = {
  docker: (host) => startDaemon(host, DOCKER),
  containerd: (host) => startDaemon(host, CONTAINERD),
  kubernetes: startKubernetes,
  swarm: startSwarm,
};

/**
 * A lab: test hosts on one machine and the wire between them. Methods that change it take its lock, so that two commands
 * cannot disturb each other; whatever they set is remembered and set again when a host comes back.
 */
export class Lab {
  readonly name: string;
  readonly paths: LabPaths;
  readonly cgroup: string;
  readonly #say: Say;

  private constructor(name: string, say: Say) {
    this.name = checkLabName(name);
    this.paths = labPaths(name);
    this.cgroup = join(cgroup2Root(), cgroupName(name));
    this.#say = say;
  }

  /** The lab of that name (default UMS_LAB or "ums"), up or not. */
  static open(name: string = process.env['UMS_LAB'] ?? 'ums', say: Say = saySilently): Lab {
    return new Lab(name, say);
  }

  get isUp(): boolean {
    return this.#state() !== undefined && this.wirePid !== undefined;
  }

  /** The process that keeps the wire's network namespace. */
  get wirePid(): number | undefined {
    return wireKeeper(join(this.cgroup, 'wire'));
  }

  get hosts(): Host[] {
    const state = this.#stateOrThrow();
    return state.hosts.map((host) => this.#makeHost(state, host));
  }

  host(name: string): Host {
    const found = this.hosts.find((host) => host.name === name);
    if (found !== undefined) return found;
    throw new UmsError('UMS_E_USAGE', {
      message: `The lab has no host ${name}`,
      fault: 'user',
      mend: `It has ${this.hosts.map((host) => host.name).join(', ')}. More: ./ums lab up ${name}`,
    });
  }

  /**
   * The command line that runs a program on a host, or "outside": in the lab's network at 10.77.0.254, with the machine's
   * own files, as clients of a service would run.
   */
  command(
    place: string,
    program: string,
    args: readonly string[],
    options: { env?: Record<string, string> } = {},
  ): [string, string[]] {
    if (place !== OUTSIDE) return this.host(place).command(program, args, options);
    const script = 'echo 0 >"$1/cgroup.procs"; shift; exec nsenter "$@"';
    const env = Object.entries(options.env ?? {}).map(([name, value]) => `${name}=${value}`);
    const group = join(this.cgroup, 'wire');
    return [
      '/bin/sh',
      ['-ec', script, 'sh', group, `--net=/proc/${this.#wireOrThrow()}/ns/net`, '--', 'env', ...env, program, ...args],
    ];
  }

  async up(options: UpOptions = {}): Promise<Host[]> {
    checkHostNames(options.hosts ?? []);
    await installPrerequisites(this.#say);
    const root = await buildRootFileSystem(this.#say);
    if (options.engines?.includes('kubernetes') === true) await buildKubernetes(this.#say);
    await this.#locked(async () => {
      this.#makeDirectory();
      const before = this.#state();
      if (before !== undefined && before.root.base + before.root.work !== root.base + root.work) {
        this.#say('The lab keeps the root file system it was made with; for the newer one: ./ums lab down, then up');
      }
      const state = before ?? this.#newState(root);
      // Tools of the machine's side may be renewed at any time; hosts keep their disks' lower layers.
      state.root.tools = root.tools;
      addHosts(state, options.hosts ?? (before === undefined ? DEFAULT_HOSTS : []));
      writeState(this.paths.state, state);
      raisePipeLimit(this.paths.base);
      await startWire(this.#wire(state));
      for (const host of this.hosts) if (!host.running) await this.#bootHost(host);
      await this.#applyNetwork();
    });
    // One after the other: a dockerd that starts first keeps a containerd of its own, with other paths.
    for (const engine of DAEMON_ENGINES.filter((each) => options.engines?.includes(each) === true)) {
      const running = this.hosts.filter((host) => host.running);
      await Promise.all(running.map((host) => START[engine](host)));
    }
    if (options.agents !== false && agentExists())
      await this.startAgents({ faultInjection: options.faultInjection === true });
    return this.hosts;
  }

  /** Starts and pairs the agents of all running hosts. */
  async startAgents(options: StartAgentOptions = {}): Promise<void> {
    const hosts = this.hosts.filter((host) => host.running);
    await Promise.all(hosts.map((host) => startAgent(host, options)));
    for (const [index, inviter] of hosts.entries()) {
      for (const joiner of hosts.slice(index + 1)) await pairAgents(inviter, joiner);
    }
  }

  /** Ends the agents that run and starts all of them with these options. */
  async restartAgents(options: StartAgentOptions = {}): Promise<void> {
    for (const host of this.hosts) await this.stopAgent(host.name);
    await this.startAgents(options);
  }

  async startAgent(name: string, options: StartAgentOptions = {}): Promise<void> {
    await startAgent(this.host(name), options);
  }

  async killAgent(name: string): Promise<void> {
    await killAgent(this.host(name));
  }

  async stopAgent(name: string): Promise<void> {
    await stopAgent(this.host(name));
  }

  /** A power cut: the cable goes dead and every process ends. The disk stays. */
  async killHost(name: string): Promise<void> {
    const host = this.host(name);
    await this.#locked(async () => {
      const wire = this.wirePid;
      if (wire !== undefined) await unplug(wire, name);
      await host.kill();
    });
  }

  /** Boots a host again on its disk, killing it first if it runs. */
  async restartHost(name: string): Promise<Host> {
    await this.killHost(name);
    await this.#locked(async () => {
      await this.#bootHost(this.host(name));
      await this.#applyNetwork();
    });
    return this.host(name);
  }

  /** Sets the parts of the link that are given and leaves the others as they are. */
  async setLink(request: LinkRequest): Promise<Link> {
    const state = this.#stateOrThrow();
    const link: Link = {
      rate_bps: request.rate === undefined ? state.link.rate_bps : parseRate(request.rate),
      delay_ms: request.delay_ms ?? state.link.delay_ms,
      loss_percent: request.loss_percent ?? state.link.loss_percent,
    };
    await this.#locked(async () => {
      writeState(this.paths.state, { ...this.#stateOrThrow(), link });
      await this.#applyNetwork();
    });
    return link;
  }

  /** Sets the link and measures what came of it between the first two running hosts. */
  async link(request: LinkRequest = {}): Promise<Measurement> {
    const link = await this.setLink(request);
    const [from, to] = this.hosts.filter((host) => host.running);
    if (from !== undefined && to !== undefined) return measureLink(from, to, link);
    throw new UmsError('UMS_E_LAB', { message: 'A link needs two running hosts', fault: 'user', mend: './ums lab up' });
  }

  /** Nothing passes from a to b any more, nor back unless `oneWay`. */
  async partition(a: string, b: string, options: { oneWay?: boolean } = {}): Promise<void> {
    for (const place of [a, b]) if (place !== OUTSIDE) this.host(place);
    await this.#locked(async () => {
      const state = this.#stateOrThrow();
      const added: Cut[] = [{ from: a, to: b }, ...(options.oneWay === true ? [] : [{ from: b, to: a }])];
      const kept = state.cuts.filter((cut) => !added.some((other) => other.from === cut.from && other.to === cut.to));
      writeState(this.paths.state, { ...state, cuts: [...kept, ...added] });
      await this.#applyNetwork();
    });
  }

  /** Ends all partitions. */
  async heal(): Promise<void> {
    await this.#locked(async () => {
      writeState(this.paths.state, { ...this.#stateOrThrow(), cuts: [] });
      await this.#applyNetwork();
    });
  }

  /** Removes everything, whatever state it is in. */
  async down(): Promise<void> {
    await this.#locked(async () => {
      await killCgroup(this.cgroup);
      await removeCgroup(this.cgroup);
      removeContexts(this.name, this.paths, this.#hostNamesOnDisk());
      await this.#removeDisks();
      restorePipeLimit(this.paths.base);
    });
  }

  /** Only what the lab made itself: UMS_LAB_DIR and UMS_LAB may together name any directory. */
  async #removeDisks(): Promise<void> {
    if (!existsSync(this.paths.root)) return;
    if (existsSync(join(this.paths.root, MARKER))) return removeTree(this.paths.root);
    throw new UmsError('UMS_E_LAB', {
      message: `${this.paths.root} was not made by the lab`,
      fault: 'user',
      state: 'Its processes and network are gone; the directory was left alone.',
      mend: 'Check UMS_LAB_DIR and UMS_LAB. If it is the rest of an old lab, remove it by hand.',
    });
  }

  #makeDirectory(): void {
    if (existsSync(join(this.paths.root, MARKER))) return;
    if (existsSync(this.paths.root) && readdirSync(this.paths.root).length > 0) {
      throw new UmsError('UMS_E_LAB', {
        message: `${this.paths.root} is not empty and was not made by the lab`,
        fault: 'user',
        mend: 'Choose another UMS_LAB_DIR or UMS_LAB.',
      });
    }
    mkdirSync(this.paths.root, { recursive: true });
    writeFileSync(join(this.paths.root, MARKER), 'Made by `ums lab up`; removed by `ums lab down`.\n');
  }

  #hostNamesOnDisk(): string[] {
    return existsSync(this.paths.root) ? readdirSync(this.paths.root).filter((name) => !name.startsWith('.')) : [];
  }

  async #locked<T>(work: () => Promise<T>): Promise<T> {
    return withLock(this.paths.lock, LOCK_LIMIT_S, work);
  }

  #state(): LabState | undefined {
    return readState(this.paths.state);
  }

  #stateOrThrow(): LabState {
    const state = this.#state();
    if (state !== undefined) return state;
    throw new UmsError('UMS_E_LAB', { message: 'The lab is not up', fault: 'user', mend: 'Start it: ./ums lab up' });
  }

  #newState(root: LabState['root']): LabState {
    const created_at = Date.now();
    return {
      version: 1,
      name: this.name,
      created_at,
      root,
      node: process.execPath,
      hosts: [],
      link: PERFECT_LINK,
      cuts: [],
    };
  }

  #makeHost(state: LabState, host: { name: string; number: number }): Host {
    return new Host({
      ...host,
      directory: join(this.paths.root, host.name),
      cgroup: join(this.cgroup, host.name),
      enter: join(state.root.tools, 'enter'),
      boot: {
        lower: lowerDirs(state.root),
        app: CHECKOUT,
        modules: realpathSync(join(CHECKOUT, 'node_modules')),
        node: state.node,
        kubernetes: kubernetesCache(),
        compiled: join(cacheDir(), 'compile'),
      },
    });
  }

  async #bootHost(host: Host): Promise<void> {
    const pid = await host.boot();
    await plugIn(this.#wireOrThrow(), { name: host.name, number: host.number, pid });
    // A packet socket's offload header cannot describe a batch inside a tunnel: the host shall cut those up itself. A lab
    // that was made by an earlier version has no ethtool (127) and goes without.
    const tunnels = ['tx-udp_tnl-segmentation', 'off', 'tx-udp_tnl-csum-segmentation', 'off'];
    await host.exec('ethtool', ['-K', 'eth0', ...tunnels], { okExitCodes: [0, 127] });
    const running = this.hosts.filter((other) => other.running);
    for (const other of running) other.writeFile('/etc/hosts', hostsFile(this.hosts));
  }

  #wire(state: LabState): Wire {
    return { cgroup: join(this.cgroup, 'wire'), tools: state.root.tools, log: join(this.paths.wire, 'wire.log') };
  }

  #wireOrThrow(): number {
    const pid = this.wirePid;
    if (pid !== undefined) return pid;
    throw new UmsError('UMS_E_LAB', {
      message: 'The lab has lost its wire',
      fault: 'user',
      mend: 'Run ./ums lab up again.',
    });
  }

  /** Sets rate, delay, loss and partitions as the state says, on whatever is plugged in. */
  async #applyNetwork(): Promise<void> {
    const state = this.#stateOrThrow();
    const wire = this.#wireOrThrow();
    const plugged = this.hosts.filter((host) => host.running);
    const macOf = (place: string): string => (place === OUTSIDE ? OUTSIDE_MAC : hostMac(this.host(place).number));
    await applyCuts(wire, cutRules(state.cuts, macOf, [OUTSIDE, ...plugged.map((host) => host.name)]));
    await applyLink(
      this.#wire(state),
      wire,
      plugged.flatMap((host) => (host.pid === undefined ? [] : [{ host, pid: host.pid }])),
      state.link,
    );
    const left = writeContexts(this.name, this.paths, this.hosts);
    for (const name of left) this.#say(`The context ${name} leads elsewhere and was left alone`);
  }

  /** What is there, for people and programs. */
  status(): LabStatus {
    const state = this.#state();
    const hosts = state === undefined ? [] : this.hosts;
    return {
      name: this.name,
      up: this.isUp,
      directory: this.paths.root,
      config: this.paths.config,
      link: state?.link ?? PERFECT_LINK,
      cuts: state?.cuts ?? [],
      hosts: hosts.map(hostStatus),
    };
  }
}

function addHosts(state: LabState, names: readonly string[]): void {
  for (const name of names) {
    if (state.hosts.some((host) => host.name === name)) continue;
    const number = Math.max(0, ...state.hosts.map((host) => host.number)) + 1;
    state.hosts.push({ name, number });
  }
}

function hostsFile(hosts: readonly Host[]): string {
  const lines = hosts.map((host) => `${host.address} ${host.name}`);
  return `${['127.0.0.1 localhost', '::1 localhost ip6-localhost', ...lines].join('\n')}\n`;
}

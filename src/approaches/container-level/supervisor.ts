import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { constants } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import { createRuncDriver } from '#src/drivers/runc/index.ts';
import { bundleHandle } from '#src/drivers/runc/schema.ts';
import { initPid, RUNC_ROOT } from '#src/drivers/oci/runtime.ts';
import { poll } from '#src/drivers/oci/cgroup.ts';
import type { Driver } from '#src/drivers/contract.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import type { AgentProcess } from './agent-process.ts';
import { exitStatusOf, type InitEvent } from './init-channel.ts';
import { BUNDLE, OUTPUT, SERVICE } from './layout.ts';
import { isKnownToRunc, nestedState, recordedPid, stopSignal } from './nested.ts';

/**
 * Makes a capsule look like its service: the capsule ends when the service ends, with its status, and hands signals on to
 * it. What a migration does to the service is none of that: one that has been taken away leaves the capsule empty, waiting
 * to receive.
 */
const ASK_EVERY_MS = 200;
const DRAIN_LIMIT_MS = 3000;

export interface SupervisorOptions {
  agent: AgentProcess | undefined;
  stateDir: string;
  runDir: string;
  /** Whether a migration of this capsule's agent has not ended; asked again when the agent does not answer. */
  migrating: () => Promise<boolean>;
  say: (text: string) => void;
}

export class Supervisor {
  readonly #options: SupervisorOptions;
  readonly #driver: Driver;
  readonly #ended = Promise.withResolvers<number>();
  /** How processes ended that might turn out to have been the service. */
  readonly #statuses = new Map<number, number>();
  #looking: Promise<void> = Promise.resolve();
  /** The capsule ends: nothing that happens now changes how. */
  #over = false;

  constructor(options: SupervisorOptions) {
    this.#options = options;
    const { stateDir, runDir } = options;
    this.#driver = createRuncDriver({ stateDir, runDir, output: OUTPUT });
  }

  /** The status with which the capsule ends. */
  get ended(): Promise<number> {
    return this.#ended.promise;
  }

  /** Starts what lies in the bundle, unless it runs or a migration has its hands on it. */
  async startService(): Promise<void> {
    if (this.#options.agent !== undefined) await this.#untilNoMigration();
    if ((await nestedState()) !== 'stopped') return;
    await this.#driver.start(bundleHandle(SERVICE, BUNDLE));
  }

  handle(event: InitEvent): void {
    if (this.#over) return;
    if (event.kind === 'signal') return void this.#signal(event.name).catch((error: unknown) => this.#complain(error));
    this.#statuses.set(event.pid, event.status);
    if (this.#statuses.size > 4096) this.#statuses.delete(this.#statuses.keys().next().value ?? -1);
    // One look after the other: the process that a look has not heard of may be the one that counts.
    this.#looking = this.#looking.then(() => this.#look()).catch((error: unknown) => this.#complain(error));
  }

  #complain(error: unknown): void {
    this.#options.say(error instanceof Error ? error.message : String(error));
  }

  /** A process has ended. If it was the service's first, and it was not a migration that ended it, the capsule ends too. */
  async #look(): Promise<void> {
    if (this.#over) return;
    const pid = recordedPid();
    const status = pid === undefined ? undefined : this.#statuses.get(pid);
    if (pid === undefined || status === undefined || (await initPid(RUNC_ROOT, SERVICE)) === pid) return;
    await this.#untilNoMigration();
    if (recordedPid() !== pid || !isKnownToRunc()) return;
    this.#end(exitStatusOf(status));
  }

  #end(status: number): void {
    this.#over = true;
    this.#ended.resolve(status);
  }

  async #untilNoMigration(): Promise<void> {
    // For as long as it takes: a service whose move is in doubt must neither be started nor be given up.
    while (!this.#over && (await this.#options.migrating().catch(() => true))) await sleep(ASK_EVERY_MS);
  }

  async #signal(name: string): Promise<void> {
    const pid = await initPid(RUNC_ROOT, SERVICE);
    if (pid === undefined) {
      if (name === 'TERM' || name === 'INT' || name === 'QUIT') this.#end(0);
      return;
    }
    const wanted = name === 'TERM' ? stopSignal() : name;
    process.kill(pid, signalNumber(wanted));
  }

  /** Ends what belongs to the capsule, when the service has ended; what it said last is still passed on. */
  async stop(): Promise<void> {
    const drained = poll(() => Promise.resolve(loggers().length === 0), DRAIN_LIMIT_MS, 5);
    await Promise.all([this.#options.agent?.stop(), drained]);
  }
}

function signalNumber(name: string): number {
  if (/^\d+$/.test(name)) return Number(name);
  const realTime = /^RTMIN\+(\d+)$/.exec(name)?.[1];
  // The C library keeps the first two of the kernel's real-time signals for itself.
  if (realTime !== undefined) return 34 + Number(realTime);
  const known = Object.entries(constants.signals).find(([each]) => each === `SIG${name}`)?.[1];
  if (known !== undefined) return known;
  throw new UmsError('UMS_E_USAGE', { message: `There is no signal ${name}`, fault: 'user' });
}

/** Processes that carry the service's output to the capsule's: piped.sh has left them behind. */
function loggers(): string[] {
  return readdirSync('/proc').filter((name) => {
    if (!/^\d+$/.test(name) || !existsSync(`/proc/${name}/stat`)) return false;
    try {
      return /^\d+ \(cat\) [^ZX] /.test(readFileSync(`/proc/${name}/stat`, 'utf8'));
    } catch {
      // It ended while it was looked at.
      return false;
    }
  });
}

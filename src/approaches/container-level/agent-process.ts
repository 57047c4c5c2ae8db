import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';

/**
 * The agent of a capsule, kept running. It may end and begin anew at any time: what it had begun stands in its journal,
 * and the service does not depend on it.
 */
const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 30_000;
/** An engine waits ten seconds for its whole container, and an agent may be ended at any time. */
const STOP_LIMIT_MS = 2000;

export class AgentProcess {
  readonly #command: readonly string[];
  #child: ChildProcess | undefined;
  #pause_ms = FIRST_PAUSE_MS;
  #timer: NodeJS.Timeout | undefined;
  #stopping = false;

  constructor(command: readonly string[]) {
    this.#command = command;
  }

  start(): void {
    const [program = '', ...args] = this.#command;
    const began = Date.now();
    // Its log is the capsule's, on standard error.
    const child = spawn(program, args, { stdio: ['ignore', 2, 2] });
    this.#child = child;
    const again = (): void => {
      if (this.#stopping || this.#child !== child) return;
      this.#child = undefined;
      if (Date.now() - began > LONGEST_PAUSE_MS) this.#pause_ms = FIRST_PAUSE_MS;
      this.#timer = setTimeout(() => this.start(), this.#pause_ms);
      this.#pause_ms = Math.min(this.#pause_ms * 2, LONGEST_PAUSE_MS);
    };
    child.once('error', again);
    child.once('exit', again);
  }

  async stop(): Promise<void> {
    this.#stopping = true;
    clearTimeout(this.#timer);
    const child = this.#child;
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const ended = once(child, 'exit');
    child.kill('SIGTERM');
    const hard = setTimeout(() => child.kill('SIGKILL'), STOP_LIMIT_MS);
    await ended;
    clearTimeout(hard);
  }
}

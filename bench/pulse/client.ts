import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { spawn } from 'node:child_process';
import type { Host } from '#lab/host.ts';
import type { Lab } from '#lab/lab.ts';
import { OUTSIDE } from '#lab/names.ts';
import { gapsOf, lengthOf, longestGap, parsePulseLog } from '../measure/pulse-log.ts';
import { FRONTMAN_PORT } from './service.ts';

export interface ClientView {
  /** The longest time without an answer that touches the move. */
  downtime_ms: number;
  answers: number;
  reconnects: number;
  /** Answers that were older than one it already had: must be none, or there were two copies. */
  backwards: number;
}

/** A client outside that asks the service for its tick, as often as it is told to, through the Frontman. */
export class PulseClient {
  readonly #child: ReturnType<typeof spawn>;
  readonly #directory: string;
  readonly #ended: Promise<unknown>;

  private constructor(child: ReturnType<typeof spawn>, directory: string) {
    this.#child = child;
    this.#directory = directory;
    this.#ended = once(child, 'exit');
  }

  static start(lab: Lab, host: Host, every_us: number): PulseClient {
    const directory = mkdtempSync(join(tmpdir(), 'ums-bench-'));
    const args = ['ask', host.address, String(FRONTMAN_PORT), String(every_us), join(directory, 'log')];
    // The lab's own build of it: outside has the machine's files.
    const [program, words] = lab.command(OUTSIDE, host.path('/usr/local/bin/pulse'), args);
    return new PulseClient(spawn(program, words, { stdio: 'ignore' }), directory);
  }

  /** Ends it and says what it saw around the move. */
  async end(moved: { from: number; to: number }): Promise<ClientView> {
    this.#child.kill('SIGTERM');
    await this.#ended;
    const log = parsePulseLog(readFileSync(join(this.#directory, 'log'), 'utf8'));
    const gap = longestGap(gapsOf(log), moved.from, moved.to);
    return {
      downtime_ms: gap === undefined ? 0 : lengthOf(gap),
      answers: log.answers,
      reconnects: log.reconnects,
      backwards: log.backwards,
    };
  }

  close(): void {
    this.#child.kill('SIGKILL');
    rmSync(this.#directory, { recursive: true, force: true });
  }
}

import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { UmsError } from '#src/telemetry/errors.ts';

const PROGRAM = join(import.meta.dirname, 'written.pl');
/** Long, because nothing but a frozen or dying machine makes it slow; then nothing can be had from it any more. */
const ANSWER_LIMIT_MS = 60_000;
const ANSWER_BYTES_MAX = 512 * 1024 * 1024;
const WORDS_TOLD_MAX = 2048;

export type HelperCommand = 'P' | 'A' | 'R' | 'F' | 'D' | 'S';

export interface HelperAnswer {
  readonly status: 'done' | 'vanished' | 'failed' | 'replaced';
  readonly payload: Buffer;
}
const STATUSES = ['done', 'vanished', 'failed', 'replaced'] as const;

interface Pending {
  readonly resolve: (answer: HelperAnswer) => void;
  readonly reject: (error: Error) => void;
  readonly timer: NodeJS.Timeout;
}

/** One process of written.pl: questions are answered in their order. After a failure it is dead, and all it held is free. */
export class WrittenHelper {
  readonly #child: ChildProcessWithoutNullStreams;
  readonly #pending: Pending[] = [];
  readonly #ended: Promise<unknown>;
  #parts: Buffer[] = [];
  #bytes = 0;
  #words = '';
  #failure: UmsError | undefined;

  constructor() {
    this.#child = spawn('perl', [PROGRAM], { stdio: 'pipe' });
    this.#ended = once(this.#child, 'close').catch(() => undefined);
    this.#child.on('error', (error) => this.#fail(error.message));
    this.#child.on('close', (code, signal) => this.#fail(`it ended (${signal ?? code})`));
    this.#child.stdin.on('error', () => undefined);
    this.#child.stdout.on('data', (part: Buffer) => this.#receive(part));
    this.#child.stderr.on('data', (part: Buffer) => {
      this.#words = (this.#words + part.toString('utf8')).slice(-WORDS_TOLD_MAX);
    });
  }

  get failed(): boolean {
    return this.#failure !== undefined;
  }

  ask(command: HelperCommand, pid = 0, words: readonly number[] = []): Promise<HelperAnswer> {
    if (this.#failure !== undefined) return Promise.reject(this.#failure);
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => this.#fail(`it does not answer (${command})`), ANSWER_LIMIT_MS);
      timer.unref();
      this.#pending.push({ resolve, reject, timer });
      this.#child.stdin.write(frame(command, pid, words));
    });
  }

  /** Resolves when the process is gone, and with it every descriptor it held. */
  async end(): Promise<void> {
    this.#fail('it was ended');
    await this.#ended;
  }

  #receive(part: Buffer): void {
    this.#parts.push(part);
    this.#bytes += part.length;
    while (this.#bytes >= 4) {
      const wanted = this.#peekLength();
      if (wanted < 1 || wanted > ANSWER_BYTES_MAX) return this.#fail(`it sent a frame of ${wanted} bytes`);
      if (this.#bytes < 4 + wanted) return;
      const all = this.#parts.length === 1 ? this.#parts[0] : Buffer.concat(this.#parts, this.#bytes);
      if (all === undefined) return;
      this.#parts = [all.subarray(4 + wanted)];
      this.#bytes -= 4 + wanted;
      this.#answer(all.subarray(4, 4 + wanted));
    }
  }

  #peekLength(): number {
    const [first] = this.#parts;
    if (first !== undefined && first.length >= 4) return first.readUInt32LE(0);
    this.#parts = [Buffer.concat(this.#parts, this.#bytes)];
    return this.#parts[0]?.readUInt32LE(0) ?? 0;
  }

  #answer(content: Buffer): void {
    const pending = this.#pending.shift();
    const status = STATUSES[content[0] ?? STATUSES.length];
    if (pending === undefined || status === undefined) return this.#fail('it sent an answer that nobody waits for');
    clearTimeout(pending.timer);
    pending.resolve({ status, payload: content.subarray(1) });
  }

  #fail(reason: string): void {
    if (this.#failure !== undefined) return;
    this.#failure = new UmsError('UMS_E_CHILD', {
      message: `The helper that tracks written memory failed: ${reason}.`,
      fault: 'ums',
      ...(this.#words === '' ? {} : { detail: this.#words }),
    });
    // Its input ends, so it ends by itself; a thread that is just being borrowed is given back first.
    this.#child.stdin.destroy();
    this.#child.kill('SIGTERM');
    for (const pending of this.#pending.splice(0)) {
      clearTimeout(pending.timer);
      pending.reject(this.#failure);
    }
  }
}

function frame(command: HelperCommand, pid: number, words: readonly number[]): Buffer {
  const bytes = Buffer.allocUnsafe(9 + 8 * words.length);
  bytes.writeUInt32LE(bytes.length - 4, 0);
  bytes.write(command, 4, 'latin1');
  bytes.writeUInt32LE(pid, 5);
  for (const [index, word] of words.entries()) bytes.writeBigUInt64LE(BigInt(word), 9 + 8 * index);
  return bytes;
}

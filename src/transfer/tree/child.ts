import { type ChildProcess, spawn } from 'node:child_process';
import { programsEnvironment } from '#src/telemetry/programs.ts';
import type { Readable, Writable } from 'node:stream';

/** Lines of a child's standard error: the first ones are kept word for word, all are counted and judged. */
const KEPT_LINES = 20;
const LINE_LIMIT_CHARACTERS = 16 * 1024;

export interface ChildEnd {
  code: number | undefined;
  signal: NodeJS.Signals | undefined;
  /** Lines that `isHarmless` did not know, the first ones. */
  complaints: string[];
}

/**
 * A program that bytes are streamed into and out of. It is killed when the signal is aborted; `end` always settles once
 * the program is gone.
 */
export class StreamingChild {
  readonly output: Readable;
  readonly #child: ChildProcess;
  readonly #input: Writable;
  readonly #ended: Promise<ChildEnd>;
  readonly #complaints: string[] = [];
  #line = '';

  constructor(
    command: string,
    args: readonly string[],
    options: { signal: AbortSignal | undefined; isHarmless: (line: string) => boolean },
  ) {
    const child = spawn(command, args, {
      stdio: ['pipe', 'pipe', 'pipe'],
      env: { ...programsEnvironment(), LC_ALL: 'C', TZ: 'UTC' },
    });
    this.#child = child;
    this.#input = child.stdin;
    this.output = child.stdout;
    // A program that stops reading breaks the pipe; what it has to say about that is its exit code and its complaints.
    this.#input.on('error', () => this.#input.destroy());
    child.stderr.setEncoding('utf8');
    child.stderr.on('data', (text: string) => this.#hear(text, options.isHarmless));
    const abort = (): void => this.kill();
    options.signal?.addEventListener('abort', abort, { once: true });
    this.#ended = new Promise((resolve) => {
      let failure: string | undefined;
      child.on('error', (error) => {
        failure = error.message;
        // A program that could not be started closes nothing by itself.
        if (child.pid === undefined) resolve({ code: undefined, signal: undefined, complaints: [error.message] });
      });
      child.on('close', (code, signal) => {
        options.signal?.removeEventListener('abort', abort);
        if (this.#line !== '') this.#hear('\n', options.isHarmless);
        const complaints = failure === undefined ? this.#complaints : [failure, ...this.#complaints];
        resolve({ code: code ?? undefined, signal: signal ?? undefined, complaints });
      });
    });
    if (options.signal?.aborted === true) this.kill();
  }

  /** Resolves when the bytes are on their way; false when the program no longer reads. */
  write(bytes: Uint8Array): Promise<boolean> {
    if (this.#input.destroyed || this.#input.writableEnded) return Promise.resolve(false);
    return new Promise((resolve) => {
      this.#input.write(bytes, (error) => resolve(error === null || error === undefined));
    });
  }

  closeInput(): void {
    if (!this.#input.destroyed) this.#input.end();
  }

  /** Waits for the program's end. Nobody may still be reading `output` then, or it must have ended. */
  end(): Promise<ChildEnd> {
    return this.#ended;
  }

  kill(): void {
    this.#child.kill('SIGKILL');
  }

  #hear(text: string, isHarmless: (line: string) => boolean): void {
    const lines = (this.#line + text).split('\n');
    this.#line = (lines.pop() ?? '').slice(0, LINE_LIMIT_CHARACTERS);
    for (const line of lines) {
      if (line !== '' && this.#complaints.length < KEPT_LINES && !isHarmless(line)) this.#complaints.push(line);
    }
  }
}

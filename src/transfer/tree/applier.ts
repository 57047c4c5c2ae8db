import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import type { StreamingChild } from './child.ts';
import { judge } from './tar.ts';

/** What apply.pl is, given as an argument because its file cannot be seen where it runs. */
export const APPLY_PROGRAM = readFileSync(fileURLToPath(new URL('./apply.pl', import.meta.url)), 'utf8');

export type Command = 'd' | 'x' | 'f' | 'b' | 'c' | 'm' | 'k';

/** Speaks to apply.pl (see there), which does what it is told in order and ends at the first thing that fails. */
export class Applier {
  readonly #child: StreamingChild;
  #asked = 0;
  #answered = 0;
  #wake: (() => void) | undefined;

  constructor(child: StreamingChild) {
    this.#child = child;
    child.output.on('data', (bytes: Buffer) => {
      this.#answered += bytes.length;
      this.#wake?.();
    });
  }

  /** Resolves when the command is on its way; whether it was done, `done` tells. */
  async send(command: Command, bytes: Uint8Array = NOTHING): Promise<void> {
    const head = Buffer.alloc(5);
    head.write(command, 0, 'latin1');
    head.writeUInt32LE(bytes.length, 1);
    const written = await this.#child.write(bytes.length === 0 ? head : Buffer.concat([head, bytes]));
    if (!written) await this.#fail();
  }

  /** Waits until everything sent so far has been done. */
  async done(): Promise<void> {
    this.#asked += 1;
    await this.send('k');
    const ended = this.#child.end();
    while (this.#answered < this.#asked) {
      const answer = new Promise<'answer'>((resolve) => {
        this.#wake = () => resolve('answer');
      });
      if ((await Promise.race([answer, ended.then(() => 'end')])) === 'end') await this.#fail();
    }
  }

  kill(): void {
    this.#child.kill();
  }

  /** Lets it end by itself, as there is nothing more to do. */
  async close(): Promise<void> {
    this.#child.closeInput();
    await this.#child.end();
  }

  async #fail(): Promise<never> {
    const end = await this.#child.end();
    throw judge(end, 'writing the files of the service', 'destination', []) ?? new Error('apply.pl ended early');
  }
}

const NOTHING = Buffer.alloc(0);

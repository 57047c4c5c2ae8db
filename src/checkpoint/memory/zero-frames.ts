import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { createInterface } from 'node:readline';

const PROGRAM = join(import.meta.dirname, 'soft-dirty.pl');
const ANSWER_LIMIT_MS = 30_000;
const HUGE_PAGES = 512;

/** The page frames of zeros, as long as its helper lives. */
export class ZeroFrames {
  readonly #frame: number;
  readonly #huge: number;
  readonly #end: () => Promise<void>;

  private constructor(frame: number, huge: number, end: () => Promise<void>) {
    this.#frame = frame;
    this.#huge = huge;
    this.#end = end;
  }

  /** Or why soft-dirty bits cannot be used. */
  static async open(): Promise<ZeroFrames | string> {
    const child = spawn('perl', [PROGRAM], { stdio: ['pipe', 'pipe', 'ignore'] });
    const closed = once(child, 'close').catch(() => undefined);
    child.stdin.on('error', () => undefined);
    const end = async (): Promise<void> => {
      child.stdin.destroy();
      child.kill('SIGTERM');
      await closed;
    };
    const limit = setTimeout(() => child.kill('SIGKILL'), ANSWER_LIMIT_MS);
    let answer = 'no perl cannot be run';
    for await (const line of createInterface({ input: child.stdout })) {
      answer = line;
      break;
    }
    clearTimeout(limit);
    const [, frame, huge] = /^ok (\d+) (\d+)$/.exec(answer) ?? [];
    if (frame !== undefined && huge !== undefined) return new ZeroFrames(Number(frame), Number(huge), end);
    await end();
    return answer.replace(/^no /, '').slice(0, 200);
  }

  has(frame: number): boolean {
    return frame === this.#frame || (this.#huge !== 0 && frame >= this.#huge && frame < this.#huge + HUGE_PAGES);
  }

  async end(): Promise<void> {
    await this.#end();
  }
}

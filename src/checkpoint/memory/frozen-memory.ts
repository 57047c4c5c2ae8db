import { readFile } from 'node:fs/promises';
import { normaliseRanges, PAGE_BYTES, type PageRange } from '#src/transfer/pages/model.ts';
import { presentPages } from './pagemap.ts';
import { WrittenHelper } from './written-helper.ts';
import { parseFindings } from './written-regions.ts';

/**
 * Looks at frozen processes from a process of its own: to walk through gigabytes of page tables takes tens of milliseconds,
 * in which this one has other things to do. To be opened before the freeze.
 */
export class FrozenMemory {
  readonly #helper: WrittenHelper | undefined;

  private constructor(helper: WrittenHelper | undefined) {
    this.#helper = helper;
  }

  static async open(): Promise<FrozenMemory> {
    const helper = new WrittenHelper();
    const works = await helper.ask('P').then(
      ({ payload }) => payload.length === 0,
      () => false,
    );
    if (!works) await helper.end();
    return new FrozenMemory(works ? helper : undefined);
  }

  /** Pages of these ranges that hold something. */
  async present(pid: number, ranges: readonly PageRange[]): Promise<PageRange[]> {
    const spans = ranges.flatMap(({ first, count }) => {
      const bounds = [first * PAGE_BYTES, (first + count) * PAGE_BYTES];
      return [...bounds, 1, ...bounds];
    });
    const answer = await this.#helper?.ask('F', pid, spans).catch(() => undefined);
    if (answer?.status !== 'done') return await presentPages(pid, ranges);
    const { written, others } = parseFindings(answer.payload);
    return normaliseRanges([...written, ...others]);
  }

  /** /proc/PID/smaps. Nobody waits for it as much as for what the processor could do instead. */
  async smaps(pid: number): Promise<string> {
    const answer = await this.#helper?.ask('S', pid).catch(() => undefined);
    if (answer?.status === 'done') return answer.payload.toString('latin1');
    return await readFile(`/proc/${pid}/smaps`, 'latin1');
  }

  async close(): Promise<void> {
    await this.#helper?.end();
  }
}

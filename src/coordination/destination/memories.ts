import type { SagaContext } from '../context.ts';
import type { Row } from '../journal.ts';
import { planOf } from '../plan.ts';
import { ArrivingMemory } from './arriving-memory.ts';

/** The memories that are on their way here, by migration; each is opened when it is first asked for. */
export class Memories {
  readonly #context: SagaContext;
  readonly #open = new Map<string, Promise<ArrivingMemory>>();

  constructor(context: SagaContext) {
    this.#context = context;
  }

  /** Undefined for a migration whose memory comes as CRIU's images. */
  async of(row: Row): Promise<ArrivingMemory | undefined> {
    if (planOf(row).path === 'images') return undefined;
    const known = this.#open.get(row.id);
    if (known !== undefined) return known;
    const opened = ArrivingMemory.open(this.#context, row);
    this.#open.set(row.id, opened);
    opened.catch(() => this.#open.delete(row.id));
    return opened;
  }

  /** Ends the pager and the connections; what they left in files is the caller's to delete. */
  async end(row: Row): Promise<void> {
    const memory = await this.of(row);
    this.#open.delete(row.id);
    await memory?.close();
  }

  /** The same for memory that will never be whole: `end` ends the processes that wait for it. */
  async abandon(row: Row, end: () => Promise<void>): Promise<void> {
    const memory = await this.of(row);
    // Whoever asks meanwhile finds this one, which is being abandoned, and opens no other.
    await (memory === undefined ? end() : memory.abandon(end));
    this.#open.delete(row.id);
  }

  /** The agent goes down. */
  async leave(): Promise<void> {
    for (const memory of this.#open.values()) await (await memory).leave();
  }
}

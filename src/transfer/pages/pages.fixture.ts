import { existsSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type Duplex, duplexPair } from 'node:stream';
import { PAGE_BYTES, type PageRange, type PageReader, type SpaceName } from './model.ts';
import { PageReceiver } from './page-receiver.ts';
import { PageSender, type SenderOptions } from './sender.ts';
import { PageStore, type StoreOptions } from './store.ts';

/** Memory of a process, as a test has it: pages that are not there cannot be read. */
export class TestMemory implements PageReader {
  readonly pages = new Map<number, Buffer>();
  reads = 0;

  set(page: number, content: Buffer): void {
    this.pages.set(page, content);
  }

  read(first: number, count: number, target: Buffer): number {
    this.reads += 1;
    for (let at = 0; at < count; at += 1) {
      const page = this.pages.get(first + at);
      if (page === undefined) return at;
      page.copy(target, at * PAGE_BYTES);
    }
    return count;
  }

  ranges(): PageRange[] {
    return [...this.pages.keys()].map((first) => ({ first, count: 1 }));
  }
}

/** Content that is different for each seed, and the same each time. 0 is zeros. */
export function pageOf(seed: number, compressible = false): Buffer {
  const page = Buffer.alloc(PAGE_BYTES);
  if (seed === 0) return page;
  let state = Math.imul(seed, 0x9e3779b1) >>> 0 || 1;
  for (let at = 0; at < PAGE_BYTES; at += 4) {
    if (!compressible || at % 256 === 0) {
      state ^= state << 13;
      state ^= state >>> 17;
      state ^= state << 5;
    }
    page.writeUInt32LE(state >>> 0, at);
  }
  return page;
}

interface Ends {
  near: Duplex;
  far: Duplex;
}
/** Where stores belong: other file systems have no room for the addresses of a stack. */
export const MEMORY = existsSync('/dev/shm') ? '/dev/shm' : tmpdir();

export type Wire = (index: number) => Ends | Promise<Ends>;

export interface Bench {
  readonly dir: string;
  readonly store: PageStore;
  readonly receiver: PageReceiver;
  readonly sender: PageSender;
  /** Streams at the receiver's end, the newest last. */
  readonly far: Duplex[];
  close(): Promise<void>;
}

const plain: Wire = () => {
  const [near, far] = duplexPair();
  return { near, far };
};

export interface BenchOptions extends Partial<Omit<SenderOptions, 'open'>> {
  readonly wire?: Wire;
  readonly store?: StoreOptions;
}

/** A sender and a receiver with a wire between them. */
export async function openBench(options: BenchOptions = {}): Promise<Bench> {
  const { wire = plain, store: storeOptions = {}, ...rest } = options;
  const dir = await mkdtemp(join(MEMORY, 'ums-pages-'));
  const store = await PageStore.open(join(dir, 'store'), storeOptions);
  const receiver = PageReceiver.open(store);
  const far: Duplex[] = [];
  const close = async (): Promise<void> => {
    await receiver.close();
    store.close();
    await rm(dir, { recursive: true, force: true });
  };
  try {
    const sender = await PageSender.start({
      connections: 2,
      compression: 'auto',
      reconnect_ms: 2000,
      ...rest,
      open: async (index) => {
        const ends = await wire(index);
        far.push(ends.far);
        void receiver.attach(index, ends.far);
        return ends.near;
      },
    });
    return {
      dir,
      store,
      receiver,
      sender,
      far,
      close: async () => {
        await sender.close();
        await close();
      },
    };
  } catch (error) {
    await close();
    throw error;
  }
}

/** The pages of `memory` that the store has otherwise, or not as final. */
export function differences(store: PageStore, name: SpaceName, memory: TestMemory): string[] {
  const wrong: string[] = [];
  const got = Buffer.alloc(PAGE_BYTES);
  for (const [page, content] of memory.pages) {
    store.read(name, page, got);
    if (store.state(name, page) !== 'final') wrong.push(`${page} is ${store.state(name, page)}`);
    if (!got.equals(content)) wrong.push(`${page} has other content`);
  }
  return wrong;
}

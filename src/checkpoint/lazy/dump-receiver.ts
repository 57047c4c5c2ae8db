import type { Duplex } from 'node:stream';
import { PAGE_BYTES, type PageRange, PAGES_MAX, type SpaceName } from '#src/transfer/pages/model.ts';
import { COMMAND, type Header, headerLayout, PE_PARENT, PE_PRESENT, protocolError } from './protocol.ts';

/**
 * The receiving end of `criu dump --page-server` and `criu pre-dump --page-server`: for where memory cannot be read beside
 * CRIU. Pages of a process keep their numbers; pages of shared memory are numbered within it and called by their pagemap.
 */
export interface DumpSink {
  /** Pages of this space follow. Answers whether an earlier dump holds pages of it, which CRIU may then leave out. */
  open(space: SpaceName): boolean | Promise<boolean>;
  /** Content of pages from `first` on; the buffer is used again as soon as this resolves. */
  pages(space: SpaceName, first: number, content: Buffer, flags: number): void | Promise<void>;
  /** Pages of which no content comes: they are in the parent, or lazy. */
  without(space: SpaceName, range: PageRange, flags: number): void | Promise<void>;
}

/** Content is handed on in pieces of at most this size, and no more than one is held. */
const PIECE_BYTES = 1024 * 1024;
const TYPE_BITS = 8n;
const TYPE_PROCESS = 1n;
const TYPE_SHARED = 2n;
const ID_MAX = 2n ** 40n;

/** Takes a whole dump. Resolves when CRIU has said that it was all, and has been told that it arrived. */
export async function receiveDump(stream: Duplex, version: string | undefined, sink: DumpSink): Promise<void> {
  const layout = headerLayout(version);
  const source = new ExactReader(stream);
  const head = Buffer.alloc(layout.bytes);
  const piece = Buffer.allocUnsafe(PIECE_BYTES);
  for (;;) {
    await source.fill(head);
    const header = layout.read(head, 0);
    switch (header.command) {
      case COMMAND.open2:
        await answer(stream, Buffer.from([(await sink.open(spaceOf(header))) ? 1 : 0]));
        break;
      case COMMAND.open:
        await sink.open(spaceOf(header));
        break;
      case COMMAND.parent:
        await answer(stream, int32((await sink.open(spaceOf(header))) ? 1 : 0));
        break;
      case COMMAND.add:
      case COMMAND.addFlags:
      case COMMAND.hole:
        await takePages(source, sink, header, piece);
        break;
      case COMMAND.close:
      case COMMAND.forceClose:
        await answer(stream, int32(0));
        return;
      default:
        throw protocolError(`command ${header.command} is unknown`);
    }
  }
}

async function takePages(source: ExactReader, sink: DumpSink, header: Header, piece: Buffer): Promise<void> {
  const space = spaceOf(header);
  const flags = flagsOf(header);
  const first = header.address / PAGE_BYTES;
  if (!Number.isInteger(first) || header.pages < 1 || first + header.pages > PAGES_MAX) {
    throw protocolError('pages beyond every limit');
  }
  if ((flags & PE_PRESENT) === 0) {
    await sink.without(space, { first, count: header.pages }, flags);
    return;
  }
  const step = PIECE_BYTES / PAGE_BYTES;
  for (let done = 0; done < header.pages; done += step) {
    const part = piece.subarray(0, Math.min(step, header.pages - done) * PAGE_BYTES);
    await source.fill(part);
    await sink.pages(space, first + done, part, flags);
  }
}

function flagsOf(header: Header): number {
  if (header.command === COMMAND.add) return PE_PRESENT;
  return header.command === COMMAND.hole ? PE_PARENT : header.flags;
}

function spaceOf({ target }: Header): SpaceName {
  const id = target >> TYPE_BITS;
  const type = target & ((1n << TYPE_BITS) - 1n);
  if (id < 1n || id > ID_MAX) throw protocolError('an image id beyond every limit');
  if (type === TYPE_PROCESS) return `process:${Number(id)}`;
  if (type === TYPE_SHARED) return `image:pagemap-shmem-${id}.img`;
  throw protocolError(`pages of the unknown type ${type}`);
}

function int32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeInt32LE(value);
  return bytes;
}

function answer(stream: Duplex, bytes: Buffer): Promise<void> {
  return new Promise((resolve, reject) => {
    stream.write(bytes, (error) => {
      if (error) reject(error);
      else resolve();
    });
  });
}

/** Reads exact counts out of a stream; what is not read yet stays in the stream, which stops its sender. */
class ExactReader {
  readonly #stream: Duplex;

  constructor(stream: Duplex) {
    this.#stream = stream;
    stream.pause();
  }

  async fill(target: Buffer): Promise<void> {
    for (let done = 0; done < target.length; ) {
      const left = target.length - done;
      const available = Math.min(left, this.#stream.readableLength);
      const chunk: unknown = available === 0 ? null : this.#stream.read(available);
      if (Buffer.isBuffer(chunk)) {
        chunk.copy(target, done);
        done += chunk.length;
      } else {
        await this.#more();
      }
    }
  }

  #more(): Promise<void> {
    const stream = this.#stream;
    if (stream.readableEnded || stream.destroyed) return Promise.reject(ended());
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const onEnd = (): void => reject(ended());
    stream.once('readable', resolve);
    stream.once('end', onEnd);
    stream.once('close', onEnd);
    stream.once('error', reject);
    stream.read(0);
    return promise.finally(() => {
      stream.off('readable', resolve);
      stream.off('end', onEnd);
      stream.off('close', onEnd);
      stream.off('error', reject);
    });
  }
}

function ended(): Error {
  return protocolError('it ended before it was complete');
}

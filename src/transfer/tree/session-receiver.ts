import type { Duplex } from 'node:stream';
import { toUmsError } from '#src/telemetry/errors.ts';
import { ByteReader, malformed } from './byte-reader.ts';
import { type ReceiveOptions, TreeReceiver } from './receive.ts';
import type { TreeLocation } from './send.ts';
import { type Answer, type Frame, FrameWriter, parseFrame, passSchema, readFrame } from './session-frames.ts';

export interface ServeOptions {
  /** The trees that may be received, by id. */
  trees: ReadonlyMap<string, TreeLocation>;
  /** Throws when no pass may be received (any more). */
  admit: () => void;
  limits: ReceiveOptions['limits'];
  signal?: AbortSignal;
  onBytes?: (bytes: number) => void;
  /** A pass is done. */
  onApplied?: () => void;
}

/** Programs wait for the last pass in so many trees; the others start theirs when they are needed. */
export const PREPARED_TREES = 16;

/** Receives passes until the other side ends the stream. No program of its own is left afterwards. */
export async function serveTrees(stream: Duplex, options: ServeOptions): Promise<void> {
  const session = new Session(stream, options);
  try {
    await session.run();
  } finally {
    await session.close();
  }
}

/** How long the other side may go on sending after it was told that a pass failed. */
const LINGER_MS = 5000;

class Session {
  readonly #stream: Duplex;
  readonly #options: ServeOptions;
  readonly #reader: ByteReader;
  readonly #writer: FrameWriter;
  readonly #receivers = new Map<string, TreeReceiver>();

  constructor(stream: Duplex, options: ServeOptions) {
    this.#stream = stream;
    this.#options = options;
    this.#reader = new ByteReader(stream, Number.MAX_SAFE_INTEGER);
    this.#writer = new FrameWriter(stream);
  }

  async run(): Promise<void> {
    // Its sender still reads the files; a failure is told by the pass that meets it, too.
    for (const id of this.#prepared())
      this.#receiver(id)
        .expect()
        .catch(() => undefined);
    try {
      for (let frame = await readFrame(this.#reader); frame !== undefined; frame = await readFrame(this.#reader)) {
        const answer = await this.#handle(frame);
        await this.#writer.writeJson('A', answer);
        await this.#writer.flush();
      }
      this.#stream.end();
    } catch (error) {
      await this.#fail(error);
      throw error;
    }
  }

  async close(): Promise<void> {
    await Promise.all([...this.#receivers.values()].map((receiver) => receiver.close()));
  }

  #handle(frame: Frame): Promise<Answer> {
    if (frame.kind === 'R') return this.#prepare();
    if (frame.kind === 'P') return this.#receive(parseFrame(frame, passSchema).tree);
    throw malformed(`has a frame ${frame.kind} where none may be`);
  }

  async #prepare(): Promise<Answer> {
    const started = performance.now();
    this.#options.admit();
    await Promise.all(this.#prepared().map((id) => this.#receiver(id).prepare()));
    return { bytes: 0, files: 0, elapsed_ms: performance.now() - started };
  }

  #prepared(): string[] {
    return [...this.#options.trees.keys()].slice(0, PREPARED_TREES);
  }

  async #receive(id: string): Promise<Answer> {
    const started = performance.now();
    this.#options.admit();
    const { limits, signal, onBytes } = this.#options;
    const options = { limits, ...(signal && { signal }), ...(onBytes && { onBytes }) };
    const { bytes, files } = await this.#receiver(id).receive(this.#body(), options);
    this.#options.onApplied?.();
    return { bytes, files, elapsed_ms: performance.now() - started };
  }

  #receiver(id: string): TreeReceiver {
    const known = this.#receivers.get(id);
    if (known !== undefined) return known;
    const tree = this.#options.trees.get(id);
    if (tree === undefined) throw malformed(`is for ${JSON.stringify(id.slice(0, 200))}, which the service has not`);
    const receiver = new TreeReceiver(tree);
    this.#receivers.set(id, receiver);
    return receiver;
  }

  async *#body(): AsyncGenerator<Uint8Array, void, undefined> {
    for (;;) {
      const frame = await readFrame(this.#reader);
      if (frame === undefined) throw malformed('ended early');
      if (frame.kind === 'E') return;
      if (frame.kind !== 'D') throw malformed(`has a frame ${frame.kind} within a pass`);
      yield frame.bytes;
    }
  }

  /** Says why, and reads away what the other side sends until it has heard. */
  async #fail(error: unknown): Promise<void> {
    if (this.#stream.destroyed) return;
    const report = toUmsError(error).toReport();
    try {
      await this.#writer.writeJson('A', { error: report });
      await this.#writer.flush();
      this.#stream.end();
      const limit = AbortSignal.timeout(LINGER_MS);
      while (!limit.aborted && (await readFrame(this.#reader)) !== undefined);
    } catch {
      // The connection is gone, or what comes now is in the middle of a frame: nobody is left to be told.
    }
  }
}

import { UmsError } from '#src/telemetry/errors.ts';

/** A stream from a peer that is not what it should be. */
export function malformed(message: string): UmsError {
  return new UmsError('UMS_E_PEER_MESSAGE', {
    message: `the stream of files ${message}`,
    fault: 'network',
    mend: 'Run the migration again; if it repeats, compare the versions of both agents.',
  });
}

/** Reads fixed sizes from an async stream and counts what went by. Holds one chunk and the piece being assembled. */
export class ByteReader {
  readonly #source: AsyncIterator<Uint8Array>;
  readonly #limit: number;
  #chunk: Uint8Array = new Uint8Array();
  #consumed = 0;

  constructor(source: AsyncIterable<Uint8Array>, limitBytes: number) {
    this.#source = source[Symbol.asyncIterator]();
    this.#limit = limitBytes;
  }

  /** Bytes received so far. */
  get consumed(): number {
    return this.#consumed;
  }

  async read(size: number): Promise<Buffer> {
    const parts: Uint8Array[] = [];
    let missing = size;
    while (missing > 0) {
      if (this.#chunk.length === 0 && !(await this.#pull())) throw malformed('ended early');
      const part = this.#chunk.subarray(0, missing);
      this.#chunk = this.#chunk.subarray(part.length);
      parts.push(part);
      missing -= part.length;
    }
    return Buffer.concat(parts, size);
  }

  /** The next bytes, however many there are, or undefined at the end. */
  async next(): Promise<Uint8Array | undefined> {
    if (this.#chunk.length === 0 && !(await this.#pull())) return undefined;
    const chunk = this.#chunk;
    this.#chunk = new Uint8Array();
    return chunk;
  }

  /** True when everything has been read and nothing more comes. */
  async isAtEnd(): Promise<boolean> {
    return this.#chunk.length === 0 && !(await this.#pull());
  }

  /** Tells the source that nothing more is wanted. */
  async close(): Promise<void> {
    await this.#source.return?.();
  }

  async #pull(): Promise<boolean> {
    for (;;) {
      const result = await this.#source.next();
      if (result.done === true) return false;
      this.#consumed += result.value.length;
      if (this.#consumed > this.#limit) throw malformed(`is longer than the ${this.#limit} bytes agreed on`);
      this.#chunk = result.value;
      if (this.#chunk.length > 0) return true;
    }
  }
}

/** Streams that are open, by migration: what comes over one is heard, however long it takes. */
export class OpenStreams {
  readonly #counts = new Map<string, number>();

  has(id: string): boolean {
    return this.#counts.has(id);
  }

  /** Counts one stream until `work`, which serves it, has ended; `closed` is called then. */
  async during<T>(id: string, work: () => Promise<T>, closed: () => void): Promise<T> {
    this.#counts.set(id, (this.#counts.get(id) ?? 0) + 1);
    try {
      return await work();
    } finally {
      const left = (this.#counts.get(id) ?? 1) - 1;
      if (left > 0) this.#counts.set(id, left);
      else this.#counts.delete(id);
      closed();
    }
  }
}

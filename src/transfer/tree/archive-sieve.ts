import type { TarParser } from './tar-parser.ts';

/**
 * Takes the nonsense out of an archive whose files were written while tar read them; the parser has the rules. What
 * cannot be told yet is held back: at most one header with its map.
 */
export class ArchiveSieve {
  readonly #parser: TarParser;
  #held: Uint8Array[] = [];

  constructor(parser: TarParser) {
    this.#parser = parser;
  }

  /** What may go of the bytes held back and of these, in as few pieces as there are. */
  push(chunk: Uint8Array): Uint8Array[] {
    const pieces: Uint8Array[] = [];
    let start = 0;
    let kept = 0;
    const cut = (): void => {
      if (kept > start) pieces.push(chunk.subarray(start, kept));
    };
    for (let at = 0; at < chunk.length; ) {
      at += this.#parser.step(chunk.subarray(at));
      if (this.#parser.standing === 'untold') continue;
      if (this.#parser.standing === 'kept') {
        pieces.push(...this.#held);
      } else {
        cut();
        start = at;
      }
      this.#held = [];
      kept = at;
    }
    cut();
    // A copy, as the caller may use its buffer again.
    if (kept < chunk.length) this.#held.push(Buffer.from(chunk.subarray(kept)));
    return pieces;
  }
}

import { normaliseRanges, type PageRange, subtractRanges } from './model.ts';

/** Goes through ranges in order, once. */
export class RangeCursor {
  #ranges: readonly PageRange[];
  #at = 0;
  #offset = 0;

  constructor(ranges: readonly PageRange[]) {
    this.#ranges = ranges;
  }

  get done(): boolean {
    return this.#at >= this.#ranges.length;
  }

  /** The next page; 0 at the end. */
  get first(): number {
    return (this.#ranges[this.#at]?.first ?? 0) + this.#offset;
  }

  /** Pages that follow one another from there on; 0 at the end. */
  get count(): number {
    return (this.#ranges[this.#at]?.count ?? 0) - this.#offset;
  }

  advance(pages: number): void {
    this.#offset += pages;
    if (this.count > 0) return;
    this.#at += 1;
    this.#offset = 0;
  }

  rest(): PageRange[] {
    if (this.done) return [];
    return [{ first: this.first, count: this.count }, ...this.#ranges.slice(this.#at + 1)];
  }

  /** Takes those of `wanted` out of what is left, and returns them. */
  takeOut(wanted: readonly PageRange[]): PageRange[] {
    const rest = normaliseRanges(this.rest());
    const left = subtractRanges(rest, wanted);
    this.#ranges = left;
    this.#at = 0;
    this.#offset = 0;
    return subtractRanges(rest, left);
  }
}

/** Adds a stretch to a list that is built in order, joining neighbours. */
export function appendRange(list: { first: number; count: number }[], first: number, count: number): void {
  const last = list.at(-1);
  if (last !== undefined && last.first + last.count === first) last.count += count;
  else list.push({ first, count });
}

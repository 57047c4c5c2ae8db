import { CACHE_SPACE } from './frames.ts';
import { PAGES_MAX } from './model.ts';
import { PageHashes } from './page-table.ts';

const SLOTS_FIRST = 2 ** 14;
/** At 12 bytes a slot; when they are used up, new pages are no longer found again. */
const SLOTS_MAX = 2 ** 23;

/** Where the receiver holds a page: a space's number on the wire and the page in it. */
export interface Location {
  space: number;
  page: number;
}

/**
 * Finds a page that the receiver holds by the page's hash: open addressing over typed arrays, a place (space and page in
 * one number) and 32 bits of its hash a slot. What a place holds now is kept beside it, so a page that was sent again
 * with other content is not found under its old hash. A wrong answer costs a frame sent twice, never a wrong page.
 */
export class DedupeIndex {
  #places = new Float64Array(SLOTS_FIRST);
  #tags = new Uint32Array(SLOTS_FIRST);
  #used = 0;
  readonly #spaces = new Map<number, PageHashes>();
  #cache: Uint32Array = new Uint32Array(0);

  /** Takes part of the hashes of the receiver's cache, from page `first` of it on. */
  addCache(first: number, hashes: Uint32Array): void {
    const needed = first * 2 + hashes.length;
    if (this.#cache.length < needed) {
      const larger = new Uint32Array(needed);
      larger.set(this.#cache);
      this.#cache = larger;
    }
    this.#cache.set(hashes, first * 2);
    for (let at = 0; at < hashes.length; at += 2) {
      this.#insert(CACHE_SPACE * PAGES_MAX + first + at / 2 + 1, hashes[at] ?? 0, hashes[at + 1] ?? 0);
    }
  }

  get cachePages(): number {
    return this.#cache.length / 2;
  }

  /** The receiver holds this page with this content. */
  held(space: number, page: number, low: number, high: number): void {
    this.#hashes(space).set(page, low, high);
    this.#insert(space * PAGES_MAX + page + 1, low, high);
  }

  /** What the receiver holds of these pages is no longer known. */
  unknown(space: number, first: number, count: number): void {
    this.#spaces.get(space)?.clear(first, count);
  }

  /** Whether the receiver is known to hold this very content at this very place. */
  same(space: number, page: number, low: number, high: number): boolean {
    return this.#spaces.get(space)?.matches(page, low, high) ?? false;
  }

  find(low: number, high: number, into: Location): boolean {
    const mask = this.#places.length - 1;
    for (let at = low & mask; ; at = (at + 1) & mask) {
      const place = this.#places[at] ?? 0;
      if (place === 0) return false;
      if (this.#tags[at] !== high) continue;
      into.space = Math.floor((place - 1) / PAGES_MAX);
      into.page = (place - 1) % PAGES_MAX;
      if (this.#matches(into, low, high)) return true;
    }
  }

  #matches({ space, page }: Location, low: number, high: number): boolean {
    if (space !== CACHE_SPACE) return this.#hashes(space).matches(page, low, high);
    return this.#cache[page * 2] === low && this.#cache[page * 2 + 1] === high;
  }

  #hashes(space: number): PageHashes {
    let hashes = this.#spaces.get(space);
    if (hashes === undefined) {
      hashes = new PageHashes();
      this.#spaces.set(space, hashes);
    }
    return hashes;
  }

  #insert(place: number, low: number, high: number): void {
    if (this.#used * 4 > this.#places.length * 3 && !this.#grow()) return;
    const mask = this.#places.length - 1;
    let at = low & mask;
    for (; this.#places[at] !== 0; at = (at + 1) & mask) {
      if (this.#places[at] === place && this.#tags[at] === high) return;
      // A slot whose page has other content by now, or one more copy of the same content: taken over or left out.
      if (this.#tags[at] === high && this.#isCopy(at, low, high)) return;
    }
    this.#places[at] = place;
    this.#tags[at] = high;
    this.#used += 1;
  }

  #isCopy(at: number, low: number, high: number): boolean {
    const place = (this.#places[at] ?? 1) - 1;
    return this.#matches({ space: Math.floor(place / PAGES_MAX), page: place % PAGES_MAX }, low, high);
  }

  /** Doubles the table, leaving behind what is out of date; false when it may not become larger. */
  #grow(): boolean {
    if (this.#places.length >= SLOTS_MAX) return false;
    const places = this.#places;
    const location: Location = { space: 0, page: 0 };
    this.#places = new Float64Array(places.length * 2);
    this.#tags = new Uint32Array(places.length * 2);
    this.#used = 0;
    const mask = this.#places.length - 1;
    for (const place of places) {
      if (place === 0) continue;
      location.space = Math.floor((place - 1) / PAGES_MAX);
      location.page = (place - 1) % PAGES_MAX;
      const hashes = this.#halves(location);
      if (hashes === undefined) continue;
      let at = hashes.low & mask;
      while (this.#places[at] !== 0) at = (at + 1) & mask;
      this.#places[at] = place;
      this.#tags[at] = hashes.high;
      this.#used += 1;
    }
    return true;
  }

  #halves({ space, page }: Location): { low: number; high: number } | undefined {
    const found =
      space === CACHE_SPACE
        ? { low: this.#cache[page * 2] ?? 0, high: this.#cache[page * 2 + 1] ?? 0 }
        : this.#hashes(space).get(page);
    return found.low === 0 && found.high === 0 ? undefined : found;
  }
}

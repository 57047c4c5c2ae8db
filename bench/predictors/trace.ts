import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';

/**
 * A recorded trace says, for each window of time, how many pages were written in it and how many windows earlier each of
 * them had been written before. From that follows how many *different* pages were written between any two windows, which
 * is what a round of a migration finds.
 */
const traceSchema = z.object({
  name: z.string(),
  what: z.string(),
  window_ms: z.number().positive(),
  present_pages: z.int().positive(),
  /** Classes of age: class i holds ages from ages[i] to ages[i + 1] - 1; class 0 holds pages never written before. */
  ages: z.array(z.int()),
  /** For each window: class, pages, class, pages, … */
  windows: z.array(z.array(z.int().min(0))),
});
export type Trace = z.infer<typeof traceSchema>;

export function readTraces(directory: string): Trace[] {
  return readdirSync(directory)
    .filter((name) => name.endsWith('.json'))
    .toSorted()
    .map((name) => traceSchema.parse(JSON.parse(readFileSync(join(directory, name), 'utf8'))));
}

/** Which share of the pages of an age class were last written at least `least` windows before. */
function shareOlder(trace: Trace, age: number, least: number): number {
  if (age === 0) return 1;
  const from = trace.ages[age] ?? 0;
  const to = trace.ages[age + 1] ?? from * 2;
  return Math.min(1, Math.max(0, (to - least) / (to - from)));
}

/** Different pages written in the windows after `begin`, up to and with `end`. */
export function differentPages(trace: Trace, begin: number, end: number): number {
  let pages = 0;
  for (let window = begin + 1; window <= end; window += 1) {
    const counts = trace.windows[window] ?? [];
    for (let at = 0; at + 1 < counts.length; at += 2) {
      pages += (counts[at + 1] ?? 0) * shareOlder(trace, counts[at] ?? 0, window - begin);
    }
  }
  return Math.round(pages);
}

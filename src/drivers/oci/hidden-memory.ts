import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { readPagemap, writePagemap } from '#src/checkpoint/lazy/images.ts';
import { PE_LAZY } from '#src/checkpoint/lazy/protocol.ts';
import { presentPages } from '#src/checkpoint/memory/pagemap.ts';
import { normaliseRanges, PAGE_BYTES, type PageRange } from '#src/transfer/pages/model.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { isMissing } from './cgroup.ts';
import { unmark } from './mm-image.ts';

/**
 * A lazy dump writes no anonymous memory, yet CRIU takes hold of every page of it, to offer it later: fifty milliseconds
 * for each GiB, in pipes that a host may not allow it. Nobody will ask CRIU for them. So it is shown mappings of which it
 * believes that their content need not be kept (the `dp` flag of /proc/PID/smaps, for MAP_DROPPABLE), and the images are
 * completed here: the flag is taken back, and what is present in these mappings is listed as lazy, as CRIU would have.
 *
 * Only for large mappings that CRIU would call lazy whole (vma_entry_can_be_lazy in its source, and no thread's stack
 * pointer in it, because CRIU writes that page); everything else is left to CRIU.
 */
export interface HiddenMemory {
  /** Process id here, and in the container, by which the images are named. */
  pid: number;
  inside: number;
  areas: PageRange[];
  /** Which of their pages are there. */
  present: Promise<PageRange[]>;
}

/** Mappings with less memory than this cost CRIU nothing worth mentioning. */
const AREA_BYTES_MIN = 4 * 1024 * 1024;
/** A process with more mappings is left to CRIU: reading its smaps once more would cost more than it saves. */
const SMAPS_BYTES_MAX = 4 * 1024 * 1024;
/** Kilobytes of anonymous memory from which on it is worth it. */
const PROCESS_KIB_MIN = 64 * 1024;
/** CRIU's own entries end with its pipes; `criu lazy-pages` counts the bytes of one entry in an int. */
const ENTRY_PAGES_MAX = 16_384;
const PROCESSES_MAX = 256;
const NEVER = new Set(['lo', 'ht', 'dp', 'gd', 'io', 'pf', 'sh', 'ss']);

/** Writes DIRECTORY/PID for every frozen process of which something is hidden: what CRIU shall see as its smaps. */
export function hideMemory(pids: readonly number[], directory: string): HiddenMemory[] {
  if (pids.length > PROCESSES_MAX) return [];
  // The service stands still and these files are the kernel's: waiting for a thread to read them would take longer.
  return pids.map((pid) => hideProcess(pid, directory)).filter((each) => each !== undefined);
}

function hideProcess(pid: number, directory: string): HiddenMemory | undefined {
  try {
    const status = readFileSync(`/proc/${pid}/status`, 'utf8');
    const inside = Number(/^NSpid:.*?(\d+)$/m.exec(status)?.[1] ?? '0');
    if (inside <= 0 || Number(/^RssAnon:\s*(\d+) kB$/m.exec(status)?.[1] ?? '0') < PROCESS_KIB_MIN) return undefined;
    const stacks = stackPointers(pid);
    const smaps = readFileSync(`/proc/${pid}/smaps`, 'latin1');
    if (stacks === undefined || smaps.length > SMAPS_BYTES_MAX) return undefined;
    const { text, areas } = markMappings(smaps, stacks);
    if (areas.length === 0) return undefined;
    mkdirSync(directory, { recursive: true });
    writeFileSync(join(directory, String(pid)), text, { encoding: 'latin1', mode: 0o600 });
    const present = presentPages(pid, areas);
    present.catch(() => undefined);
    return { pid, inside, areas, present };
  } catch (error) {
    if (isMissing(error)) return undefined;
    throw error;
  }
}

/** Undefined when the kernel does not tell one of them. */
function stackPointers(pid: number): number[] | undefined {
  const pointers: number[] = [];
  for (const thread of readdirSync(`/proc/${pid}/task`)) {
    const words = readFileSync(`/proc/${pid}/task/${thread}/syscall`, 'utf8').trim().split(' ');
    const pointer = Number(words.at(-2));
    if (words.length < 3 || !Number.isSafeInteger(pointer)) return undefined;
    pointers.push(pointer);
  }
  return pointers;
}

const RANGE = /^([0-9a-f]+)-([0-9a-f]+) ([rwx-]{3}p) [0-9a-f]+ 00:00 0\s*(?:\[heap\]|\[anon:[^\]]*\])?$/;

/** smaps with `dp` among the flags of the mappings that are hidden, and what they span. */
export function markMappings(smaps: string, stacks: readonly number[]): { text: string; areas: PageRange[] } {
  const areas: PageRange[] = [];
  let candidate: { start: number; end: number } | undefined;
  let rss_kib = 0;
  const lines = smaps.split('\n').map((line) => {
    if (/^[0-9a-f]+-/.test(line)) {
      const [, start = '', end = ''] = RANGE.exec(line) ?? [];
      candidate = start === '' ? undefined : { start: Number.parseInt(start, 16), end: Number.parseInt(end, 16) };
      rss_kib = 0;
    } else if (line.startsWith('Rss:') || line.startsWith('Swap:')) {
      rss_kib += Number(line.split(/\s+/)[1]);
    } else if (line.startsWith('VmFlags:') && candidate !== undefined && rss_kib * 1024 >= AREA_BYTES_MIN) {
      const { start, end } = candidate;
      const inUse = stacks.some((pointer) => pointer >= start && pointer < end);
      if (inUse || line.split(' ').some((flag) => NEVER.has(flag))) return line;
      areas.push({ first: start / PAGE_BYTES, count: (end - start) / PAGE_BYTES });
      return `${line.trimEnd()} dp `;
    }
    return line;
  });
  return { text: lines.join('\n'), areas };
}

function inParts({ first, count }: PageRange): PageRange[] {
  const parts: PageRange[] = [];
  for (let done = 0; done < count; done += ENTRY_PAGES_MAX) {
    parts.push({ first: first + done, count: Math.min(ENTRY_PAGES_MAX, count - done) });
  }
  return parts;
}

/** Makes the images what they would be, had nothing been hidden. */
export async function completeImages(imagesDir: string, hidden: readonly HiddenMemory[]): Promise<void> {
  for (const { inside, areas, present } of hidden) {
    await unmark(join(imagesDir, `mm-${inside}.img`), new Set(areas.map(({ first }) => first * PAGE_BYTES)));
    const path = join(imagesDir, `pagemap-${inside}.img`);
    const { pagesId, entries } = await readPagemap(path);
    const seen = entries.some(({ first, count }) =>
      areas.some((area) => first < area.first + area.count && area.first < first + count),
    );
    if (seen) {
      throw new UmsError('UMS_E_DUMP', {
        message: `CRIU saw memory of process ${inside} that was hidden`,
        fault: 'ums',
      });
    }
    const lazy = normaliseRanges(await present)
      .flatMap(inParts)
      .map((range) => ({ ...range, flags: PE_LAZY }));
    const all = [...entries, ...lazy].toSorted((left, right) => left.first - right.first);
    writeFileSync(path, writePagemap({ pagesId, entries: all }), { mode: 0o600 });
  }
}

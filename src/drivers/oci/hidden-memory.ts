import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { readPagemap, writePagemap } from '#src/checkpoint/lazy/images.ts';
import { PE_LAZY } from '#src/checkpoint/lazy/protocol.ts';
import type { FrozenMemory } from '#src/checkpoint/memory/index.ts';
import { normaliseRanges, PAGE_BYTES, type PageRange } from '#src/transfer/pages/model.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { isMissing } from './cgroup.ts';
import { unmark } from './mm-image.ts';

/**
 * A lazy dump writes no anonymous memory, yet CRIU takes hold of every page of it, to offer it later: fifty milliseconds
 * for each GiB, in pipes that a host may not allow it. Nobody will ask CRIU for them. So it is shown mappings of which it
 * believes that their content need not be kept (the `dp` flag of /proc/PID/smaps, for MAP_DROPPABLE) and that they are one
 * page long (it copies 16 bytes for every page there could be), and the images are completed here: flag and end are put
 * right, and what is present in these mappings is listed as lazy, as CRIU would have.
 *
 * Only for large mappings that CRIU would call lazy whole (vma_entry_can_be_lazy in its source, and no thread's stack
 * pointer in it, because CRIU writes that page); everything else is left to CRIU.
 *
 * To read smaps the kernel looks at every page, twenty milliseconds for each GiB, though only the flags are wanted. So it is
 * read before the freeze; afterwards the list of mappings alone, which is quick, tells whether they are the same. A flag
 * could have been changed in between (madvise of a whole mapping), so smaps is read once more while the destination
 * restores, and a difference fails the checkpoint before anything runs there.
 */
export interface HiddenMemory {
  /** Process id here, and in the container, by which the images are named. */
  pid: number;
  inside: number;
  areas: PageRange[];
  /** Which of their pages are there. */
  present: Promise<PageRange[]>;
  /** Mappings with their flags as they were before the freeze, where they were taken to be the same after it. */
  assumed: readonly string[] | undefined;
}

interface Mapping {
  flags: string;
  rss_kib: number;
}

/** By process, then by the line that names a mapping in both maps and smaps. */
export type SeenMappings = ReadonlyMap<number, ReadonlyMap<string, Mapping>>;

/** Mappings with less memory than this cost CRIU nothing worth mentioning. */
const AREA_BYTES_MIN = 4 * 1024 * 1024;
/** A process with more mappings is left to CRIU: reading its smaps once more would cost more than it saves. */
const SMAPS_BYTES_MAX = 4 * 1024 * 1024;
/** Kilobytes of anonymous memory from which on it is worth it. */
const PROCESS_KIB_MIN = 64 * 1024;
/** CRIU's own entries end with its pipes; `criu lazy-pages` counts the bytes of one entry in an int. */
const ENTRY_PAGES_MAX = 16_384;
const PROCESSES_MAX = 256;
/** Flags that CRIU does not ask for, and that come and go by themselves or by our own looking for written pages. */
const FLEETING = new Set(['sd', 'um', 'uw', 'ui']);
const NEVER = new Set(['lo', 'ht', 'dp', 'gd', 'io', 'pf', 'sh', 'ss']);

/** Writes DIRECTORY/PID for every frozen process of which something is hidden: what CRIU shall see as its smaps. */
export function hideMemory(
  pids: readonly number[],
  directory: string,
  seen: SeenMappings,
  frozen: FrozenMemory,
): HiddenMemory[] {
  if (pids.length > PROCESSES_MAX) return [];
  // The service stands still and these files are the kernel's: waiting for a thread to read them would take longer.
  return pids.map((pid) => hideProcess(pid, directory, seen.get(pid), frozen)).filter((each) => each !== undefined);
}

function hideProcess(
  pid: number,
  directory: string,
  seen: ReadonlyMap<string, Mapping> | undefined,
  frozen: FrozenMemory,
): HiddenMemory | undefined {
  try {
    const status = readFileSync(`/proc/${pid}/status`, 'utf8');
    const inside = Number(/^NSpid:.*?(\d+)$/m.exec(status)?.[1] ?? '0');
    if (inside <= 0 || Number(/^RssAnon:\s*(\d+) kB$/m.exec(status)?.[1] ?? '0') < PROCESS_KIB_MIN) return undefined;
    const stacks = stackPointers(pid);
    const known = seen === undefined ? undefined : asSeen(readFileSync(`/proc/${pid}/maps`, 'latin1'), seen);
    const smaps = known ?? readFileSync(`/proc/${pid}/smaps`, 'latin1');
    if (stacks === undefined || smaps.length > SMAPS_BYTES_MAX) return undefined;
    const { text, areas } = markMappings(smaps, stacks);
    if (areas.length === 0) return undefined;
    mkdirSync(directory, { recursive: true });
    writeFileSync(join(directory, String(pid)), text, { encoding: 'latin1', mode: 0o600 });
    const present = frozen.present(pid, areas);
    present.catch(() => undefined);
    return { pid, inside, areas, present, assumed: known === undefined ? undefined : flagsIn(known) };
  } catch (error) {
    if (isMissing(error)) return undefined;
    throw error;
  }
}

/** What the mappings of running processes are. */
export async function seeMappings(pids: readonly number[]): Promise<SeenMappings> {
  const seen = new Map<number, Map<string, Mapping>>();
  for (const pid of pids.slice(0, PROCESSES_MAX)) {
    const smaps = await readFile(`/proc/${pid}/smaps`, 'latin1').catch(noneIfMissing);
    if (smaps.length > SMAPS_BYTES_MAX) continue;
    const mappings = new Map<string, Mapping>();
    for (const [line, mapping] of eachMapping(smaps)) mappings.set(line, mapping);
    seen.set(pid, mappings);
  }
  return seen;
}

function noneIfMissing(error: unknown): string {
  if (isMissing(error)) return '';
  throw error;
}

function* eachMapping(smaps: string): Generator<[string, Mapping]> {
  let line = '';
  let rss_kib = 0;
  for (const text of smaps.split('\n')) {
    if (/^[0-9a-f]+-/.test(text)) {
      line = text;
      rss_kib = 0;
    } else if (text.startsWith('Rss:') || text.startsWith('Swap:')) {
      rss_kib += Number(text.split(/\s+/)[1]);
    } else if (text.startsWith('VmFlags:')) {
      yield [line, { flags: text, rss_kib }];
    }
  }
}

/** What CRIU reads of smaps, put together from maps and what was seen before; undefined if a mapping is not known. */
export function asSeen(maps: string, seen: ReadonlyMap<string, Mapping>): string | undefined {
  const lines: string[] = [];
  for (const line of maps.split('\n')) {
    if (line === '') continue;
    const mapping = seen.get(line);
    if (mapping === undefined) return undefined;
    lines.push(line, `Rss: ${mapping.rss_kib} kB`, mapping.flags);
  }
  return `${lines.join('\n')}\n`;
}

function flagsIn(smaps: string): string[] {
  return [...eachMapping(smaps)].map(([line, { flags }]) => {
    const lasting = flags.split(/\s+/).filter((flag) => !FLEETING.has(flag));
    return `${line} ${lasting.join(' ')}`;
  });
}

/** After the dump, with CRIU gone: throws when a mapping is not what CRIU was told. */
export async function requireAsAssumed(
  hidden: readonly HiddenMemory[],
  frozen: Pick<FrozenMemory, 'smaps'>,
): Promise<void> {
  for (const { pid, inside, assumed } of hidden) {
    if (assumed === undefined) continue;
    const now = flagsIn(await frozen.smaps(pid));
    const at = assumed.findIndex((line, index) => line !== now[index]);
    if (at < 0 && now.length === assumed.length) continue;
    throw new UmsError('UMS_E_DUMP', {
      message: `Process ${inside} changed how a part of its memory is treated in the moment before it was frozen`,
      fault: 'service',
      mend: 'Try again.',
      detail: `before: ${assumed[at] ?? 'nothing'}\nafter: ${now[at] ?? 'nothing'}`,
    });
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

const RANGE = /^([0-9a-f]+)-([0-9a-f]+) [rwx-]{3}p [0-9a-f]+ 00:00 0\s*(?:\[heap\]|\[anon:[^\]]*\])?$/;

/**
 * smaps with `dp` among the flags of the mappings that are hidden, and what they span. Each is shown as one page: CRIU
 * makes lists as long as there could be pages, and copies them.
 */
export function markMappings(smaps: string, stacks: readonly number[]): { text: string; areas: PageRange[] } {
  const areas: PageRange[] = [];
  const blocks = smaps.split(/^(?=[0-9a-f]+-)/m);
  const marked = blocks.map((block, at) => {
    const area = hideable(block, stacks);
    if (area === undefined || growsDownTo(area, blocks[at + 1])) return block;
    areas.push(area);
    return mark(block, area);
  });
  return { text: marked.join(''), areas };
}

function hideable(block: string, stacks: readonly number[]): PageRange | undefined {
  const [line = ''] = block.split('\n', 1);
  const [, first = '', last = ''] = RANGE.exec(line) ?? [];
  if (first === '') return undefined;
  const [start, end] = [Number.parseInt(first, 16), Number.parseInt(last, 16)];
  let rss_kib = 0;
  for (const [, kib] of block.matchAll(/^(?:Rss|Swap):\s*(\d+)/gm)) rss_kib += Number(kib);
  const flags = flagsOf(block);
  const inUse = stacks.some((pointer) => pointer >= start && pointer < end);
  if (rss_kib * 1024 < AREA_BYTES_MIN || flags === undefined || inUse || flags.some((flag) => NEVER.has(flag))) {
    return undefined;
  }
  return { first: start / PAGE_BYTES, count: (end - start) / PAGE_BYTES };
}

function flagsOf(block: string): string[] | undefined {
  return /^VmFlags:(.*)$/m.exec(block)?.[1]?.trim().split(' ');
}

/** CRIU looks whether there is room before a mapping that grows downwards, so what lies there is shown as it is. */
function growsDownTo(area: PageRange, next: string | undefined): boolean {
  if (next === undefined || flagsOf(next)?.includes('gd') !== true) return false;
  return Number.parseInt(next, 16) === (area.first + area.count) * PAGE_BYTES;
}

function mark(block: string, area: PageRange): string {
  const shown = ((area.first + 1) * PAGE_BYTES).toString(16).padStart(8, '0');
  return block.replace(/^([0-9a-f]+)-[0-9a-f]+/, `$1-${shown}`).replace(/^(VmFlags:.*?) *$/m, '$1 dp ');
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
    const ends = areas.map(({ first, count }): [number, number] => [first * PAGE_BYTES, (first + count) * PAGE_BYTES]);
    await unmark(join(imagesDir, `mm-${inside}.img`), new Map(ends));
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

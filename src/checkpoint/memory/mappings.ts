import { PAGE_BYTES } from '#src/transfer/pages/model.ts';
import type { Mapping } from './model.ts';
import { ifThere, readProcFile } from './proc.ts';

/** A process may have at most vm.max_map_count mappings, of some 100 bytes in `maps` and 1000 in `smaps`. */
const MAPS_BYTES_MAX = 64 * 1024 * 1024;
const SMAPS_BYTES_MAX = 512 * 1024 * 1024;
/** Addresses above are the kernel's (vsyscall). */
const ADDRESS_MAX = 2 ** 56;

/**
 * The mappings of a process, in order of address; none if it has vanished.
 *
 * CRIU's rule for what can be lazy (vma_entry_can_be_lazy) needs flags that only `smaps` tells, and `smaps` walks every
 * page. `maps` has nearly all of it: what has a file there is not anonymous, huge pages always have one, and locked
 * memory exists only where `status` counts some; only then is `smaps` read. What then still slips through is memory that
 * may be dropped (MAP_DROPPABLE, a few pages of random numbers): it is called lazy here and CRIU never asks for it.
 */
export async function mappings(pid: number): Promise<Mapping[]> {
  return mappingsNow(pid);
}

export function mappingsNow(pid: number): Mapping[] {
  return (
    ifThere(() => {
      const maps = readProcFile(pid, 'maps', MAPS_BYTES_MAX);
      const locked = hasLockedMemory(readProcFile(pid, 'status', 1024 * 1024));
      return parseMaps(locked ? readProcFile(pid, 'smaps', SMAPS_BYTES_MAX) : maps);
    }) ?? []
  );
}

function hasLockedMemory(status: string): boolean {
  return /^VmLck:\s+[1-9]/m.test(status);
}

/** `maps` or `smaps`, as the kernel writes them. */
export function parseMaps(text: string): Mapping[] {
  const found: Mapping[] = [];
  for (const line of text.split('\n')) {
    if (line.startsWith('VmFlags:')) {
      const last = found.pop();
      if (last !== undefined) found.push(withFlags(last, line.split(' ')));
      continue;
    }
    const mapping = parseMapping(line);
    if (mapping !== undefined) found.push(mapping);
  }
  return found;
}

/** `7fe1c0000000-7fe1c0021000 rw-p 00000000 00:00 0      [heap]`; undefined for every other line of smaps. */
function parseMapping(line: string): Mapping | undefined {
  const dash = line.indexOf('-');
  const space = line.indexOf(' ', dash);
  if (dash < 1 || space < 0 || line.indexOf(':') < space) return undefined;
  const start = Number.parseInt(line.slice(0, dash), 16);
  const end = Number.parseInt(line.slice(dash + 1, space), 16);
  if (!(end > start) || end > ADDRESS_MAX) return undefined;
  const shared = line[space + 4] === 's';
  const [, , , device, inode, ...path] = line.split(/ +/);
  const name = path.join(' ');
  const file = device !== '00:00' || inode !== '0' || !(name === '' || name.startsWith('['));
  return {
    first: start / PAGE_BYTES,
    count: (end - start) / PAGE_BYTES,
    lazy: !shared && !file && !isKernels(name),
    executable: line[space + 3] === 'x',
    stack: name === '[stack]',
    shared,
    file,
  };
}

/** Mappings that the kernel makes and CRIU does not treat as memory of the program's own. */
function isKernels(name: string): boolean {
  return name.startsWith('[vvar') || name === '[vdso]' || name === '[vsyscall]' || name === '[uprobes]';
}

/** lo: locked, ht: huge pages, dp: may be dropped. */
function withFlags(mapping: Mapping, flags: readonly string[]): Mapping {
  const never = flags.includes('lo') || flags.includes('ht') || flags.includes('dp');
  return never ? { ...mapping, lazy: false } : mapping;
}

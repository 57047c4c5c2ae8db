import { UmsError } from '#src/telemetry/errors.ts';
import { malformed } from './byte-reader.ts';
import { type BytePath, fromBytes } from './paths.ts';
import { MAP_LIMIT_BYTES, parseMap } from './sparse-map.ts';

/**
 * Reads along in a tar archive in the POSIX format. The sender learns from it what really went out, the receiver checks
 * names and counts before its own tar sees them, and a digest is made of it. It holds one header (bounded) at a time.
 */
export interface TarEntry {
  /** As it stands in the archive, byte string. */
  path: BytePath;
  /** '0' file, '1' hard link, '2' symbolic link, '3' character device, '4' block device, '5' directory, '6' fifo. */
  type: string;
  mode: number;
  uid: number;
  gid: number;
  /** The size of the file, holes included. */
  size: bigint;
  mtimeNs: bigint;
  target: BytePath;
  device: string;
  /** Its content begins with a map of the parts that are no holes. */
  isSparse: boolean;
  /** Extended attributes and ACLs by the key that tar uses, like "SCHILY.xattr.user.name". */
  attributes: ReadonlyMap<string, string>;
}

export interface TarHandlers {
  entry(entry: TarEntry): void;
  /** Content of the latest entry as stored: with --sparse a map of the holes comes first. */
  content?(bytes: Uint8Array): void;
}

/**
 * Rules for the archive of files that are written while tar reads them. A file with holes that grows or shrinks in that
 * moment leaves nonsense behind: blocks of zeros or of its content after its end, a header with a negative size, a map
 * that is none.
 */
export interface LiveRules {
  /** Whether this can be an entry of the archive at all; what a file leaves behind may look like one. */
  isExpected(entry: TarEntry, isAfterNonsense: boolean): boolean;
  /** An entry of this path, as it stands in the archive, was nonsense. */
  dropped(path: BytePath): void;
}

/** What the bytes taken last belong to: what may be kept, what cannot be told yet, what goes together with all untold. */
export type Standing = 'kept' | 'untold' | 'dropped';

const BLOCK = 512;
const ZEROS = Buffer.alloc(BLOCK);
/** Linux gives one file at most 64 KiB of extended attribute names and 64 KiB a value; no honest header is larger. */
const PAX_LIMIT_BYTES = 8 * 1024 * 1024;
const ATTRIBUTE_KEY = /^(SCHILY\.(xattr|acl)\.|RHT\.security\.selinux)/;
const ENTRY_TYPES = new Set(['0', '1', '2', '3', '4', '5', '6']);

export class TarParser {
  readonly #handlers: TarHandlers;
  readonly #rules: LiveRules | undefined;
  #block = Buffer.alloc(BLOCK);
  #filled = 0;
  #pax: Buffer[] = [];
  #paxMissing = 0;
  #records = new Map<string, string>();
  #content = 0;
  #padding = 0;
  #zeroBlocks = 0;
  #paxBytes = 0;
  #standing: Standing = 'kept';
  #isAfterNonsense = false;
  /** A file with holes that is not taken before its map has been seen. */
  #sparse: { entry: TarEntry; size: number; map: Buffer } | undefined;
  #isDropped = false;

  /** With rules nonsense is no error, and zeros are no end before nothing follows them. */
  constructor(handlers: TarHandlers, rules?: LiveRules) {
    this.#handlers = handlers;
    this.#rules = rules;
  }

  /** True after the two zero blocks with which an archive ends. */
  get ended(): boolean {
    return this.#zeroBlocks >= 2;
  }

  get standing(): Standing {
    return this.#standing;
  }

  /** Takes the next bytes and says how many of them belong to the archive: all, unless it ends in them. */
  push(chunk: Uint8Array): number {
    let used = 0;
    while (used < chunk.length && !this.ended) used += this.step(chunk.subarray(used));
    return used;
  }

  /** Takes some bytes and says how many. */
  step(bytes: Uint8Array): number {
    if (this.#content > 0) {
      const part = bytes.subarray(0, Math.min(bytes.length, this.#content));
      this.#content -= part.length;
      this.#see(part);
      return part.length;
    }
    if (this.#padding > 0) {
      const size = Math.min(bytes.length, this.#padding);
      this.#padding -= size;
      return size;
    }
    this.#standing = 'untold';
    if (this.#paxMissing > 0) {
      const part = bytes.subarray(0, this.#paxMissing);
      // A copy, as the caller may use its buffer again.
      this.#pax.push(Buffer.from(part));
      this.#paxMissing -= part.length;
      if (this.#paxMissing === 0) this.#judged(() => this.#finishPax());
      return part.length;
    }
    const part = bytes.subarray(0, BLOCK - this.#filled);
    this.#block.set(part, this.#filled);
    this.#filled += part.length;
    if (this.#filled === BLOCK) {
      this.#filled = 0;
      this.#judged(() => this.#header(this.#block));
    }
    return part.length;
  }

  #see(part: Uint8Array): void {
    if (this.#sparse !== undefined) this.#readMap(this.#sparse, part);
    else if (!this.#isDropped) this.#handlers.content?.(part);
  }

  #readMap(sparse: { entry: TarEntry; size: number; map: Buffer }, part: Uint8Array): void {
    sparse.map = Buffer.concat([sparse.map, part]);
    const map = parseMap(sparse.map, sparse.entry.size);
    const isWhole = this.#content === 0;
    if (map === 'incomplete' && !isWhole && sparse.map.length < MAP_LIMIT_BYTES) return;
    this.#sparse = undefined;
    const stored = typeof map === 'string' ? undefined : map.parts.reduce((sum, { size }) => sum + size, 0n);
    const isLarge = map === 'incomplete' && !isWhole;
    if (!isLarge && (typeof map === 'string' || stored !== BigInt(sparse.size - map.length))) {
      this.#isDropped = true;
      this.#nonsense(sparse.entry.path);
      return;
    }
    this.#standing = 'kept';
    this.#handlers.entry(sparse.entry);
    this.#handlers.content?.(sparse.map);
  }

  #judged(work: () => void): void {
    try {
      work();
    } catch (error) {
      if (this.#rules === undefined || !(error instanceof UmsError)) throw error;
      this.#nonsense();
    }
  }

  #nonsense(path?: BytePath): void {
    this.#records = new Map();
    this.#isAfterNonsense = true;
    this.#standing = 'dropped';
    if (path !== undefined) this.#rules?.dropped(path);
  }

  #finishPax(): void {
    const bytes = Buffer.concat(this.#pax);
    this.#pax = [];
    parsePax(bytes.subarray(0, this.#paxBytes), this.#records);
  }

  #header(block: Buffer): void {
    this.#isDropped = false;
    if (block.equals(ZEROS)) {
      this.#zeroBlocks += 1;
      if (this.#rules !== undefined) this.#nonsense();
      return;
    }
    if (this.#rules !== undefined) this.#zeroBlocks = 0;
    if (this.#zeroBlocks > 0) throw malformed('goes on after its end');
    checkSum(block);
    const type = block[156] === 0 ? '0' : String.fromCharCode(block[156] ?? 0);
    if (type === 'x') {
      this.#expectPax(this.#stored(block));
      return;
    }
    if (!ENTRY_TYPES.has(type)) throw malformed(`has an entry of the type "${JSON.stringify(type).slice(1, -1)}"`);
    const path = this.#records.get('GNU.sparse.name') ?? this.#records.get('path') ?? plainName(block);
    try {
      this.#entry(block, type);
    } catch (error) {
      this.#rules?.dropped(path);
      throw error;
    }
  }

  #expectPax(size: number): void {
    if (size === 0 || size > PAX_LIMIT_BYTES) throw malformed(`has a header of ${size} bytes`);
    if (this.#records.size > 0) throw malformed('has two headers for one file');
    this.#paxBytes = size;
    this.#paxMissing = size + padding(size);
  }

  #entry(block: Buffer, type: string): void {
    const size = this.#stored(block);
    const entry = describe(block, type, size, this.#records);
    const isNext = this.#rules?.isExpected(entry, this.#isAfterNonsense) ?? true;
    if (!isNext) throw malformed('has an entry nobody asked for');
    const isHeld = this.#rules !== undefined && entry.isSparse;
    if (isHeld && size === 0) throw malformed('has a file with holes and no map of them');
    this.#records = new Map();
    this.#isAfterNonsense = false;
    // A size in the header of a link, directory or device is not followed by content, as in GNU tar.
    this.#content = type === '0' ? size : 0;
    this.#padding = padding(this.#content);
    if (isHeld) {
      this.#sparse = { entry, size, map: Buffer.alloc(0) };
      return;
    }
    this.#standing = 'kept';
    this.#handlers.entry(entry);
  }

  #stored(block: Buffer): number {
    const written = this.#records.get('size');
    const size = written === undefined ? octal(block, 124, 12) : decimal(written);
    if (size > BigInt(Number.MAX_SAFE_INTEGER)) throw malformed('has an entry with an impossible size');
    return Number(size);
  }
}

function describe(block: Buffer, type: string, storedSize: number, records: Map<string, string>): TarEntry {
  const attributes = new Map<string, string>();
  for (const [key, value] of records) if (ATTRIBUTE_KEY.test(key)) attributes.set(key, value);
  const number = (key: string, offset: number, length: number): bigint => {
    const written = records.get(key);
    return written === undefined ? octal(block, offset, length) : decimal(written);
  };
  const realSize = records.get('GNU.sparse.realsize') ?? records.get('GNU.sparse.size');
  const mtime = records.get('mtime');
  return {
    path: records.get('GNU.sparse.name') ?? records.get('path') ?? plainName(block),
    type,
    mode: Number(octal(block, 100, 8)),
    uid: Number(number('uid', 108, 8)),
    gid: Number(number('gid', 116, 8)),
    size: realSize === undefined ? BigInt(storedSize) : decimal(realSize),
    mtimeNs: mtime === undefined ? octal(block, 136, 12) * 1_000_000_000n : nanoseconds(mtime),
    isSparse: records.get('GNU.sparse.major') === '1',
    target: records.get('linkpath') ?? text(block, 157, 100),
    device: type === '3' || type === '4' ? `${octal(block, 329, 8)}:${octal(block, 337, 8)}` : '',
    attributes,
  };
}

/** Records of the form "LENGTH KEY=VALUE\n", where LENGTH counts the whole record. */
function parsePax(bytes: Buffer, into: Map<string, string>): void {
  for (let start = 0; start < bytes.length; ) {
    const space = bytes.indexOf(0x20, start);
    const digits = space < 0 ? '' : bytes.toString('latin1', start, space);
    const length = /^[0-9]{1,8}$/.test(digits) ? Number(digits) : 0;
    const end = start + length;
    const equals = bytes.indexOf(0x3d, space);
    if (length === 0 || end > bytes.length || equals < 0 || equals >= end || bytes[end - 1] !== 0x0a) {
      throw malformed('has a header that cannot be read');
    }
    into.set(bytes.toString('latin1', space + 1, equals), bytes.toString('latin1', equals + 1, end - 1));
    start = end;
  }
}

function checkSum(block: Buffer): void {
  let sum = 0;
  for (let index = 0; index < BLOCK; index += 1) sum += index >= 148 && index < 156 ? 0x20 : (block[index] ?? 0);
  if (octal(block, 148, 8) !== BigInt(sum)) throw malformed('has a header with a wrong checksum');
}

function padding(size: number): number {
  return (BLOCK - (size % BLOCK)) % BLOCK;
}

function text(block: Buffer, offset: number, length: number): BytePath {
  const field = block.subarray(offset, offset + length);
  const end = field.indexOf(0);
  return fromBytes(end < 0 ? field : field.subarray(0, end));
}

function plainName(block: Buffer): BytePath {
  const prefix = text(block, 345, 155);
  const name = text(block, 0, 100);
  return prefix === '' ? name : `${prefix}/${name}`;
}

function octal(block: Buffer, offset: number, length: number): bigint {
  if (((block[offset] ?? 0) & 0x80) !== 0) return base256(block.subarray(offset, offset + length));
  const digits = text(block, offset, length).trim();
  if (digits === '') return 0n;
  if (!/^[0-7]+$/.test(digits)) throw malformed('has a number that cannot be read');
  return BigInt(`0o${digits}`);
}

/** GNU's form for numbers that have no octal form, as before 1970. */
function base256(field: Buffer): bigint {
  const value = BigInt(`0x${field.toString('hex')}`);
  const bits = BigInt(field.length * 8);
  return BigInt.asIntN(field.length * 8, value & (1n << (bits - 2n)) ? value : value & ~(1n << (bits - 1n)));
}

function decimal(written: string): bigint {
  if (!/^[0-9]{1,20}$/.test(written)) throw malformed('has a number that cannot be read');
  return BigInt(written);
}

/** "-1.25" is a quarter of a second before the second before 1970. */
function nanoseconds(written: string): bigint {
  const parts = /^(-?)([0-9]{1,12})(?:\.([0-9]{1,20}))?$/.exec(written);
  if (parts === null) throw malformed('has a time that cannot be read');
  const whole = BigInt(parts[2] ?? '0') * 1_000_000_000n + BigInt((parts[3] ?? '').padEnd(9, '0').slice(0, 9));
  return parts[1] === '-' ? -whole : whole;
}

/** The path of an entry as the snapshot has it. */
export function snapshotPath(entry: Pick<TarEntry, 'path'>): BytePath {
  const path = entry.path.endsWith('/') ? entry.path.slice(0, -1) : entry.path;
  return path === '.' ? '' : path.startsWith('./') ? path.slice(2) : path;
}

import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { encodeNumber, type Field, fieldsOf, numberAt } from '#src/checkpoint/lazy/protobuf.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { isMissing } from './cgroup.ts';

/**
 * CRIU's image of open files: two magic numbers, then messages of Protocol Buffers, each after its length. A TCP socket in it
 * that is connected can only be restored where its address is; CRIU closes all of them or none.
 */
const MAGIC_BYTES = 8;
const LENGTH_BYTES = 4;
const COMMON_MAGIC = 0x54564319;
const FILES_MAGIC = 0x56303138;
/** Field of file_entry with an internet socket, and of inet_sk_entry with what is looked at here. */
const SOCKET = 4;
const PROTOCOL = 5;
const STATE = 6;
const OWN_PORT = 7;
const OTHER_PORT = 8;
const OWN_ADDRESS = 11;
const OTHER_ADDRESS = 12;
/** Third number of an address of the first kind written as one of the second, and last one of ::1. */
const MAPPED = 0xffff0000;
const LAST_OF_LOOPBACK = 0x01000000;
const SHUT = 19;
const VARINT = 0;
const BYTES = 2;
const TCP = 6;
const TCP_CLOSE = 7;
const SHUT_BOTH = 3;

/**
 * Of containers that are dumped together, connections stay that have both ends in them at addresses which are the same
 * anywhere. All others are restored as closed ones, also one that a neighbour had not accepted yet: nobody would ever answer.
 */
export async function closeForeign(imagesDirs: readonly string[]): Promise<void> {
  const images = await Promise.all(imagesDirs.map((directory) => readImage(join(directory, 'files.img'))));
  const known = images.filter((image) => image !== undefined);
  const ends = new Set(known.flatMap(({ path, bytes }) => localEnds(bytes, () => odd(path))));
  for (const { path, bytes } of known)
    await writeFile(
      path,
      withForeignClosed(bytes, ends, () => odd(path)),
    );
}

async function readImage(path: string): Promise<{ path: string; bytes: Buffer } | undefined> {
  try {
    return { path, bytes: await readFile(path) };
  } catch (error) {
    if (isMissing(error)) return undefined;
    throw error;
  }
}

interface Entry {
  from: number;
  to: number;
  /** The socket in it, and what the image says of it. */
  socket?: { at: Field; fields: Field[] };
}

function entriesOf(bytes: Buffer, unknown: () => Error): Entry[] {
  if (bytes.length < MAGIC_BYTES || bytes.readUInt32LE(0) !== COMMON_MAGIC || bytes.readUInt32LE(4) !== FILES_MAGIC) {
    throw unknown();
  }
  const entries: Entry[] = [];
  for (let at = MAGIC_BYTES; at < bytes.length; ) {
    if (at + LENGTH_BYTES > bytes.length) throw unknown();
    const from = at + LENGTH_BYTES;
    const to = from + bytes.readUInt32LE(at);
    const found = fieldsOf(bytes, from, to, unknown).find((field) => field.number === SOCKET && field.wire === BYTES);
    const fields = found === undefined ? [] : fieldsOf(bytes, found.from, found.to, unknown);
    const connected = found !== undefined && isConnected(bytes, fields);
    entries.push({ from, to, ...(connected ? { socket: { at: found, fields } } : {}) });
    at = to;
  }
  return entries;
}

/** Ends of connections over a loopback interface, each as its own address and the other's. */
export function localEnds(bytes: Buffer, unknown: () => Error): string[] {
  return entriesOf(bytes, unknown).flatMap(({ socket }) =>
    socket === undefined || !isLoopback(wordsOf(bytes, socket.fields, OWN_ADDRESS))
      ? []
      : [`${ownEnd(bytes, socket.fields)} ${otherEnd(bytes, socket.fields)}`],
  );
}

export function withForeignClosed(bytes: Buffer, ends: ReadonlySet<string>, unknown: () => Error): Buffer {
  const parts = entriesOf(bytes, unknown).flatMap(({ from, to, socket }) => {
    if (socket === undefined || ends.has(`${otherEnd(bytes, socket.fields)} ${ownEnd(bytes, socket.fields)}`)) {
      return [bytes.subarray(from - LENGTH_BYTES, to)];
    }
    const { at, fields } = socket;
    const body = Buffer.concat([...fields.map((field) => closed(bytes, field)), number(SHUT, SHUT_BOTH)]);
    const head = [encodeNumber(SOCKET * 8 + BYTES), encodeNumber(body.length)];
    const message = [bytes.subarray(from, at.at), ...head, body, bytes.subarray(at.to, to)];
    const length = Buffer.alloc(LENGTH_BYTES);
    length.writeUInt32LE(message.reduce((sum, part) => sum + part.length, 0));
    return [length, ...message];
  });
  return Buffer.concat([bytes.subarray(0, MAGIC_BYTES), ...parts]);
}

function valueOf(bytes: Buffer, fields: readonly Field[], wanted: number): number {
  const field = fields.find((one) => one.number === wanted);
  return field === undefined ? 0 : numberAt(bytes, field);
}

function isConnected(bytes: Buffer, fields: readonly Field[]): boolean {
  return valueOf(bytes, fields, PROTOCOL) === TCP && valueOf(bytes, fields, OTHER_PORT) !== 0;
}

function ownEnd(bytes: Buffer, fields: readonly Field[]): string {
  return `${asOne(wordsOf(bytes, fields, OWN_ADDRESS))}:${valueOf(bytes, fields, OWN_PORT)}`;
}

function otherEnd(bytes: Buffer, fields: readonly Field[]): string {
  return `${asOne(wordsOf(bytes, fields, OTHER_ADDRESS))}:${valueOf(bytes, fields, OTHER_PORT)}`;
}

/** An address: numbers of four bytes each, in the network's order. */
function wordsOf(bytes: Buffer, fields: readonly Field[], wanted: number): number[] {
  return fields.filter((one) => one.number === wanted).map((one) => numberAt(bytes, one));
}

/** Whoever listens at both kinds of addresses sees those of the first kind as some of the second. */
function asOne(words: readonly number[]): string {
  const mapped = words.length === 4 && words[0] === 0 && words[1] === 0 && words[2] === MAPPED;
  return (mapped ? words.slice(3) : words).join('.');
}

/** 127.0.0.0/8 or ::1. */
function isLoopback(words: readonly number[]): boolean {
  const [first, ...more] = asOne(words).split('.').map(Number);
  return more.length === 0 ? (first ?? 0) % 256 === 127 : [first, ...more].join('.') === `0.0.0.${LAST_OF_LOOPBACK}`;
}

/** Neither bound nor connected, and shut: whoever reads from it is told that its other end is gone. */
function closed(bytes: Buffer, field: Field): Buffer {
  if (field.number === STATE) return number(STATE, TCP_CLOSE);
  if (field.number === OWN_PORT || field.number === OTHER_PORT) return number(field.number, 0);
  return field.number === SHUT ? Buffer.alloc(0) : bytes.subarray(field.at, field.to);
}

function number(field: number, value: number): Buffer {
  return Buffer.concat([encodeNumber(field * 8 + VARINT), encodeNumber(value)]);
}

function odd(path: string): UmsError {
  return new UmsError('UMS_E_DUMP', {
    message: `${path} is not as this version of ums knows it`,
    fault: 'ums',
    mend: 'Report this with the output of `criu --version`.',
  });
}

import { createHash } from 'node:crypto';
import {
  closeSync,
  createReadStream,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  statSync,
  writeSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { constants, zstdCompressSync, zstdDecompressSync } from 'node:zlib';
import { z } from 'zod';
import { UmsError } from '#src/telemetry/errors.ts';

/**
 * CRIU's images other than memory pages, as one stream: a byte that says whether the rest is compressed, a length-prefixed
 * JSON manifest (name, size, SHA-256 of each file), then the files' bytes in that order. They are small: kilobytes a process, and the content of tmpfs mounts. They lie
 * in memory, where a synchronous call takes microseconds and an asynchronous one waits for its turn among threads; and
 * a service stands still meanwhile.
 */
const PART = '[a-zA-Z0-9][a-zA-Z0-9_.-]{0,200}';
/** A service of several containers has a directory for each. */
const NAME = new RegExp(`^(?:${PART}/)?${PART}$`);
const MANIFEST_LIMIT_BYTES = 16 * 1024 * 1024;
const FILES_MAX = 100_000;

const manifestSchema = z
  .array(z.object({ name: z.string().regex(NAME), size: z.int().min(0), sha256: z.string().regex(/^[0-9a-f]{64}$/) }))
  .max(FILES_MAX);
export type ImageManifest = z.infer<typeof manifestSchema>;

/**
 * So few bytes are sent as one zstd frame. They are mostly zeros, and what is left fits into the first window of a
 * connection: without that, over a long link, they would take several round trips, while a service stands still.
 */
const COMPRESSED_MAX_BYTES = 1024 * 1024;
const Encoding = { plain: 0, zstd: 1 } as const;

/** Files up to this size are read once and kept for sending; there are dozens of them, a kilobyte each. */
const SMALL_BYTES = 256 * 1024;

async function digest(path: string): Promise<string> {
  const hash = createHash('sha256');
  for await (const chunk of createReadStream(path, { highWaterMark: 1 << 20 })) hash.update(chunk);
  return hash.digest('hex');
}

interface ImageFile {
  entry: ImageManifest[number];
  content: Buffer | undefined;
}

async function readImage(directory: string, name: string): Promise<ImageFile | undefined> {
  const path = join(directory, name);
  const info = statSync(path);
  if (!info.isFile()) return undefined;
  if (info.size > SMALL_BYTES) {
    return { entry: { name, size: info.size, sha256: await digest(path) }, content: undefined };
  }
  const content = readFileSync(path);
  const sha256 = createHash('sha256').update(content).digest('hex');
  return { entry: { name, size: content.length, sha256 }, content };
}

/** What lies in a directory of images, and in those right below it. */
export function imageNames(directory: string): string[] {
  const entries = readdirSync(directory, { withFileTypes: true });
  const below = (name: string) => readdirSync(join(directory, name)).map((one) => `${name}/${one}`);
  return entries.flatMap((entry) => (entry.isDirectory() ? below(entry.name) : [entry.name])).sort();
}

async function readImages(directory: string): Promise<ImageFile[]> {
  const files: ImageFile[] = [];
  for (const name of imageNames(directory)) {
    const file = await readImage(directory, name);
    if (file !== undefined) files.push(file);
  }
  return files;
}

export async function imageManifest(directory: string): Promise<ImageManifest> {
  return manifestSchema.parse((await readImages(directory)).map((file) => file.entry));
}

export async function* sendImages(directory: string): AsyncGenerator<Uint8Array> {
  const files = await readImages(directory);
  const json = Buffer.from(JSON.stringify(manifestSchema.parse(files.map((file) => file.entry))));
  const length = Buffer.alloc(4);
  length.writeUInt32BE(json.length);
  const contents = files.map(({ content }) => content).filter((content) => content !== undefined);
  const total = contents.reduce((sum, content) => sum + content.length, length.length + json.length);
  if (contents.length === files.length && total <= COMPRESSED_MAX_BYTES) {
    const level = { params: { [constants.ZSTD_c_compressionLevel]: 1 } };
    const packed = zstdCompressSync(Buffer.concat([length, json, ...contents]), level);
    const head = Buffer.of(Encoding.zstd, 0, 0, 0, 0);
    head.writeUInt32BE(packed.length, 1);
    yield head;
    yield packed;
    return;
  }
  yield Buffer.of(Encoding.plain);
  yield length;
  yield json;
  for (const { entry, content } of files) {
    if (content !== undefined) {
      yield content;
      continue;
    }
    for await (const chunk of createReadStream(join(directory, entry.name), { highWaterMark: 1 << 20 })) {
      yield z.instanceof(Buffer).parse(chunk);
    }
  }
}

/** Reads exact counts out of a stream of arbitrary chunks. */
class ExactReader {
  readonly #source: AsyncIterator<Uint8Array>;
  #rest: Uint8Array = new Uint8Array(0);

  constructor(source: AsyncIterable<Uint8Array>) {
    this.#source = source[Symbol.asyncIterator]();
  }

  /** The next at most `count` bytes, or undefined at the end of the stream. */
  async some(count: number): Promise<Uint8Array | undefined> {
    while (this.#rest.length === 0) {
      const next = await this.#source.next();
      if (next.done === true) return undefined;
      this.#rest = next.value;
    }
    const part = this.#rest.subarray(0, count);
    this.#rest = this.#rest.subarray(part.length);
    return part;
  }

  async exactly(count: number): Promise<Buffer> {
    const parts: Uint8Array[] = [];
    let missing = count;
    while (missing > 0) {
      const part = await this.some(missing);
      if (part === undefined) throw corrupt('the stream ended too early');
      parts.push(part);
      missing -= part.length;
    }
    return Buffer.concat(parts);
  }
}

/** Writes the files of a stream made by `sendImages`; every one is checked against the manifest as it is written. */
export async function receiveImages(
  directory: string,
  body: AsyncIterable<Uint8Array>,
  limitBytes: number,
): Promise<ImageManifest> {
  const reader = await decoded(new ExactReader(body));
  const length = (await reader.exactly(4)).readUInt32BE();
  if (length > MANIFEST_LIMIT_BYTES) throw corrupt(`the manifest claims ${length} bytes`);
  const parsed = manifestSchema.safeParse(parseJson((await reader.exactly(length)).toString('utf8')));
  if (!parsed.success) throw corrupt(`the manifest is malformed: ${parsed.error.issues[0]?.message ?? 'unknown'}`);
  const total = parsed.data.reduce((sum, entry) => sum + entry.size, 0);
  if (total > limitBytes) throw noRoom(total, limitBytes);
  for (const entry of parsed.data) await receiveOne(directory, entry, reader);
  if ((await reader.some(1)) !== undefined) throw corrupt('bytes follow the last image');
  return parsed.data;
}

async function decoded(reader: ExactReader): Promise<ExactReader> {
  const [encoding] = await reader.exactly(1);
  if (encoding === Encoding.plain) return reader;
  if (encoding !== Encoding.zstd) throw corrupt('they are encoded in an unknown way');
  const length = (await reader.exactly(4)).readUInt32BE();
  if (length > 2 * COMPRESSED_MAX_BYTES) throw corrupt(`they claim ${length} compressed bytes`);
  const packed = await reader.exactly(length);
  if ((await reader.some(1)) !== undefined) throw corrupt('bytes follow the last image');
  try {
    return new ExactReader(oneOf(zstdDecompressSync(packed, { maxOutputLength: COMPRESSED_MAX_BYTES })));
  } catch (error) {
    throw corrupt(`they cannot be decompressed: ${error instanceof Error ? error.message : String(error)}`);
  }
}

async function* oneOf(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield bytes;
}

async function receiveOne(directory: string, entry: ImageManifest[number], reader: ExactReader): Promise<void> {
  const hash = createHash('sha256');
  if (entry.name.includes('/')) mkdirSync(dirname(join(directory, entry.name)), { recursive: true, mode: 0o700 });
  const file = openSync(join(directory, entry.name), 'w', 0o600);
  try {
    let missing = entry.size;
    while (missing > 0) {
      const part = await reader.some(missing);
      if (part === undefined) throw corrupt(`${entry.name} is cut off`);
      hash.update(part);
      for (let done = 0; done < part.length; ) done += writeSync(file, part, done);
      missing -= part.length;
    }
  } finally {
    closeSync(file);
  }
  if (hash.digest('hex') !== entry.sha256) throw corrupt(`${entry.name} was altered on the way`);
}

/** Checks the images on disk against the manifest they came with, right before they are restored from. */
export async function verifyImages(directory: string, manifest: ImageManifest): Promise<void> {
  for (const entry of manifest) await verifyOne(directory, entry);
}

async function verifyOne(directory: string, entry: ImageManifest[number]): Promise<void> {
  const found = await readImage(directory, entry.name).catch((error: unknown) => {
    throw corrupt(`${entry.name} is missing (${error instanceof Error ? error.message : String(error)})`);
  });
  if (found?.entry.size !== entry.size) {
    throw corrupt(`${entry.name} has ${found?.entry.size ?? 'no'} bytes instead of ${entry.size}`);
  }
  if (found.entry.sha256 !== entry.sha256) throw corrupt(`${entry.name} was altered`);
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw corrupt(`the manifest is not JSON (${error instanceof Error ? error.message : String(error)})`);
  }
}

function noRoom(total: number, limit: number): UmsError {
  return new UmsError('UMS_E_NO_ROOM', {
    message: `The images of the service’s memory have ${total} bytes, and there is room for ${limit}.`,
    fault: 'destination',
    state: 'Nothing was written.',
    mend: 'Free memory at the destination, end other migrations to it, or choose another system.',
  });
}

function corrupt(what: string): UmsError {
  return new UmsError('UMS_E_IMAGE_CORRUPT', {
    message: `A checkpoint image is truncated or altered: ${what}.`,
    fault: 'network',
    state: 'Nothing was restored from it.',
    mend: 'Try again; if it happens again, check the memory and disk of both hosts.',
  });
}

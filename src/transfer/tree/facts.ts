import { fileURLToPath } from 'node:url';
import { UmsError } from '#src/telemetry/errors.ts';
import { ByteReader } from './byte-reader.ts';
import { StreamingChild } from './child.ts';
import { type BytePath, toBytes, toText } from './paths.ts';

const SCRIPT = fileURLToPath(new URL('./facts.pl', import.meta.url));
/** As facts.pl and apply.pl know the system calls of. */
const KNOWN_PROCESSORS = new Set(['x64', 'arm64']);
const ANSWER_LIMIT_BYTES = 2 * 1024 * 1024;

/** Asks facts.pl (see there) for extended attributes; the program is started with the first question, or before. */
export class Facts {
  /** Parts of files can only be written where the attributes can be read and set. */
  static readonly isPossible = KNOWN_PROCESSORS.has(process.arch);
  #child: StreamingChild | undefined;
  #reader: ByteReader | undefined;

  start(): void {
    if (this.#child !== undefined) return;
    this.#child = new StreamingChild('perl', [SCRIPT], { signal: undefined, isHarmless: () => false });
    this.#reader = new ByteReader(chunks(this.#child), Number.MAX_SAFE_INTEGER);
  }

  /** One at a time. */
  async attributes(full: BytePath): Promise<Buffer> {
    this.start();
    const path = toBytes(full);
    const head = Buffer.alloc(4);
    head.writeUInt32LE(path.length);
    try {
      await this.#child?.write(Buffer.concat([head, path]));
      const size = (await this.#reader?.read(4))?.readUInt32LE() ?? 0;
      if (size <= ANSWER_LIMIT_BYTES && this.#reader !== undefined) return await this.#reader.read(size);
    } catch {
      // It ended, and has said why.
    }
    this.#child?.kill();
    const end = await this.#child?.end();
    throw new UmsError('UMS_E_TRANSFER', {
      message: `cannot read the extended attributes of ${toText(full)}: ${end?.complaints[0] ?? 'no reason given'}`,
      fault: 'source',
      mend: 'Look at the file named, then run the migration again.',
    });
  }

  close(): void {
    this.#child?.kill();
    this.#child = undefined;
  }
}

async function* chunks(child: StreamingChild): AsyncGenerator<Uint8Array, void, undefined> {
  for await (const chunk of child.output) if (chunk instanceof Uint8Array) yield chunk;
}

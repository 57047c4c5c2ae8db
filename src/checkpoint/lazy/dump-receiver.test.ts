import { duplexPair } from 'node:stream';
import { describe, expect, it } from 'vitest';
import { PAGE_BYTES } from '#src/transfer/pages/model.ts';
import { receiveDump } from './dump-receiver.ts';
import { COMMAND, headerLayout, PE_LAZY, PE_PRESENT } from './protocol.ts';

function message(version: string, command: number, pages = 0, first = 0, target = 0x701n, flags = 0): Buffer {
  const layout = headerLayout(version);
  const bytes = Buffer.alloc(layout.bytes);
  layout.write({ command, flags, pages, address: first * PAGE_BYTES, target }, bytes, 0);
  return bytes;
}

interface Seen {
  what: string;
  space: string;
  first: number;
  bytes: number;
  flags: number;
}

async function dump(
  version: string,
  parts: readonly Buffer[],
  cut: number,
): Promise<{ seen: Seen[]; answers: Buffer }> {
  const [ours, theirs] = duplexPair();
  const answers: Buffer[] = [];
  theirs.on('data', (chunk: Buffer) => answers.push(chunk));
  const all = Buffer.concat(parts);
  for (let at = 0; at < all.length; at += cut) theirs.write(all.subarray(at, at + cut));
  theirs.end();
  const seen: Seen[] = [];
  await receiveDump(ours, version, {
    open: (space) => {
      seen.push({ what: 'open', space, first: 0, bytes: 0, flags: 0 });
      return space.startsWith('image:');
    },
    pages: (space, first, content, flags) => {
      const same = content.every((byte) => byte === content[0]);
      seen.push({ what: same ? `pages of ${content[0]}` : 'pages', space, first, bytes: content.length, flags });
    },
    without: (space, range, flags) => {
      seen.push({ what: 'without', space, first: range.first, bytes: range.count * PAGE_BYTES, flags });
    },
  });
  await new Promise((resolve) => setImmediate(resolve));
  return { seen, answers: Buffer.concat(answers) };
}

describe.each(['4.1.1', '4.2.1'])("a dump in the protocol of CRIU %s's", (version) => {
  const SHARED = 0x502n;
  const parts = [
    message(version, COMMAND.open2),
    message(version, COMMAND.addFlags, 300, 16, 0x701n, PE_PRESENT),
    Buffer.alloc(300 * PAGE_BYTES, 9),
    message(version, COMMAND.addFlags, 7, 400, 0x701n, PE_LAZY),
    message(version, COMMAND.hole, 2, 500),
    message(version, COMMAND.parent, 0, 0, SHARED),
    message(version, COMMAND.open2, 0, 0, SHARED),
    message(version, COMMAND.add, 1, 0, SHARED),
    Buffer.alloc(PAGE_BYTES, 5),
    message(version, COMMAND.close),
  ];

  it.each([1000, 4096, 10_000_000])('is taken in pieces, whatever pieces of %i bytes it comes in', async (cut) => {
    const { seen, answers } = await dump(version, parts, cut);
    const process = 'process:7';
    const shared = 'image:pagemap-shmem-5.img';
    const mib = 1 << 20;
    expect(seen).toEqual([
      { what: 'open', space: process, first: 0, bytes: 0, flags: 0 },
      { what: 'pages of 9', space: process, first: 16, bytes: mib, flags: PE_PRESENT },
      { what: 'pages of 9', space: process, first: 16 + 256, bytes: 300 * PAGE_BYTES - mib, flags: PE_PRESENT },
      { what: 'without', space: process, first: 400, bytes: 7 * PAGE_BYTES, flags: PE_LAZY },
      { what: 'without', space: process, first: 500, bytes: 2 * PAGE_BYTES, flags: 1 },
      { what: 'open', space: shared, first: 0, bytes: 0, flags: 0 },
      { what: 'open', space: shared, first: 0, bytes: 0, flags: 0 },
      { what: 'pages of 5', space: shared, first: 0, bytes: PAGE_BYTES, flags: PE_PRESENT },
    ]);
    expect(answers).toEqual(Buffer.from([0, 1, 0, 0, 0, 1, 0, 0, 0, 0]));
  });

  it('is refused when it is cut short, of an unknown command or beyond limits', async () => {
    await expect(dump(version, parts.slice(0, -1), 4096)).rejects.toThrow('ended before');
    await expect(dump(version, [message(version, 99)], 4096)).rejects.toThrow('unknown');
    await expect(dump(version, [message(version, COMMAND.open2, 0, 0, 0x703n)], 4096)).rejects.toThrow('unknown type');
    await expect(dump(version, [message(version, COMMAND.addFlags, 0, 1)], 4096)).rejects.toThrow('limit');
  });
});

describe('a slow sink', () => {
  it('stops the dump', async () => {
    const [ours, theirs] = duplexPair({ highWaterMark: PAGE_BYTES });
    const { promise: gate, resolve: open } = Promise.withResolvers<void>();
    const received = receiveDump(ours, '4.2', { open: () => false, pages: () => gate, without: () => undefined });
    theirs.write(message('4.2', COMMAND.addFlags, 512, 0, 0x101n, PE_PRESENT));
    theirs.write(Buffer.alloc(256 * PAGE_BYTES));
    theirs.write(Buffer.alloc(256 * PAGE_BYTES));
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(ours.readableLength + theirs.writableLength).toBeGreaterThanOrEqual(256 * PAGE_BYTES);
    open();
    theirs.end(message('4.2', COMMAND.forceClose));
    await received;
  });
});

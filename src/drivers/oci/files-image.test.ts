import { describe, expect, it } from 'vitest';
import { encodeNumber, fieldsOf, numberAt } from '#src/checkpoint/lazy/protobuf.ts';
import { localEnds, withForeignClosed } from './files-image.ts';

const odd = () => new Error('odd');
const varint = (field: number, value: number) => Buffer.concat([encodeNumber(field * 8), encodeNumber(value)]);
const message = (field: number, body: Buffer) =>
  Buffer.concat([encodeNumber(field * 8 + 2), encodeNumber(body.length), body]);

interface Socket {
  proto?: number;
  state?: number;
  own: [address: number[], port: number];
  other: [address: number[], port: number];
}

/** file_entry with an inet_sk_entry, as far as it matters, and something unknown around it. */
function entry({ proto = 6, state = 1, own, other }: Socket): Buffer {
  const numbers: [field: number, value: number][] = [
    [1, 7],
    [2, 300],
    [3, 2],
    [4, 1],
    [5, proto],
    [6, state],
    [7, own[1]],
    [8, other[1]],
    [9, 2],
    [10, 0],
  ];
  const socket = [
    ...numbers.map(([field, value]) => varint(field, value)),
    ...own[0].map((word) => varint(11, word)),
    ...other[0].map((word) => varint(12, word)),
    message(13, varint(1, 0)),
    varint(19, 1),
  ];
  return Buffer.concat([varint(1, 4), varint(2, 7), message(4, Buffer.concat(socket)), varint(99, 1)]);
}

function lengthOf(body: Buffer): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(body.length);
  return bytes;
}

function image(...entries: Buffer[]): Buffer {
  const magic = Buffer.alloc(8);
  magic.writeUInt32LE(0x54564319, 0);
  magic.writeUInt32LE(0x56303138, 4);
  return Buffer.concat([magic, ...entries.flatMap((body) => [lengthOf(body), body])]);
}

const LOCAL = [0x0100007f];
const POD = [0x0202f40a];
const LOCAL_6 = [0, 0, 0, 0x01000000];
const MAPPED = [0, 0, 0xffff0000, 0x0100007f];

/** One image after what was in all of them has been seen. */
function closedIn(whole: Buffer, ...others: Buffer[]): Buffer {
  return withForeignClosed(whole, new Set([whole, ...others].flatMap((one) => localEnds(one, odd))), odd);
}

describe('an image of open files', () => {
  it('keeps connections of which both ends are there, to the byte', () => {
    const server = image(
      entry({ own: [LOCAL, 5000], other: [LOCAL, 40_000] }),
      entry({ own: [LOCAL_6, 5000], other: [LOCAL_6, 40_001] }),
      entry({ own: [MAPPED, 5000], other: [MAPPED, 40_002] }),
    );
    const client = image(
      entry({ own: [LOCAL, 40_000], other: [LOCAL, 5000] }),
      entry({ own: [LOCAL_6, 40_001], other: [LOCAL_6, 5000] }),
      entry({ own: [LOCAL, 40_002], other: [LOCAL, 5000] }),
    );
    expect(closedIn(server, client)).toEqual(server);
    expect(closedIn(client, server)).toEqual(client);
    expect(closedIn(client)).not.toEqual(client);
  });

  it('keeps what is not connected, and what is not TCP', () => {
    const listening = entry({ own: [[0], 5000], other: [[0], 0], state: 10 });
    const datagrams = entry({ own: [POD, 5000], other: [POD, 53], proto: 17 });
    const whole = image(listening, datagrams, Buffer.concat([varint(1, 1), varint(2, 9)]));
    expect(closedIn(whole)).toEqual(whole);
  });

  it('has every other connection closed and shut, and nothing else altered', () => {
    const around = entry({ own: [LOCAL, 5000], other: [LOCAL, 40_000] });
    const neighbour = image(entry({ own: [LOCAL, 40_000], other: [LOCAL, 5000] }));
    // Both ends are there, but not the address.
    const there = entry({ own: [POD, 5000], other: [POD, 40_000] });
    const back = image(entry({ own: [POD, 40_000], other: [POD, 5000] }));
    const made = closedIn(image(around, there), neighbour, back);
    const from = 8 + 4 + around.length;
    expect(made.subarray(0, from)).toEqual(image(around));
    const at = from + 4;
    const to = at + made.readUInt32LE(from);
    expect(to).toBe(made.length);
    const fields = fieldsOf(made, at, to, odd);
    expect(fields.map(({ number }) => number)).toEqual([1, 2, 4, 99]);
    const socket = fields[2];
    if (socket === undefined) throw new Error('no socket');
    const inner = fieldsOf(made, socket.from, socket.to, odd);
    const value = (number: number) => inner.filter((one) => one.number === number).map((one) => numberAt(made, one));
    expect([6, 7, 8, 19].map(value)).toEqual([[7], [0], [0], [3]]);
    expect([1, 2, 3, 4, 5, 9, 10, 11].map(value)).toEqual([[7], [300], [2], [1], [6], [2], [0], POD]);
  });

  it('is refused when it is none', () => {
    const whole = image(entry({ own: [POD, 1], other: [POD, 2] }));
    expect(() => closedIn(Buffer.from('none'))).toThrow('odd');
    expect(() => closedIn(whole.subarray(0, whole.length - 3))).toThrow('odd');
    expect(() => closedIn(whole.subarray(0, 10))).toThrow('odd');
  });
});

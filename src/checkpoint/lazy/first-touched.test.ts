import { expect, it } from 'vitest';
import { areasOf, pagesOfThread } from './first-touched.ts';

const number = (value: number): number[] =>
  value < 128 ? [value] : [(value % 128) + 128, ...number(Math.floor(value / 128))];
const plain = (field: number, value: number): number[] => [...number(field * 8), ...number(value)];
const inside = (field: number, body: number[]): number[] => [...number(field * 8 + 2), ...number(body.length), ...body];

function image(body: number[]): Buffer {
  const head = Buffer.alloc(12);
  head.writeUInt32LE(body.length, 8);
  return Buffer.concat([head, Buffer.from(body)]);
}

const X86 = [
  ...plain(1, 1),
  ...inside(2, [
    ...plain(1, 0x7f0000001010),
    ...inside(2, [...plain(20, 0x7ffe00003f10), ...plain(22, 0x7f0000002700)]),
  ]),
  ...inside(5, [...plain(1, 0x7f0000009000), ...inside(15, [...plain(1, 0x7f0000003020), ...plain(2, 32)])]),
];

it('finds what the kernel writes, the data of the thread and the frames above its stack pointer', () => {
  expect(pagesOfThread(image(X86))).toEqual([0x7f0000003, 0x7f0000002, 0x7ffe00004]);
  const arm = inside(8, [...plain(2, 0x5000), ...inside(3, plain(2, 0x9fff))]);
  expect(pagesOfThread(image(arm))).toEqual([5, 10]);
});

it('takes what it does not understand for nothing', () => {
  expect(pagesOfThread(Buffer.alloc(0))).toEqual([]);
  const whole = image(X86);
  for (let cut = 0; cut < whole.length; cut += 1) expect(pagesOfThread(whole.subarray(0, cut))).toEqual([]);
});

it('finds the pages with arguments and environment', () => {
  const body = [
    ...plain(1, 0x400000),
    ...plain(8, 0x7ffe00001ff0),
    ...plain(9, 0x7ffe00002001),
    ...plain(10, 0x7ffe00002001),
    ...plain(11, 0x7ffe00003000),
    ...inside(14, plain(1, 0x400000)),
  ];
  expect(areasOf(image(body))).toEqual([
    { first: 0x7ffe00001, count: 2 },
    { first: 0x7ffe00002, count: 1 },
  ]);
  // A process may have taken them away (prctl(2), PR_SET_MM), and may claim the whole of its memory to be such.
  expect(areasOf(image([...plain(8, 0), ...plain(9, 0)]))).toEqual([]);
  expect(areasOf(image([...plain(8, 0x1000), ...plain(9, 0x7ffe00000000)]))).toEqual([{ first: 1, count: 512 }]);
  const whole = image(body);
  for (let cut = 0; cut < whole.length; cut += 1) expect(areasOf(whole.subarray(0, cut))).toEqual([]);
});

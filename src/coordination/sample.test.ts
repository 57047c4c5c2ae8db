import { randomFillSync } from 'node:crypto';
import { expect, it } from 'vitest';
import { PAGE_BYTES } from '#src/transfer/pages/model.ts';
import { TakenPages } from './sample.ts';

const PAGES = 65_536;

it('sees how much of a process has changed since, however long ago that was', async () => {
  const memory = Buffer.allocUnsafeSlow(PAGES * PAGE_BYTES);
  randomFillSync(memory);
  const taken = await TakenPages.take([process.pid], new AbortController().signal);
  try {
    // All that runs beside the test is in the same process, but it is little beside this buffer.
    const before = await taken.changed();
    expect(taken.present_bytes).toBeGreaterThan(memory.length);
    expect(before.bytes).toBeLessThan(memory.length / 10);
    for (let page = 0; page < PAGES; page += 2)
      memory.writeUInt8((memory[page * PAGE_BYTES] ?? 0) ^ 1, page * PAGE_BYTES);
    const after = await taken.changed();
    expect(after.elapsed_ms).toBeGreaterThan(before.elapsed_ms);
    expect(after.bytes).toBeGreaterThan(memory.length * 0.4);
    expect(after.bytes).toBeLessThan(memory.length * 0.6 + before.bytes);
  } finally {
    taken.close();
  }
});

it('stops looking at once when nobody wants to know any more', async () => {
  const memory = Buffer.allocUnsafeSlow(PAGES * PAGE_BYTES).fill(1);
  const stop = new AbortController();
  const taking = TakenPages.take([process.pid], stop.signal);
  stop.abort(new Error('not wanted'));
  await expect(taking).rejects.toThrow('not wanted');
  expect(memory.length).toBe(PAGES * PAGE_BYTES);
});

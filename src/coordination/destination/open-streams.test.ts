import { describe, expect, it } from 'vitest';
import { OpenStreams } from './open-streams.ts';

describe('streams of a migration', () => {
  it('are open until the last of them has ended, well or not', async () => {
    const streams = new OpenStreams();
    const [first, second] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
    let closed = 0;
    const count = () => {
      closed += 1;
    };
    const one = streams.during('a', () => first.promise, count);
    const other = streams.during('a', () => second.promise, count);
    expect([streams.has('a'), streams.has('b')]).toEqual([true, false]);
    first.reject(new Error('the connection broke'));
    await expect(one).rejects.toThrow('the connection broke');
    expect([streams.has('a'), closed]).toEqual([true, 1]);
    second.resolve();
    await other;
    expect([streams.has('a'), closed]).toEqual([false, 2]);
  });
});

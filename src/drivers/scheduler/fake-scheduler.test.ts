import { afterEach, describe, expect, it } from 'vitest';
import { type Exchange, fakeScheduler, type FakeScheduler } from './fake-scheduler.ts';

function reading(path: string, body: unknown): Exchange {
  return { case: 'c', request: { method: 'GET', path, headers: {} }, response: { status: 200, headers: {}, body } };
}

function change(path: string, sent: unknown): Exchange {
  const request = { method: 'POST', path, headers: { token: 'x' }, body: sent } as const;
  return { case: 'c', request, response: { status: 200, headers: {}, body: 'done' } };
}

const CONTRACT = [
  reading('/who', 'me'),
  reading('/state', 'first'),
  reading('/state', 'second'),
  change('/begin', { n: 1 }),
  reading('/state', 'third'),
  change('/end', {}),
];

let fake: FakeScheduler | undefined;
afterEach(() => fake?.close());

async function begin() {
  fake = await fakeScheduler(CONTRACT, 'c');
  const { address, complaints, left } = fake;
  const get = async (path: string) => (await fetch(`${address}${path}`)).text();
  const post = async (path: string, body: unknown, token = 'x') =>
    (await fetch(`${address}${path}`, { method: 'POST', headers: { token }, body: JSON.stringify(body) })).status;
  return { get, post, complaints, left };
}

describe('a fake scheduler', () => {
  it('gives its answers in their order, each change once', async () => {
    const { get, post, complaints, left } = await begin();
    expect([await get('/state'), await get('/state'), await get('/state')]).toEqual(['first', 'second', 'second']);
    expect(await post('/begin', { n: 1 })).toBe(200);
    expect([await get('/state'), await get('/who')]).toEqual(['third', 'me']);
    expect([complaints, left()]).toEqual([[], ['POST /end']]);
    expect(await post('/begin', { n: 1 })).toBe(501);
    expect(complaints).toEqual([expect.stringMatching(/POST \/begin is not in the contract here/)]);
  });

  it('complains of what its contract has not: another path, another body, no token', async () => {
    const { get, post, complaints, left } = await begin();
    await get('/other');
    await post('/begin', { n: 2 });
    expect(left()).toEqual(['POST /begin', 'POST /end']);
    await post('/begin', { n: 1 }, 'y');
    expect(complaints).toEqual([
      expect.stringMatching(/GET \/other is not in the contract/),
      expect.stringMatching(/\{"n":2\}/),
      expect.stringMatching(/has not the header token/),
    ]);
  });
});

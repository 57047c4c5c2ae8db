import { expect, it } from 'vitest';
import { Passes } from './passes.ts';

it('waits for as many passes as are told, whenever they come', async () => {
  const passes = new Passes();
  passes.applied();
  await passes.wait(1);
  let done = false;
  const waiting = passes.wait(3).then(() => (done = true));
  passes.applied();
  await Promise.resolve();
  expect(done).toBe(false);
  passes.applied();
  await waiting;
});

it('tells whoever waits that no more will come, and whoever asks later', async () => {
  const passes = new Passes();
  const waiting = passes.wait(2);
  passes.applied();
  passes.end();
  await expect(waiting).rejects.toMatchObject({ code: 'UMS_E_TRANSFER' });
  await expect(passes.wait(2)).rejects.toMatchObject({ code: 'UMS_E_TRANSFER' });
  await expect(passes.wait(1)).resolves.toBeUndefined();
});

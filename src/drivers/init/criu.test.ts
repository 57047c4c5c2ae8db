import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { expect, test } from 'vitest';
import { requireFree } from './criu.ts';

test('an id that is taken here is told with the name of who has it', async () => {
  const child = spawn('sleep', ['100'], { stdio: 'ignore' });
  const ended = once(child, 'exit');
  await once(child, 'spawn');
  const id = child.pid ?? 0;
  await expect(requireFree([id], 50)).rejects.toMatchObject({
    code: 'UMS_E_RESTORE',
    message: expect.stringContaining(`${id} (sleep)`),
  });
  // Whoever ends meanwhile is waited for.
  const waiting = requireFree([id], 5000);
  child.kill('SIGKILL');
  await ended;
  await expect(waiting).resolves.toBeUndefined();
});

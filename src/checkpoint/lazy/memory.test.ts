import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { run } from '#src/telemetry/exec.ts';

const CHECK = fileURLToPath(new URL('perl/memory.check.pl', import.meta.url));

describe("the pager's account of what is filled", () => {
  it.each([1, 2, 3])('holds under random changes of the address space (seed %i)', async (seed) => {
    const { stdout } = await run('perl', [CHECK, String(seed), '10']);
    expect(stdout).toBe('ok\n');
  });
});

import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

/**
 * CRIU moves pages through pipes and wants them large. A process without CAP_SYS_RESOURCE may not exceed the machine's
 * limit, so the lab raises it, remembers what it was, and the last lab to go down sets it back.
 */
const LIMIT = '/proc/sys/fs/pipe-max-size';
const WANTED_BYTES = 16 * 1024 * 1024;
const MEMORY = '.pipe-max-size.before';

export function raisePipeLimit(base: string): void {
  const current = readFileSync(LIMIT, 'utf8').trim();
  if (Number(current) >= WANTED_BYTES) return;
  mkdirSync(base, { recursive: true });
  try {
    if (!existsSync(join(base, MEMORY))) writeFileSync(join(base, MEMORY), current);
    writeFileSync(LIMIT, String(WANTED_BYTES));
  } catch {
    // Where the machine does not allow it, `ums doctor` says what that costs; nothing in the lab itself depends on it.
    rmSync(join(base, MEMORY), { force: true });
  }
}

export function restorePipeLimit(base: string): void {
  const memory = join(base, MEMORY);
  if (!existsSync(memory)) return;
  const labs = readdirSync(base).filter((name) => !name.startsWith('.'));
  if (labs.length > 0) return;
  writeFileSync(LIMIT, readFileSync(memory, 'utf8'));
  rmSync(memory);
}

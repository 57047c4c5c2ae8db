import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { parseCgroups } from './cgroup.ts';

/** The kernel keeps moves quick for about ten milliseconds after one. */
const INTERVAL_MS = 4;
const LIMIT_MS = 10_000;
const ROOTS = ['/sys/fs/cgroup', '/sys/fs/cgroup/unified'];

/**
 * Moving a process into a control group waits for an RCU grace period (11 ms here), unless another move has waited for one
 * just before (then 0.1 ms). CRIU moves what it restores, while the service stands still. So from the preparation of a
 * restore to its end this process is moved, again and again, to where it is.
 */
export class QuickMoves {
  #until_ms = 0;
  #active = false;

  start(): void {
    this.#until_ms = performance.now() + LIMIT_MS;
    if (this.#active) return;
    this.#active = true;
    void this.#run().finally(() => {
      this.#active = false;
    });
  }

  stop(): void {
    this.#until_ms = 0;
  }

  async #run(): Promise<void> {
    const file = await ownGroup();
    if (file === undefined) return;
    while (performance.now() < this.#until_ms) {
      try {
        await writeFile(file, String(process.pid), { flag: 'r+' });
      } catch {
        // It was to help only.
        return;
      }
      await new Promise((resolve) => setTimeout(resolve, INTERVAL_MS));
    }
  }
}

async function ownGroup(): Promise<string | undefined> {
  const { unified } = parseCgroups(await readFile('/proc/self/cgroup', 'utf8'));
  if (unified === undefined) return undefined;
  for (const root of ROOTS) {
    const file = join(root, unified, 'cgroup.procs');
    const there = await readFile(file, 'utf8').catch(() => undefined);
    if (there?.split('\n').includes(String(process.pid)) === true) return file;
  }
  return undefined;
}

import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { Machine } from '#lab/vm/machine.ts';

/**
 * The tracker that uses the kernel's soft-dirty bits, where a kernel has them: in an emulated machine with Debian's stock
 * kernel. What it needs is fetched and built once and kept in the cache (qemu from Debian if it is missing, the kernel,
 * disks made of the lab's root file system). Emulation is some ten times slower than the machine itself, which
 * UMS_LAB_PATIENCE tells the lab in there. UMS_VM_TECHNIQUES, UMS_VM_ENGINES and UMS_MOSAIC_SEEDS choose cases.
 */
const BOOT_LIMIT_MS = 600_000;
const COMMAND_LIMIT_MS = 120_000;
const TRACKING_LIMIT_MS = 300_000;
const MIGRATIONS_LIMIT_MS = 600_000;
const ROUNDS = 3;
const SEEDS = (process.env['UMS_MOSAIC_SEEDS'] ?? '1').split(',');
const TECHNIQUES = process.env['UMS_VM_TECHNIQUES'] ?? 'pre-copy,hybrid';
const ENGINES = process.env['UMS_VM_ENGINES'] ?? 'runc';
const NODE = 'node --disable-warning=ExperimentalWarning';
const PATIENCE = 10;

let machine: Machine;

before(
  async () => {
    machine = await Machine.boot((line) => process.stderr.write(`${line}\n`));
  },
  { timeout: BOOT_LIMIT_MS },
);

after(async () => machine?.stop());

async function succeeds(script: string, limit_ms: number): Promise<string> {
  const { exitCode, output } = await machine.run(script, limit_ms);
  assert.equal(exitCode, 0, `${script}\n${output.slice(-8000)}\n${machine.console.slice(-1000)}`);
  return output;
}

void describe('soft-dirty, in a machine with a stock kernel', () => {
  void it('has it, and CRIU is content', { timeout: COMMAND_LIMIT_MS }, async (context) => {
    const output = await succeeds('uname -r; criu check --feature mem_dirty_track; criu check', COMMAND_LIMIT_MS);
    assert.match(output, /mem_dirty_track is supported/);
    context.diagnostic(`kernel ${output.split('\n')[0]}`);
  });

  for (const seed of SEEDS) {
    void it(`keeps a copy that equals the memory, seed ${seed}`, { timeout: TRACKING_LIMIT_MS }, async (context) => {
      const load = "UMS_TRACKING_LOAD='--rate 200 --churn 20 --forks 0 --children 2 --threads 1'";
      const command = `test/e2e/support/tracking-command.ts soft-dirty ${seed} ${ROUNDS}`;
      const output = await succeeds(`${load} ${NODE} ${command}`, TRACKING_LIMIT_MS);
      context.diagnostic(output.trim().split('\n').at(-1) ?? '');
    });
  }

  void it(`moves mosaic, ${TECHNIQUES}, every byte right`, { timeout: MIGRATIONS_LIMIT_MS }, async (context) => {
    const cases = `UMS_MOSAIC_TRACKERS=soft-dirty UMS_MOSAIC_TECHNIQUES=${TECHNIQUES} UMS_MOSAIC_ENGINES=${ENGINES}`;
    const limits = `UMS_LAB=vm UMS_LAB_PATIENCE=${PATIENCE} UMS_MOSAIC_SEEDS=${SEEDS.join(',')} UMS_MOSAIC_ONE_WAY=1`;
    const test = 'test/e2e/memory-equality.e2e.ts';
    const pattern = '--test-name-pattern=seed';
    const output = await succeeds(`${cases} ${limits} ${NODE} --test ${pattern} ${test}`, MIGRATIONS_LIMIT_MS);
    const moved = output.split('\n').filter((line) => line.includes('"tracker":"soft-dirty"'));
    assert.ok(moved.length >= TECHNIQUES.split(',').length, 'each migration says that it tracked by soft-dirty bits');
    for (const line of moved) context.diagnostic(line.trim());
  });
});

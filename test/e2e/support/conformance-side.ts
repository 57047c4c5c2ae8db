import assert from 'node:assert/strict';
import type { Host } from '#lab/host.ts';
import type { ConformanceSide } from '#src/drivers/conformance.ts';
import type { EngineName, Tree } from '#src/drivers/contract.ts';
import { until } from './moves.ts';
import { RemoteDriver } from './remote-driver.ts';

const START_LIMIT_MS = 15_000;
/** What every engine's service of the conformance suite runs. */
export const PROGRAM = ['memhog', '4', '100', '/tmp/ticks'];

export async function lines(host: Host, script: string, ...args: string[]): Promise<string[]> {
  const { stdout } = await host.exec('sh', ['-c', script, 'sh', ...args], { timeout_ms: 30_000 });
  return stdout.split('\n').filter((line) => line !== '');
}

/** One host with one engine's driver: what the suite needs of it besides. */
export abstract class Side implements ConformanceSide {
  readonly host: Host;
  readonly driver: RemoteDriver;

  constructor(host: Host, engine: EngineName, options: { kept?: boolean } = {}) {
    this.host = host;
    this.driver = new RemoteDriver(host, engine, options);
  }

  abstract startService(name: string): Promise<void>;
  abstract makeForeign(name: string): Promise<void>;
  abstract foreignIsUntouched(name: string): Promise<boolean>;
  abstract removeForeign(name: string): Promise<void>;
  abstract removeBehindDriver(name: string): Promise<void>;
  abstract remains(name: string): Promise<string[]>;

  async letGo(pid: number): Promise<void> {
    const script = 'echo 0 >"/sys/fs/cgroup$(sed -n s/^0:://p "/proc/$1/cgroup")/cgroup.freeze"';
    await this.host.exec('sh', ['-ec', script, 'sh', String(pid)]);
  }

  async ticks(trees: readonly Tree[]): Promise<number> {
    const tree = trees.find((each) => each.id === 'upper' || each.id === 'rootfs');
    assert.ok(tree);
    const [line = ''] = await lines(this.host, 'grep "^tick [0-9]* " "$1" | tail -n 1', `${tree.path}/tmp/ticks`);
    return Number(line.split(' ')[1] ?? 'NaN');
  }

  protected async runs(name: string): Promise<void> {
    await until(`${name} counts`, START_LIMIT_MS, async () => {
      const { trees } = await this.driver.describe(name);
      return (await this.ticks(trees)) > 0 ? true : undefined;
    });
  }
}

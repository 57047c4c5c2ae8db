import type { Lab } from '#lab/lab.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { OutsideClient } from './client.ts';
import type { Identity } from './data.ts';
import { startRedis } from './service.ts';

const CALM_LIMIT_MS = 30_000;

/** Redis with data and a client that writes to it: what the demo and the soak move about. */
export class LoadedRedis {
  readonly data: OutsideClient;
  readonly writer: OutsideClient;
  keys = 0;
  bytes = 0;
  digest = '';
  identity: Identity = { uptime_s: 0, process_id: 0, run_id: '', used_memory_bytes: 0 };

  private constructor(data: OutsideClient, writer: OutsideClient) {
    this.data = data;
    this.writer = writer;
  }

  static async start(lab: Lab, host: string, stateBytes: number): Promise<LoadedRedis> {
    const { address, port } = await startRedis(lab, host);
    const redis = new LoadedRedis(OutsideClient.start(lab, address, port), OutsideClient.start(lab, address, port));
    try {
      const filled = await redis.data.fill(stateBytes);
      redis.keys = filled.keys;
      redis.bytes = filled.bytes;
      redis.identity = await redis.data.identity();
      redis.digest = (await redis.data.digest(redis.keys)).digest;
      return redis;
    } catch (thrown) {
      await redis.close();
      throw thrown;
    }
  }

  async close(): Promise<void> {
    await Promise.all([this.data.close(), this.writer.close()]);
  }

  /** Waits until the client has written this many values more. */
  async untilWritten(more: number): Promise<void> {
    const wanted = (await this.writer.acknowledged()) + more;
    const limit = Date.now() + CALM_LIMIT_MS;
    while ((await this.writer.acknowledged()) < wanted) {
      if (Date.now() > limit) {
        throw new UmsError('UMS_E_LAB', {
          message: 'The client cannot write through the Frontman.',
          fault: 'ums',
          mend: 'Look at the agents: ./ums lab logs alpha; ./ums lab logs beta',
        });
      }
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }

  /** Is it the same process with the same data, and is every acknowledged write there? */
  async verify(): Promise<Verified> {
    const { acknowledged, lost } = await this.writer.lost();
    const now = await this.data.identity();
    const was = this.identity;
    return {
      acknowledged,
      lost_writes: lost,
      checksum_equal: (await this.data.digest(this.keys)).digest === this.digest,
      continuous: now.run_id === was.run_id && now.process_id === was.process_id && now.uptime_s >= was.uptime_s,
      uptime_s: now.uptime_s,
    };
  }
}

export interface Verified {
  acknowledged: number;
  lost_writes: number;
  checksum_equal: boolean;
  continuous: boolean;
  uptime_s: number;
}

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, mkdirSync, openSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { UmsError } from '#src/telemetry/errors.ts';
import { makeCgroup, readOrEmpty } from './cgroup.ts';
import type { Host } from './host.ts';
import { PATIENCE } from './patience.ts';

const READY_LIMIT_MS = 60_000 * PATIENCE;
const POLL_MS = 100;
/** Of ctr and the like, and of curl: refused, an error of the server's, too slow, cut off. */
const NOT_YET = [0, 1, 7, 22, 28, 35, 52, 56];

/** An engine that runs as a daemon on a test host. */
export interface Daemon {
  /** As people write it, and as its log is named. */
  title: string;
  log: string;
  program: string;
  args?: readonly string[];
  env?: Record<string, string>;
  /** Writes its settings; called before it starts. */
  settle?: (host: Host) => Promise<void>;
  /** A question that it answers when it is ready. */
  question: readonly [string, ...string[]];
}

/** Starts it, if it does not answer yet. It ends with its host. */
export async function startDaemon(host: Host, daemon: Daemon): Promise<void> {
  if (await answers(host, daemon)) return;
  await daemon.settle?.(host);
  makeCgroup(join(host.cgroup, 'engine'));
  const logPath = join(host.directory, 'log', daemon.log);
  mkdirSync(join(host.directory, 'log'), { recursive: true });
  const log = openSync(logPath, 'a');
  const [enter, args] = host.command(daemon.program, daemon.args ?? [], {
    detach: true,
    group: 'engine',
    ...(daemon.env === undefined ? {} : { env: daemon.env }),
  });
  const child = spawn(enter, args, { stdio: ['ignore', log, log] });
  closeSync(log);
  await once(child, 'exit');
  const limit = Date.now() + READY_LIMIT_MS;
  while (!(await answers(host, daemon))) {
    if (Date.now() > limit) {
      throw new UmsError('UMS_E_LAB', {
        message: `${daemon.title} does not answer on test host ${host.name}`,
        fault: 'ums',
        mend: `Read what it says: ./ums lab exec ${host.name} -- ${daemon.question.join(' ')}`,
        detail: readOrEmpty(logPath).slice(-4000),
      });
    }
    await sleep(POLL_MS);
  }
}

async function answers(host: Host, { question: [program, ...args] }: Daemon): Promise<boolean> {
  const { exitCode } = await host.exec(program, args, { okExitCodes: NOT_YET, timeout_ms: READY_LIMIT_MS });
  return exitCode === 0;
}

import type { Driver } from '#src/drivers/contract.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { listeningPorts } from './listening.ts';
import { statusOf } from './process-status.ts';

/** What was true of the service when it was frozen and must be true again when it runs. */
export interface Expectation {
  listening: readonly number[];
  processes: number;
}

/**
 * How long a resumed service is watched before it counts as alive: a missing instruction or a lost descriptor ends a
 * process within its first time slices.
 */
const OBSERVATION_MS = 40;
const POLL_MS = 10;
const PROCESSES_SHOWN = 50;

function wait(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/**
 * The health check after a resume: it runs for the observation time with all its listeners. `limit_ms` bounds how long a
 * listener may be missing. The engine is asked twice and the kernel in between, because clients wait meanwhile and an
 * engine's answer takes as long as the whole observation. Throws UMS_E_UNHEALTHY with what is wrong.
 */
export async function checkHealth(
  driver: Driver,
  handle: string,
  expected: Expectation,
  limit_ms: number,
): Promise<void> {
  const started = performance.now();
  const pids = await driver.processes(handle);
  if (pids.length === 0) throw unhealthy('it has no process');
  for (;;) {
    const elapsed_ms = performance.now() - started;
    const listening = listeningPorts(pids);
    const missing = expected.listening.filter((port) => !listening.includes(port));
    if (missing.length === 0 && elapsed_ms >= OBSERVATION_MS) break;
    if (elapsed_ms > OBSERVATION_MS + limit_ms) {
      const detail = await whatIsThere(pids, await driver.processes(handle), listening);
      throw unhealthy(`nothing listens on its port ${missing.join(', ')}`, detail);
    }
    await wait(POLL_MS);
  }
  const state = await driver.state(handle);
  if (state !== 'running') {
    throw unhealthy(`it is ${state} ${Math.round(performance.now() - started)} ms after it was resumed`);
  }
}

/** The service is about to be removed, and what was seen of it with it. */
async function whatIsThere(
  before: readonly number[],
  now: readonly number[],
  listening: readonly number[],
): Promise<string> {
  const lines = [...new Set([...before, ...now])].slice(0, PROCESSES_SHOWN).map(async (pid) => {
    const status = await statusOf(pid);
    const name = /^Name:\t(.*)$/m.exec(status)?.[1] ?? 'gone';
    const state = /^State:\t(.*)$/m.exec(status)?.[1] ?? '';
    return `process ${pid} ${name} ${state}${before.includes(pid) ? '' : ', not there at first'}`;
  });
  return [`listens on ${listening.join(', ') || 'nothing'}`, ...(await Promise.all(lines))].join('\n');
}

function unhealthy(problem: string, detail?: string): UmsError {
  return new UmsError('UMS_E_UNHEALTHY', {
    message: `The service did not run healthily at the destination: ${problem}.`,
    fault: 'destination',
    mend: 'Look at the CPU features and kernels of both hosts (ums check) and at the service’s own log.',
    ...(detail === undefined ? {} : { detail }),
  });
}

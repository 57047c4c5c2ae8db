import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { freezerOf, isFrozen, isMissing } from '#src/drivers/oci/cgroup.ts';
import { initPid, RUNC_ROOT } from '#src/drivers/oci/runtime.ts';
import { run } from '#src/telemetry/exec.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { BUNDLE, HOME, SERVICE } from './layout.ts';

/** The service inside a capsule, as the kernel and runc's own records know it. */
export type NestedState = 'running' | 'frozen' | 'stopped' | 'absent';

const annotated = z.object({ annotations: z.record(z.string(), z.string()).default({}) });
const healthSchema = z.object({ test: z.array(z.string()).min(1), timeout_ms: z.number().positive() });
/** They travel with the bundle, so that the next capsule knows them too. */
export const STOP_SIGNAL = 'ums.capsule.stop-signal';
export const HEALTH = 'ums.capsule.health';

export async function nestedState(): Promise<NestedState> {
  const pid = await initPid(RUNC_ROOT, SERVICE);
  if (pid === undefined) return existsSync(join(BUNDLE, 'config.json')) ? 'stopped' : 'absent';
  const freezer = await freezerOf(pid);
  if (freezer === undefined) return 'stopped';
  return (await isFrozen(freezer)) ? 'frozen' : 'running';
}

/** Whether runc has a record of it: it goes when a migration has taken the service away. */
export function isKnownToRunc(): boolean {
  return existsSync(join(RUNC_ROOT, SERVICE, 'state.json'));
}

/** The number that a process had when runc started or restored it, also when it has ended since. */
export function recordedPid(): number | undefined {
  try {
    const text = readFileSync(join(RUNC_ROOT, SERVICE, 'state.json'), 'utf8');
    return z.object({ init_process_pid: z.int() }).parse(JSON.parse(text)).init_process_pid;
  } catch (error) {
    if (isMissing(error)) return undefined;
    throw error;
  }
}

function annotations(): Record<string, string> {
  try {
    return annotated.parse(JSON.parse(readFileSync(join(BUNDLE, 'config.json'), 'utf8'))).annotations;
  } catch (error) {
    if (isMissing(error)) return {};
    throw error;
  }
}

export function stopSignal(): string {
  return annotations()[STOP_SIGNAL] ?? 'TERM';
}

export interface Health {
  healthy: boolean;
  state: NestedState;
  /** What the check said, or why there was none. */
  output: string;
}

export async function nestedHealth(): Promise<Health> {
  const state = await nestedState();
  if (state === 'absent')
    return { healthy: false, state, output: 'The capsule is empty: it waits to receive a service.' };
  if (state === 'stopped') return { healthy: false, state, output: 'The service does not run.' };
  // A program that stands still for its own move is not ill.
  if (state === 'frozen') return { healthy: true, state, output: 'The service is being moved.' };
  const text = annotations()[HEALTH];
  if (text === undefined) return { healthy: true, state, output: 'The service runs; it has no check of its own.' };
  const { test, timeout_ms } = healthSchema.parse(JSON.parse(text));
  try {
    const { stdout, stderr, exitCode } = await run('runc', ['exec', SERVICE, ...test], {
      timeout_ms,
      okExitCodes: Array.from({ length: 256 }, (_, code) => code),
    });
    return { healthy: exitCode === 0, state, output: `${stdout}${stderr}`.trim().slice(0, 4096) };
  } catch (error) {
    return { healthy: false, state, output: error instanceof Error ? error.message : String(error) };
  }
}

/** Words that become a program inside the service, for a process that then is it. */
export async function execCommand(
  command: readonly string[],
  options: { tty: boolean; user?: string; env: readonly string[]; workingDir?: string },
): Promise<string[]> {
  const state = await nestedState();
  if (state !== 'running') {
    throw new UmsError('UMS_E_SERVICE_NOT_RUNNING', {
      message:
        state === 'absent'
          ? 'The capsule is empty: there is no service in which to run something'
          : `The service is ${state}, so nothing can be run in it`,
      fault: 'user',
      state: 'Nothing was done.',
      mend: 'See: ums capsule health',
    });
  }
  return [
    'runc',
    'exec',
    ...(options.tty ? ['--tty'] : []),
    ...(options.user === undefined ? [] : ['--user', options.user]),
    ...(options.workingDir === undefined ? [] : ['--cwd', options.workingDir]),
    ...options.env.flatMap((entry) => ['--env', entry]),
    SERVICE,
    ...command,
  ];
}

/** Says that the capsule has had its service: without it one that moved away would begin anew from its image. */
export const UNPACKED = join(HOME, 'unpacked');

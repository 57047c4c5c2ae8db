import assert from 'node:assert/strict';
import { z } from 'zod';
import type { Host } from '#lab/host.ts';
import { PATIENCE } from '#lab/patience.ts';
import { CAPABILITIES, SECURITY_OPTIONS } from '#src/approaches/container-level/needs.ts';
import type { RunResult } from '#src/telemetry/exec.ts';
import type { Technique } from '#src/coordination/schema.ts';
import { until } from './moves.ts';
import type { CommandEngine, InContainer } from './workload.ts';

/** Capsules as a person has them: containers of an engine, of which only the engine's own commands are used. */
const EXEC_LIMIT_MS = 60_000 * PATIENCE;
const START_LIMIT_MS = 90_000;
const MOVE_LIMIT_MS = 150_000 * PATIENCE;

export interface Capsule {
  host: Host;
  engine: CommandEngine;
  name: string;
  /** Ports of its agent, on the host as in the capsule. */
  peerPort: number;
}

export const GRANTS: readonly string[] = [
  ...CAPABILITIES.flatMap((name) => ['--cap-add', name]),
  ...SECURITY_OPTIONS.flatMap((option) => ['--security-opt', option]),
];

/** Everything that a container exits with is an answer. */
const ANY_STATUS = Array.from({ length: 256 }, (_, code) => code);

export async function runCapsule(
  { host, engine, name, peerPort }: Capsule,
  options: readonly string[],
  args: readonly string[],
  grants: readonly string[] = GRANTS,
): Promise<void> {
  const image = await host.importImage('capsule', engine);
  const ports = [peerPort, peerPort + 1].flatMap((port) => ['--publish', `${port}:${port}`]);
  const agent = ['--name', name, '--peer-address', host.address, '--peer-port', String(peerPort)];
  agent.push('--pairing-port', String(peerPort + 1));
  const mounted = ['--volume', '/opt/images:/srv/images:ro'];
  await host.exec(
    engine,
    ['run', '--detach', '--name', name, ...mounted, ...grants, ...ports, ...options, image, ...agent, ...args],
    { timeout_ms: EXEC_LIMIT_MS },
  );
}

/** Runs a command in the capsule, beside its service. */
export function inCapsule({ host, engine, name }: Capsule, args: readonly string[]): Promise<RunResult> {
  return host.exec(engine, ['exec', name, ...args], { timeout_ms: EXEC_LIMIT_MS, okExitCodes: ANY_STATUS });
}

/** Runs a command in the service of the capsule. */
export function inService(capsule: Capsule): InContainer {
  return (_host, args) => inCapsule(capsule, ['ums', 'capsule', 'exec', ...args]);
}

export async function ums(capsule: Capsule, ...args: string[]): Promise<unknown> {
  const { stdout, stderr, exitCode } = await inCapsule(capsule, ['ums', '--json', ...args]);
  assert.equal(exitCode, 0, `ums ${args.join(' ')} in ${capsule.name}: ${stdout}${stderr}`);
  return JSON.parse(stdout.trim().split('\n').at(-1) ?? '');
}

export function agentAnswers(capsule: Capsule): Promise<true> {
  return until(`the agent of ${capsule.name} answers`, START_LIMIT_MS, async () => {
    await ums(capsule, 'systems');
    return true as const;
  });
}

export async function pairCapsules(inviter: Capsule, joiner: Capsule): Promise<void> {
  const { token } = z.object({ token: z.string() }).parse(await ums(inviter, 'pair', 'invite'));
  await ums(joiner, 'pair', 'join', token);
}

const resultSchema = z.object({ status: z.string(), downtime_ms: z.number(), total_ms: z.number() });

export async function moveService(from: Capsule, to: Capsule, technique: Technique) {
  const args = ['exec', from.name, 'ums', '--json', 'migrate', 'service', '--to', to.name, '--technique', technique];
  const { stdout, stderr } = await from.host.exec(from.engine, args, {
    timeout_ms: MOVE_LIMIT_MS,
    okExitCodes: ANY_STATUS,
  });
  const line = stdout.trim().split('\n').at(-1) ?? '';
  assert.notEqual(line, '', `no result from ${from.name}: ${stderr}`);
  const result = resultSchema.safeParse(JSON.parse(line));
  assert.ok(result.success && result.data.status === 'done', `${technique} from ${from.name} to ${to.name}: ${line}`);
  return result.data;
}

const stateSchema = z
  .tuple([z.object({ State: z.object({ Status: z.string(), ExitCode: z.int() }) })])
  .transform(([container]) => ({ status: container.State.Status, exitCode: container.State.ExitCode }));

export async function stateOf({ host, engine, name }: Capsule) {
  const { stdout } = await host.exec(engine, ['inspect', '--type', 'container', name]);
  return stateSchema.parse(JSON.parse(stdout));
}

export function exited(capsule: Capsule): Promise<number> {
  return until(`${capsule.name} ends`, START_LIMIT_MS, async () => {
    const { status, exitCode } = await stateOf(capsule);
    return status === 'exited' ? exitCode : undefined;
  });
}

const lines = (text: string): string[] => text.split('\n').filter((line) => line !== '');

/** What the engine has of the capsule's standard output and standard error. */
export async function logOf({ host, engine, name }: Capsule): Promise<{ out: string[]; err: string[] }> {
  const { stdout, stderr } = await host.exec(engine, ['logs', name]);
  return { out: lines(stdout), err: lines(stderr) };
}

export async function removeCapsules(...capsules: readonly Capsule[]): Promise<void> {
  for (const { host, engine, name } of capsules) {
    const atOnce = engine === 'podman' ? ['--time', '0'] : [];
    await host.exec(engine, ['rm', '--force', '--volumes', ...atOnce, name], {
      okExitCodes: [0, 1],
      timeout_ms: EXEC_LIMIT_MS,
    });
  }
}

import assert from 'node:assert/strict';
import { join } from 'node:path';
import { z } from 'zod';
import type { Host } from '#lab/host.ts';
import type { Lab } from '#lab/lab.ts';
import { type RunResult, run } from '#src/telemetry/exec.ts';

/**
 * kitchensink (lab/workloads) as end-to-end tests use it: a program that verifies itself, in a container of either
 * engine, and what must hold for it across a move.
 */
export const WORKLOAD = 'kitchensink';
const EXEC_LIMIT_MS = 30_000;
const MOVE_LIMIT_MS = 150_000;
const CLI = join(import.meta.dirname, '..', '..', '..', 'src', 'cli', 'main.ts');

const statusSchema = z.object({
  generation: z.int(),
  boot_id: z.string().regex(/^[0-9a-f]{32}$/),
  started_at: z.string(),
  pid: z.int(),
  ticks: z.int(),
  violations: z.int(),
  components: z.record(z.string(), z.int()),
});
export type WorkloadStatus = z.infer<typeof statusSchema>;

const verdictSchema = z.object({
  ok: z.boolean(),
  listener: z.boolean(),
  stalled: z.array(z.string()),
  status: statusSchema,
});
export type Verdict = z.infer<typeof verdictSchema>;

/** Runs a command in the service's container. */
export type InContainer = (host: Host, args: readonly string[]) => Promise<RunResult>;

/** Fewer would mean that the program under test is not the one that is meant. */
const COMPONENTS_MIN = 50;

export async function statusOf(host: Host, inContainer: InContainer): Promise<WorkloadStatus> {
  const { stdout } = await inContainer(host, [WORKLOAD, 'status']);
  return statusSchema.parse(JSON.parse(stdout));
}

/** Lets the program verify itself; what it found wrong is in the failure. */
export async function verified(host: Host, inContainer: InContainer): Promise<Verdict> {
  const { stdout, stderr } = await inContainer(host, [WORKLOAD, 'verify']);
  assert.notEqual(stdout, '', `no verdict on ${host.name}: ${stderr}`);
  const verdict = verdictSchema.parse(JSON.parse(stdout));
  assert.deepEqual(verdict.stalled, [], `components stand still on ${host.name}`);
  assert.ok(verdict.ok, `${host.name}: ${stdout}`);
  assert.ok(Object.keys(verdict.status.components).length >= COMPONENTS_MIN, 'all components are there');
  return verdict;
}

/** The same program went on: it did not start anew, and no counter is behind what it was before the move. */
export function wentOn(before: WorkloadStatus, after: WorkloadStatus): void {
  assert.equal(after.boot_id, before.boot_id, 'the same program');
  assert.equal(after.generation, before.generation, 'it did not start again');
  assert.equal(after.started_at, before.started_at);
  assert.equal(after.pid, before.pid);
  assert.ok(after.ticks >= before.ticks, `ticks went from ${before.ticks} back to ${after.ticks}`);
  assert.deepEqual(Object.keys(after.components), Object.keys(before.components));
  for (const [name, count] of Object.entries(before.components)) {
    const now = after.components[name] ?? -1;
    assert.ok(now >= count, `${name} went from ${count} back to ${now}`);
  }
}

export type CommandEngine = 'podman' | 'docker';

export const inEngine =
  (engine: CommandEngine, name: string): InContainer =>
  (host, args) =>
    host.exec(engine, ['exec', name, ...args], { timeout_ms: EXEC_LIMIT_MS, okExitCodes: [0, 1] });

export const inRunc =
  (id: string): InContainer =>
  (host, args) =>
    host.exec('runc', ['exec', id, ...args], { timeout_ms: EXEC_LIMIT_MS, okExitCodes: [0, 1] });

const resultSchema = z.object({
  event: z.literal('result'),
  status: z.string(),
  id: z.string(),
  source: z.string(),
  destination: z.string(),
  downtime_ms: z.number().positive(),
  total_ms: z.number().positive(),
});
export type MoveResult = z.infer<typeof resultSchema>;

/** Moves a service as a person does: with the command line, in the context of the host where it runs. */
export async function moveByCommand(lab: Lab, from: Host, service: string, to: Host): Promise<MoveResult> {
  const args = ['--disable-warning=ExperimentalWarning', CLI, '--context', from.name, '--json'];
  const { stdout } = await run(process.execPath, [...args, 'migrate', service, '--to', to.name], {
    timeout_ms: MOVE_LIMIT_MS,
    env: { UMS_CONFIG_DIR: lab.paths.config },
    pickLine: (_stderr, output) => output.trim().split('\n').at(-1)?.slice(0, 2000),
  });
  const result = resultSchema.parse(JSON.parse(stdout.trim().split('\n').at(-1) ?? ''));
  assert.equal(result.status, 'done');
  assert.equal(result.source, from.name);
  assert.equal(result.destination, to.name);
  return result;
}

const inspectSchema = z
  .tuple([
    z.object({
      Name: z.string(),
      Config: z.object({
        Labels: z.record(z.string(), z.string()),
        Env: z.array(z.string()),
        Cmd: z.array(z.string()),
      }),
      State: z.object({ Status: z.string(), ExitCode: z.int(), OOMKilled: z.boolean() }),
      RestartCount: z.int(),
      HostConfig: z.object({
        RestartPolicy: z.object({ Name: z.string(), MaximumRetryCount: z.int() }),
        PortBindings: z.record(z.string(), z.array(z.object({ HostIp: z.string(), HostPort: z.string() })).nullable()),
      }),
      Mounts: z.array(z.object({ Type: z.string(), Name: z.string().optional(), Destination: z.string() })),
    }),
  ])
  .transform(([container]) => container);

/** What an engine says of a container that must be the same wherever it runs. */
export async function engineView(host: Host, engine: CommandEngine, name: string) {
  const { stdout } = await host.exec(engine, ['inspect', '--type', 'container', name], { timeout_ms: EXEC_LIMIT_MS });
  const container = inspectSchema.parse(JSON.parse(stdout));
  // Podman tells a container's own host name in its environment; it is the container's id, which is new. Docker orders
  // mounts as it likes.
  const env = container.Config.Env.filter((entry) => !/^(?:HOSTNAME|container)=/.test(entry)).sort();
  return {
    state: container.State,
    kept: {
      name: container.Name,
      labels: container.Config.Labels,
      env,
      command: container.Config.Cmd,
      restarts: container.RestartCount,
      restartPolicy: container.HostConfig.RestartPolicy,
      ports: container.HostConfig.PortBindings,
      mounts: container.Mounts.map((mount) => `${mount.Type} ${mount.Name ?? ''} ${mount.Destination}`).toSorted(),
    },
  };
}

/** What an engine shows as the container's log. */
export async function engineLog(host: Host, engine: CommandEngine, name: string): Promise<string[]> {
  const { stdout } = await host.exec(engine, ['logs', name], { timeout_ms: EXEC_LIMIT_MS });
  return stdout.split('\n').filter((line) => line !== '');
}

export async function lines(host: Host, program: string, args: readonly string[]): Promise<string[]> {
  const { stdout } = await host.exec(program, args, { timeout_ms: EXEC_LIMIT_MS });
  return stdout.split('\n').filter((line) => line !== '');
}

/** What Podman, runc, the kernel and ums still know of anything named so on a host. */
export async function remains(host: Host, name: string): Promise<string[]> {
  const found = await Promise.all([
    lines(host, 'podman', ['ps', '--all', '--quiet', '--filter', `name=^${name}$`]),
    lines(host, 'podman', ['volume', 'ls', '--quiet', '--filter', `name=${name}`]),
    lines(host, 'runc', ['list', '--quiet']),
    lines(host, 'sh', ['-c', `ls -d /srv/${name}* /sys/fs/cgroup/${name}* 2>/dev/null || true`]),
    lines(host, 'sh', ['-c', `grep -E '/${name}|overlay-containers|storage/overlay/.*merged' /proc/mounts || true`]),
    lines(host, 'sh', ['-c', `ps -eo args | grep -E '^(conmon|${WORKLOAD}|/bin/${WORKLOAD}|criu) ' || true`]),
    lines(host, 'ls', ['/run/ums/staging']),
  ]);
  const kinds = ['container', 'volume', 'runc', 'path', 'mount', 'process', 'staging'];
  return found.flatMap((those, at) => those.map((one) => `${kinds[at]}: ${one}`));
}

/** What Docker, its runtime, the kernel and ums still know of anything named so on a host that has no other container. */
export async function remainsInDocker(host: Host, name: string): Promise<string[]> {
  const found = await Promise.all([
    lines(host, 'docker', ['ps', '--all', '--format', '{{.Names}}']),
    lines(host, 'docker', ['volume', 'ls', '--quiet', '--filter', `name=${name}`]),
    lines(host, 'sh', [
      '-c',
      'ls -d /run/docker/runtime-runc/moby/* /run/ums-runtime/* /sys/fs/cgroup/docker/*/ 2>/dev/null || true',
    ]),
    lines(host, 'sh', ['-c', "grep -E 'docker/overlay2/.*merged' /proc/mounts || true"]),
    lines(host, 'sh', ['-c', `ps -eo args | grep -E '^(containerd-shim|${WORKLOAD}|/bin/${WORKLOAD}|criu) ' || true`]),
    lines(host, 'sh', ['-c', 'ls -d /run/ums/staging/* /run/ums/restore/* 2>/dev/null || true']),
  ]);
  const kinds = ['container', 'volume', 'path', 'mount', 'process', 'staging'];
  return found.flatMap((those, at) => those.filter((one) => !one.endsWith(':')).map((one) => `${kinds[at]}: ${one}`));
}

/** What a client on the lab's network reads from a TCP port, or undefined when nobody listens. */
export async function greetingFrom(lab: Lab, address: string, port: number): Promise<string | undefined> {
  const script = `exec 3<>"/dev/tcp/$1/$2" && IFS= read -r -t 5 line <&3 && printf '%s' "$line"`;
  const [command, args] = lab.command('outside', 'bash', ['-c', script, 'greeting', address, String(port)]);
  const { stdout, exitCode } = await run(command, args, { timeout_ms: 10_000, okExitCodes: [0, 1] });
  return exitCode === 0 ? stdout : undefined;
}

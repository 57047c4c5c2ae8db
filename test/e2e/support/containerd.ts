import { z } from 'zod';
import type { Host } from '#lab/host.ts';
import { type InContainer, lines, WORKLOAD } from './workload.ts';

/** containerd as end-to-end tests use it: by `ctr`, as a person does. */
const EXEC_LIMIT_MS = 30_000;

const EXEC_TRIES_MAX = 5;

let executions = 0;

/**
 * `more` follows the words of every command, which must be one that prints something. When a program has ended, `ctr`
 * cancels the opening of its output, and what a short one has printed is lost if that was still being opened (`Delete` in
 * containerd's process.go): then it is asked again.
 */
export const inContainerd =
  (name: string, ...more: string[]): InContainer =>
  async (host, args) => {
    for (let tries = 1; ; tries += 1) {
      executions += 1;
      const words = ['tasks', 'exec', '--exec-id', `test-${executions}`, name, ...args, ...more];
      const result = await host.exec('ctr', words, { timeout_ms: EXEC_LIMIT_MS, okExitCodes: [0, 1] });
      const isSilent = result.exitCode === 0 && result.stdout === '' && result.stderr === '';
      if (!isSilent || tries === EXEC_TRIES_MAX) return result;
    }
  };

const recordSchema = z.looseObject({ CreatedAt: z.string(), UpdatedAt: z.string() });

/** The whole of a container's record, but for its times. */
export async function recordOf(host: Host, name: string): Promise<unknown> {
  const { stdout } = await host.exec('ctr', ['containers', 'info', name], { timeout_ms: EXEC_LIMIT_MS });
  const { CreatedAt: _created, UpdatedAt: _updated, ...record } = recordSchema.parse(JSON.parse(stdout));
  return record;
}

/** `RUNNING` and the like; nothing without a task. */
export async function taskStatus(host: Host, name: string): Promise<string> {
  const found = (await lines(host, 'ctr', ['tasks', 'ls'])).find((line) => line.startsWith(`${name} `));
  return found?.trim().split(/\s+/).at(-1) ?? '';
}

/** What containerd, its runtime, the kernel and ums still know on a host that has no other container. */
export async function remainsInContainerd(host: Host, name: string): Promise<string[]> {
  const found = await Promise.all([
    lines(host, 'ctr', ['containers', 'ls', '--quiet']),
    lines(host, 'ctr', ['tasks', 'ls', '--quiet']),
    lines(host, 'ctr', ['leases', 'ls', '--quiet']),
    lines(host, 'sh', ['-c', `ctr snapshots ls | grep '^${name} ' || true`]),
    lines(host, 'sh', [
      '-c',
      'ls -d /run/containerd/runc/default/* /run/containerd/fifo/* /run/containerd/io.containerd.runtime.v2.task/default/* 2>/dev/null || true',
    ]),
    lines(host, 'sh', ['-c', 'ls -d /run/ums/containerd/*/* /sys/fs/cgroup/default/*/ 2>/dev/null || true']),
    lines(host, 'sh', ['-c', `ps -eo args | grep -E '^(/usr/bin/containerd-shim|${WORKLOAD}|criu) ' || true`]),
    lines(host, 'ls', ['/run/ums/staging']),
  ]);
  const kinds = ['container', 'task', 'lease', 'snapshot', 'runtime', 'path', 'process', 'staging'];
  return found.flatMap((those, at) => those.map((one) => `${kinds[at]}: ${one}`));
}

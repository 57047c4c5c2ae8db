import { closeSync, existsSync, mkdirSync, openSync } from 'node:fs';
import { request } from 'node:http';
import { dirname, join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { z } from 'zod';
import { inviteResponseSchema, pairedSystemSchema } from '#src/agent/api.ts';
import { AGENT_NODE_FLAGS } from '#src/agent/node-flags.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { makeCgroup, processesIn, readOrEmpty, signalIfThere } from './cgroup.ts';
import type { Host } from './host.ts';
import { PATIENCE } from './patience.ts';

/** The agents of the test hosts: start, stop, kill and pair them. */
const READY_LIMIT_MS = 30_000 * PATIENCE;
const STOP_LIMIT_MS = 15_000 * PATIENCE;
const REQUEST_LIMIT_MS = 20_000 * PATIENCE;
const ANSWER_LIMIT_BYTES = 4 * 1024 * 1024;
const POLL_MS = 25;
export const AGENT_ENTRY = 'src/agent/main.ts';
const CHECKOUT = resolve(import.meta.dirname, '..');

export function agentExists(): boolean {
  return existsSync(join(CHECKOUT, AGENT_ENTRY));
}

export interface StartAgentOptions {
  faultInjection?: boolean;
  env?: Record<string, string>;
  args?: readonly string[];
}

/** Numbers, as the machine counts, of the host's agent processes (one, or none). */
export function agentPids(host: Host): number[] {
  return processesIn(host.cgroup).filter((pid) => {
    const words = readOrEmpty(`/proc/${pid}/cmdline`).split('\0');
    return (words[0]?.endsWith('/node') ?? false) && words.some((word) => word.endsWith(AGENT_ENTRY));
  });
}

export async function startAgent(host: Host, options: StartAgentOptions = {}): Promise<void> {
  if (agentPids(host).length > 0) return;
  makeCgroup(join(host.cgroup, 'agent'));
  mkdirSync(dirname(host.logPath), { recursive: true });
  const log = openSync(host.logPath, 'a');
  const args = [
    ...AGENT_NODE_FLAGS,
    `/opt/ums/app/${AGENT_ENTRY}`,
    `--name=${host.name}`,
    `--peer-address=${host.address}`,
    '--peer-port=7440',
    ...(options.faultInjection === true ? ['--fault-injection'] : []),
    ...(options.args ?? []),
  ];
  const [enter, enterArgs] = host.command('/opt/ums/node/bin/node', args, {
    detach: true,
    group: 'agent',
    ...(options.env === undefined ? {} : { env: options.env }),
  });
  const child = spawn(enter, enterArgs, { stdio: ['ignore', log, log] });
  closeSync(log);
  await once(child, 'exit');
  await agentReady(host);
}

async function agentReady(host: Host): Promise<void> {
  const limit = Date.now() + READY_LIMIT_MS;
  for (;;) {
    const status = await agentRequest(host, 'GET', '/v1/system').then(
      () => 'ready' as const,
      // Its group, not its name: a process that is about to become the agent still has another one.
      () => (processesIn(join(host.cgroup, 'agent')).length === 0 ? ('ended' as const) : ('starting' as const)),
    );
    if (status === 'ready') return;
    if (status === 'ended' || Date.now() > limit) {
      throw new UmsError('UMS_E_LAB', {
        message: `The agent of test host ${host.name} ${status === 'ended' ? 'ended at its start' : 'does not answer'}`,
        fault: 'ums',
        mend: `Read its log: ./ums lab logs ${host.name}`,
        detail: readOrEmpty(host.logPath).slice(-4000),
      });
    }
    await sleep(POLL_MS);
  }
}

/** SIGKILL to the agent alone; what it started goes on, as after a crash of the daemon. */
export async function killAgent(host: Host): Promise<void> {
  await endAgent(host, 'SIGKILL');
}

export async function stopAgent(host: Host): Promise<void> {
  await endAgent(host, 'SIGTERM');
}

async function endAgent(host: Host, signal: NodeJS.Signals): Promise<void> {
  for (const pid of agentPids(host)) signalIfThere(pid, signal);
  const limit = Date.now() + STOP_LIMIT_MS;
  while (agentPids(host).length > 0) {
    if (Date.now() > limit) {
      throw new UmsError('UMS_E_LAB', {
        message: `The agent of test host ${host.name} did not end within ${STOP_LIMIT_MS / 1000} s of ${signal}`,
        fault: 'ums',
        mend: `End it the hard way: ./ums lab kill ${host.name} --agent`,
      });
    }
    await sleep(POLL_MS);
  }
}

/** One request to a host's agent over its local socket, parsed as JSON. */
export async function agentRequest(host: Host, method: string, path: string, body?: unknown): Promise<unknown> {
  const text = body === undefined ? undefined : JSON.stringify(body);
  return new Promise((fulfil, reject) => {
    const outgoing = request({
      socketPath: host.socketPath,
      method,
      path,
      timeout: REQUEST_LIMIT_MS,
      headers:
        text === undefined ? {} : { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) },
    });
    outgoing.on('timeout', () => outgoing.destroy(new Error(`${method} ${path}: no answer from ${host.name}`)));
    outgoing.on('error', reject);
    outgoing.on('response', (response) => {
      const chunks: Buffer[] = [];
      let size_bytes = 0;
      response.on('data', (chunk: Buffer) => {
        size_bytes += chunk.length;
        if (size_bytes > ANSWER_LIMIT_BYTES) outgoing.destroy(new Error(`${method} ${path}: the answer is too large`));
        else chunks.push(chunk);
      });
      response.on('error', reject);
      response.on('end', () => {
        const answer = Buffer.concat(chunks).toString('utf8');
        const status = response.statusCode ?? 0;
        if (status >= 200 && status < 300) fulfil(answer === '' ? {} : JSON.parse(answer));
        else reject(new Error(`${method} ${path} on ${host.name}: ${status} ${answer.slice(0, 2000)}`));
      });
    });
    outgoing.end(text);
  });
}

/** Pairs two hosts' agents, if they are not paired yet. */
export async function pairAgents(inviter: Host, joiner: Host): Promise<boolean> {
  const known = z.array(pairedSystemSchema).parse(await agentRequest(inviter, 'GET', '/v1/systems'));
  if (known.some((system) => system.name === joiner.name && system.status !== 'revoked')) return false;
  const invitation = inviteResponseSchema.parse(await agentRequest(inviter, 'POST', '/v1/pairing/invite', {}));
  await agentRequest(joiner, 'POST', '/v1/pairing/join', { token: invitation.token });
  return true;
}

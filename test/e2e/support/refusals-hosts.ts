import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { agentRequest, type StartAgentOptions } from '#lab/agents.ts';
import type { Host } from '#lab/host.ts';
import type { Lab } from '#lab/lab.ts';
import { inviteResponseSchema } from '#src/agent/api.ts';
import { run } from '#src/telemetry/exec.ts';
import { z } from 'zod';
import { until } from './moves.ts';
import { answerSchema, type ProbeAnswer } from './refusals-peer.ts';

/** Hosts and peers that are not as they should be, each made in a way that could happen. */
export const AGENT: StartAgentOptions = { faultInjection: true, args: ['--peer-timeout', '3000'] };
const migrationsSchema = z.array(z.object({ ended_at: z.number().nullable() }));
const PEER_PROGRAM = join(import.meta.dirname, 'refusals-peer.ts');
const MESSAGES = '/opt/ums/app/src/coordination/messages.ts';
const OTHER_MESSAGES = '/tmp/messages-of-another-version.ts';
const FAKE_OLDER_CRIU = '/tmp/FakeOlderCriu';
const HOST_PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

export async function restartAgent(lab: Lab, host: Host, options: StartAgentOptions = {}): Promise<void> {
  await lab.stopAgent(host.name);
  await lab.startAgent(host.name, {
    ...AGENT,
    ...options,
    args: [...(AGENT.args ?? []), ...(options.args ?? [])],
  });
}

/** FakeOlderCriu works as the real one does, but says that it is from 2022. */
export async function withFakeOlderCriu(lab: Lab, host: Host, body: () => Promise<void>): Promise<void> {
  const script = `#!/bin/sh
if [ "$1" = --version ]; then echo 'Version: 3.17.1'; exit 0; fi
exec /usr/sbin/criu "$@"
`;
  await host.exec('mkdir', ['-p', FAKE_OLDER_CRIU]);
  host.writeFile(`${FAKE_OLDER_CRIU}/criu`, script);
  await host.exec('chmod', ['755', `${FAKE_OLDER_CRIU}/criu`]);
  try {
    await restartAgent(lab, host, { env: { PATH: `${FAKE_OLDER_CRIU}:${HOST_PATH}` } });
    await body();
  } finally {
    await host.exec('rm', ['-r', FAKE_OLDER_CRIU]);
    await restartAgent(lab, host);
  }
}

/** The host's agent is of a version that speaks protocol 2 alone: its own source with one line changed, on this host only. */
export async function withOtherProtocol(lab: Lab, host: Host, body: () => Promise<void>): Promise<void> {
  const script = `sed 's/PROTOCOL = { min: [0-9]*, max: [0-9]* }/PROTOCOL = { min: 99, max: 99 }/' ${MESSAGES} >${OTHER_MESSAGES} && ! cmp -s ${MESSAGES} ${OTHER_MESSAGES}`;
  await host.exec('sh', ['-ec', script]);
  await host.exec('mount', ['--bind', OTHER_MESSAGES, MESSAGES]);
  try {
    await restartAgent(lab, host);
    await body();
  } finally {
    await host.exec('umount', [MESSAGES]);
    await restartAgent(lab, host);
  }
}

/** The agent was installed anew, so what answers has another authority than the one that was paired. */
export async function withReinstalledAgent(lab: Lab, host: Host, body: () => Promise<void>): Promise<void> {
  const directory = '/tmp/installed-anew';
  try {
    await restartAgent(lab, host, { env: { UMS_STATE_DIR: directory } });
    await body();
  } finally {
    await restartAgent(lab, host);
    await host.exec('rm', ['-rf', directory]);
  }
}

/** A small disk of the host's own for its containers. */
export async function withSmallDisk(host: Host, size: string, body: (path: string) => Promise<void>): Promise<void> {
  const path = '/var/lib/containers';
  await host.exec('mount', ['-t', 'tmpfs', '-o', `size=${size}`, 'small-disk', path]);
  try {
    await body(path);
  } finally {
    await until(`${path} is free again`, 60_000, async () => {
      // Going back takes its time, and needs the service that the agent asks; that has the storage open as long as it runs.
      const all = migrationsSchema.parse(await agentRequest(host, 'GET', '/v1/migrations'));
      if (all.some(({ ended_at: at }) => at === null)) return undefined;
      await host.exec('pkill', ['-f', 'podman system service'], { okExitCodes: [0, 1] });
      // Podman may have mounted it once more inside.
      await host.exec('sh', ['-c', 'umount "$1/storage/overlay" 2>/dev/null; umount "$1"', 'sh', path]);
      return true;
    });
  }
}

export async function resizeStaging(host: Host, size: string): Promise<void> {
  await host.exec('mount', ['-o', `remount,size=${size}`, '/run/ums/staging']);
}

export async function invitation(host: Host): Promise<string> {
  return inviteResponseSchema.parse(await agentRequest(host, 'POST', '/v1/pairing/invite', {})).token;
}

export async function pairAnew(inviter: Host, joiner: Host): Promise<void> {
  await agentRequest(joiner, 'POST', '/v1/pairing/join', { token: await invitation(inviter) });
}

/** The peer of refusals-peer.ts: a system somewhere on the network that does not behave. */
export class Stranger {
  readonly name: string;
  readonly #lab: Lab;
  readonly #directory = mkdtempSync(join(tmpdir(), 'ums-stranger-'));

  constructor(lab: Lab, name: string) {
    this.#lab = lab;
    this.name = name;
  }

  async #run(args: readonly string[]): Promise<string> {
    const [command, all] = this.#lab.command('outside', process.execPath, [
      '--disable-warning=ExperimentalWarning',
      PEER_PROGRAM,
      this.#directory,
      this.name,
      ...args,
    ]);
    return (await run(command, all, { timeout_ms: 60_000 })).stdout;
  }

  async join(host: Host): Promise<void> {
    await this.#run(['join', await invitation(host)]);
  }

  /** What the peer port answers to each probe; `migration` is one that belongs to somebody else. */
  async probe(host: Host, probes: readonly string[], migration = ''): Promise<ProbeAnswer[]> {
    const output = await this.#run(['probe', host.name, migration, ...probes]);
    return output
      .trim()
      .split('\n')
      .map((line) => answerSchema.parse(JSON.parse(line)));
  }

  remove(): void {
    rmSync(this.#directory, { recursive: true, force: true });
  }
}

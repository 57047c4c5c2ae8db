import { setTimeout as delay } from 'node:timers/promises';
import { z } from 'zod';
import type { Host } from '#lab/host.ts';
import type { Lab } from '#lab/lab.ts';
import { BUNDLE } from '#src/approaches/container-level/layout.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { pulseArgs } from '../pulse/service.ts';
import { type Answer, answerOf, askHost } from './ask.ts';
import { COMMANDS, type Container, IMAGES_INSIDE } from './containers.ts';
import type { Cell, Group, Side } from './plan.ts';

/** Where one group of cells plays: a service, or a service in a capsule, on one of two hosts. */
export interface Stage {
  /** Makes everything anew, with the service at this side. */
  start(at: Side): Promise<void>;
  ask(from: Side, cell: Cell): Promise<Answer>;
  /** What is known of the service at this side, by everybody who could know of it. */
  known(side: Side): Promise<string[]>;
  clear(): Promise<void>;
}

export const NAME = 'matrix';
const PORTS = { peer: 7450, pairing: 7451 };
const HOSTS: Readonly<Record<Side, string>> = { a: 'alpha', b: 'beta' };
const READY_LIMIT_MS = 90_000;
const POLL_MS = 200;

export const other = (side: Side): Side => (side === 'a' ? 'b' : 'a');
export const hostOf = (lab: Lab, side: Side): Host => lab.host(HOSTS[side]);

export function stageOf(lab: Lab, group: Group, mib: number): Stage {
  const work = pulseArgs({ mib, dirty_kb_s: 1000 });
  return group.approach === 'container-level' ? new CapsuleStage(lab, group, work) : new PlainStage(lab, group, work);
}

/** Removes what an earlier run may have left, of every engine that is asked. */
export async function clearAll(lab: Lab, groups: readonly Group[]): Promise<void> {
  const engines = new Set(groups.flatMap(({ a, b }) => [a, b]));
  for (const engine of engines) {
    await Promise.all(lab.hosts.map((host) => COMMANDS[engine].remove(host, NAME)));
  }
}

abstract class TwoHosts {
  protected readonly lab: Lab;
  protected readonly group: Group;
  protected readonly work: readonly string[];

  constructor(lab: Lab, group: Group, work: readonly string[]) {
    this.lab = lab;
    this.group = group;
    this.work = work;
  }

  protected host(side: Side): Host {
    return hostOf(this.lab, side);
  }

  protected commands(side: Side) {
    return COMMANDS[this.group[side]];
  }

  async clear(): Promise<void> {
    // Also where the service has come by a way that nobody asked for.
    const engines = new Set([this.group.a, this.group.b]);
    for (const engine of engines) {
      await Promise.all([COMMANDS[engine].remove(this.host('a'), NAME), COMMANDS[engine].remove(this.host('b'), NAME)]);
    }
  }
}

/** A service as its engine has it, asked for at its host's agent. */
class PlainStage extends TwoHosts implements Stage {
  async start(at: Side): Promise<void> {
    await this.clear();
    const container: Container = { name: NAME, image: 'pulse', args: this.work, ports: [] };
    await this.commands(at).run(this.host(at), container);
  }

  ask(from: Side, { approach, technique, to }: Cell): Promise<Answer> {
    const service = `${this.group[from]}:${NAME}`;
    const where = ['--to', HOSTS[other(from)], '--engine', to];
    return askHost(this.lab, HOSTS[from], [service, ...where, '--approach', approach, '--technique', technique]);
  }

  async known(side: Side): Promise<string[]> {
    const engines = [...new Set([this.group.a, this.group.b])];
    const asked = engines.map(async (engine) => {
      const names = await COMMANDS[engine].names(this.host(side));
      return names.includes(NAME) ? [`a container of ${engine}`] : [];
    });
    return (await Promise.all(asked)).flat();
  }
}

/** Two capsules, of which one has the service: the agents within are asked, and the engines know of nothing. */
class CapsuleStage extends TwoHosts implements Stage {
  async start(at: Side): Promise<void> {
    await this.clear();
    await Promise.all([this.#run('a', at === 'a'), this.#run('b', at === 'b')]);
    await Promise.all([this.#answers('a'), this.#answers('b')]);
    const { token } = z.object({ token: z.string() }).parse(await this.#ums('a', 'pair', 'invite'));
    await this.#ums('b', 'pair', 'join', token);
  }

  async #run(side: Side, full: boolean): Promise<void> {
    const host = this.host(side);
    const agent = ['--name', systemOf(side), '--peer-address', host.address];
    const ports = ['--peer-port', String(PORTS.peer), '--pairing-port', String(PORTS.pairing)];
    const service = full ? ['--rootfs', `${IMAGES_INSIDE}/pulse.tar`, ...this.work] : [];
    const container: Container = {
      name: NAME,
      image: 'capsule',
      args: [...agent, ...ports, ...service],
      ports: Object.values(PORTS),
    };
    await this.commands(side).run(host, container);
  }

  #exec(side: Side, ...args: string[]) {
    return this.commands(side).exec(this.host(side), NAME, args);
  }

  async #ums(side: Side, ...words: string[]): Promise<unknown> {
    const { stdout, stderr, exitCode } = await this.#exec(side, 'ums', '--json', ...words);
    if (exitCode === 0) return JSON.parse(stdout.trim().split('\n').at(-1) ?? '');
    throw new UmsError('UMS_E_LAB', {
      message: `ums ${words.join(' ')} failed in the capsule under ${this.group[side]}.`,
      fault: 'ums',
      detail: stdout + stderr,
    });
  }

  async #answers(side: Side): Promise<void> {
    const limit = Date.now() + READY_LIMIT_MS;
    for (;;) {
      try {
        await this.#ums(side, 'systems');
        return;
      } catch (error) {
        if (Date.now() > limit) throw error;
      }
      await delay(POLL_MS);
    }
  }

  async ask(from: Side, { technique }: Cell): Promise<Answer> {
    const words = ['migrate', 'service', '--to', systemOf(other(from)), '--technique', technique];
    const began = Date.now();
    const { stdout, stderr } = await this.#exec(from, 'ums', '--json', ...words);
    return answerOf(stdout === '' ? stderr : stdout, { from: began, to: Date.now() });
  }

  async known(side: Side): Promise<string[]> {
    const { exitCode } = await this.#exec(side, 'test', '-e', BUNDLE);
    const { stdout } = await this.#exec(side, 'runc', 'list', '--quiet');
    return [
      ...(exitCode === 0 ? ['a bundle in the capsule'] : []),
      ...(stdout.trim() === '' ? [] : ['a nested container']),
    ];
  }
}

const systemOf = (side: Side): string => `${NAME}-${side}`;

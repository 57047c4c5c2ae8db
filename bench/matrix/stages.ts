import { setTimeout as delay } from 'node:timers/promises';
import type { Host } from '#lab/host.ts';
import type { Lab } from '#lab/lab.ts';
import { GRANTS, type MigratablePlace, removeMigratable, runMigratable } from '#lab/migratable.ts';
import { OF_SOME } from '#src/approaches/container-level/launch.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { agentIn, giveMigratable, pairAgents, servicesOf } from '../migratable.ts';
import { hostAgent } from '../moves.ts';
import { type Answer, ask } from './ask.ts';
import { COMMANDS, IMAGES_INSIDE, type Workload } from './containers.ts';
import type { Cell, Engine, Group, Side } from './plan.ts';

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
/** The one of an agent in a service's own container is for peers, the next one for pairing. */
const PORTS = { peer: 7450, pairing: 7451, service: 7540 };
const HOSTS: Readonly<Record<Side, string>> = { a: 'alpha', b: 'beta' };
const SIDES: readonly Side[] = ['a', 'b'];
const READY_LIMIT_MS = 90_000;
const POLL_MS = 200;

export const other = (side: Side): Side => (side === 'a' ? 'b' : 'a');
export const hostOf = (lab: Lab, side: Side): Host => lab.host(HOSTS[side]);

/** What runs in the service, and the name of its container. */
export interface Work {
  name: string;
  image: Workload;
  args: readonly string[];
}

/** What some engines grant by themselves, all of them do here: a service goes nowhere where it lacks what it has. */
const ALIKE = [...GRANTS, ...OF_SOME.flatMap((name) => ['--cap-add', name])];

/** Of the service's files those in here move at every approach. */
export const FILES = '/srv';

/** `given` has what the test hosts' engines have been given already, so that it is built and loaded once. */
export function stageOf(lab: Lab, group: Group, work: Work, given = new Set<string>()): Stage {
  switch (group.approach) {
    case 'orchestrator-level':
      return new PlainStage(lab, group, work);
    case 'container-level':
      return new CapsuleStage(lab, group, work);
    case 'service-level':
      return new MigratableStage(lab, group, work, given);
  }
}

/** Removes what an earlier run may have left, of every engine that is asked. */
export async function clearAll(lab: Lab, groups: readonly Group[], name = NAME): Promise<void> {
  const engines = new Set<Engine>(['podman', ...groups.flatMap(({ a, b }) => [a, b])]);
  for (const engine of engines) {
    await Promise.all(lab.hosts.map((host) => COMMANDS[engine].remove(host, name)));
  }
}

/** A service that is asked for at its host's agent. */
class PlainStage implements Stage {
  protected readonly lab: Lab;
  protected readonly group: Group;
  protected readonly work: Work;

  constructor(lab: Lab, group: Group, work: Work) {
    this.lab = lab;
    this.group = group;
    this.work = work;
  }

  async start(at: Side): Promise<void> {
    await this.clear();
    await COMMANDS[this.group[at]].run(hostOf(this.lab, at), { ...this.work, ports: [] });
  }

  ask(from: Side, { approach, technique, to }: Cell): Promise<Answer> {
    const service = `${this.group[from]}:${this.work.name}`;
    const where = ['--to', HOSTS[other(from)], '--engine', to];
    const words = [service, ...where, '--approach', approach, '--technique', technique];
    return ask(hostAgent(this.lab, HOSTS[from]), words);
  }

  async known(side: Side): Promise<string[]> {
    const asked = this.engines().map(async (engine) => {
      const names = await COMMANDS[engine].names(hostOf(this.lab, side));
      return names.includes(this.work.name) ? [`a container of ${engine}`] : [];
    });
    return (await Promise.all(asked)).flat();
  }

  async clear(): Promise<void> {
    for (const engine of this.engines()) {
      await Promise.all(SIDES.map((side) => COMMANDS[engine].remove(hostOf(this.lab, side), this.work.name)));
    }
  }

  /** Of either side: a service may have come by a way that nobody asked for. */
  protected engines(): Engine[] {
    return [...new Set([this.group.a, this.group.b])];
  }
}

/** A service in a capsule. The capsule that shall receive it is for the other host's agent to start. */
class CapsuleStage extends PlainStage {
  override async start(at: Side): Promise<void> {
    await this.clear();
    for (const engine of this.engines()) {
      await Promise.all(
        this.lab.hosts.map((host) => host.importImage('capsule', engine === 'runc' ? 'podman' : engine)),
      );
    }
    if (this.group[at] !== 'kubernetes') return await this.#run(at, this.group[at]);
    // A pod finds no files of its node without a volume that would bind it there, so its service comes from elsewhere.
    const from = other(at);
    await this.#run(from, 'podman');
    const words = [`podman:${this.work.name}`, '--to', HOSTS[at], '--engine', 'kubernetes', '--technique', 'cold'];
    const answer = await ask(hostAgent(this.lab, HOSTS[from]), words);
    if (answer.status === 'done') return;
    const message = `The service did not come to a pod: ${answer.code ?? ''}: ${answer.reason ?? ''}`;
    throw new UmsError('UMS_E_LAB', { message, fault: 'ums' });
  }

  async #run(side: Side, engine: Engine): Promise<void> {
    const host = hostOf(this.lab, side);
    await host.importImage('capsule', engine === 'runc' ? 'podman' : engine);
    const agent = ['--name', `${this.work.name}-${host.name}`, '--peer-address', host.address];
    const ports = ['--peer-port', String(PORTS.peer), '--pairing-port', String(PORTS.pairing)];
    const service = ['--rootfs', `${IMAGES_INSIDE}/${this.work.image}.tar`, ...this.work.args];
    const args = [...agent, ...ports, ...service];
    await COMMANDS[engine].run(host, {
      name: this.work.name,
      image: 'capsule',
      args,
      ports: [PORTS.peer, PORTS.pairing],
    });
    await this.#agentAnswers(host, engine);
  }

  async #agentAnswers(host: Host, engine: Engine): Promise<void> {
    const limit = Date.now() + READY_LIMIT_MS;
    for (;;) {
      const { exitCode, stderr } = await COMMANDS[engine].exec(host, this.work.name, ['ums', 'systems']);
      if (exitCode === 0) return;
      if (Date.now() > limit) {
        const message = `The agent in the capsule under ${engine} on ${host.name} does not answer.`;
        throw new UmsError('UMS_E_LAB', { message, fault: 'ums', detail: stderr });
      }
      await delay(POLL_MS);
    }
  }

  protected override engines(): Engine[] {
    const through: Engine[] = super.engines().includes('kubernetes') ? ['podman'] : [];
    return [...new Set([...super.engines(), ...through])];
  }
}

/** A service that moves itself, from its container to another one of the same image, which gives it back later. */
class MigratableStage implements Stage {
  readonly #lab: Lab;
  readonly #group: Group;
  readonly #work: Work;
  readonly #image: string;
  readonly #given: Set<string>;

  constructor(lab: Lab, group: Group, work: Work, given: Set<string>) {
    this.#lab = lab;
    this.#group = group;
    this.#work = work;
    this.#given = given;
    this.#image = `moving-${work.image}`;
  }

  async start(at: Side): Promise<void> {
    await this.clear();
    const { args, image } = this.#work;
    const places = SIDES.map((side) => this.#place(side));
    const wanted = { workload: image, name: this.#image, files: [FILES] };
    await giveMigratable(hostOf(this.#lab, 'a'), places, wanted, this.#given);
    for (const side of SIDES) {
      await runMigratable(this.#place(side), this.#image, { args, waits: side !== at, grants: ALIKE });
    }
    await pairAgents(await agentIn(this.#place('a')), await agentIn(this.#place('b')));
  }

  async ask(from: Side, { approach, technique }: Cell): Promise<Answer> {
    const to = this.#place(other(from)).container;
    const words = [this.#image, '--to', to, '--approach', approach, '--technique', technique];
    return await ask(await agentIn(this.#place(from)), words);
  }

  async known(side: Side): Promise<string[]> {
    return await servicesOf(await agentIn(this.#place(side)));
  }

  clear(): Promise<void> {
    return removeMigratable(...SIDES.map((side) => this.#place(side)));
  }

  #place(side: Side): MigratablePlace {
    const container = `${this.#work.name}-${side}`;
    return { host: hostOf(this.#lab, side), engine: this.#group[side], container, port: PORTS.service };
  }
}

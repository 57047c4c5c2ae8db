import type { Host } from '#lab/host.ts';
import type { Lab } from '#lab/lab.ts';
import { type MigratablePlace, removeMigratable, runMigratable } from '#lab/migratable.ts';
import { capsuleSeen, socketIn } from '#src/approaches/container-level/outside.ts';
import { AgentClient } from '#src/cli/client.ts';
import type { Migration } from '#src/coordination/schema.ts';
import { FILES, type Stage, stageOf } from '../matrix/stages.ts';
import { agentIn, giveMigratable, pairAgents, servicesOf } from '../migratable.ts';
import { type Move, move, moveBy } from '../moves.ts';
import { groupOf, isServiceEngine, type PaperWork, type Route } from './plan.ts';

/** How a service is started, moved and looked for under one approach. It goes from the first host to the second. */
export interface Way {
  /** Makes everything anew: the service on the first host, nothing of it on the second. */
  start(): Promise<void>;
  move(technique: string): Promise<Moved>;
  /** What is known of the service on the first host, by everybody who could know of it. */
  left(): Promise<string[]>;
  clear(): Promise<void>;
}

export interface Moved {
  moved: Move;
  /** Of what had to be done by hand before the command, from the request to the command. */
  prepared_ms: number;
  /** At container-level: what the agent in the capsule that received it says. */
  inner: Migration | null;
}

export function wayOf(lab: Lab, route: Route, work: PaperWork, built: Set<string>): Way {
  return route.approach === 'service-level'
    ? new ServiceWay(lab, route, work, built)
    : new HostsWay(lab, route, work, stageOf(lab, groupOf(route), work));
}

/** The hosts' agents move it: an engine's own container, or a capsule. */
class HostsWay implements Way {
  readonly #lab: Lab;
  readonly #route: Route;
  readonly #work: PaperWork;
  readonly #stage: Stage;

  constructor(lab: Lab, route: Route, work: PaperWork, stage: Stage) {
    this.#lab = lab;
    this.#route = route;
    this.#work = work;
    this.#stage = stage;
  }

  /** Both hosts have the image before anything is measured: how it travels is not the question here. */
  async start(): Promise<void> {
    const { approach, to } = this.#route;
    const carried = approach === 'orchestrator-level' && to !== 'runc';
    if (carried) await this.#lab.host('beta').importImage(this.#work.image, to);
    await this.#stage.start('a');
  }

  async move(technique: string): Promise<Moved> {
    const { approach, from, to } = this.#route;
    const words = ['--engine', to, '--approach', approach, '--technique', technique];
    const moved = await move(this.#lab, `${from}:${this.#work.name}`, 'alpha', 'beta', { visible: false, words });
    const nested = approach === 'container-level';
    return { moved, prepared_ms: 0, inner: nested ? await innerMigration(this.#lab.host('beta'), moved.from) : null };
  }

  left(): Promise<string[]> {
    return this.#stage.known('a');
  }

  clear(): Promise<void> {
    return this.#stage.clear();
  }
}

/** What the agent in a capsule of this host says of what it has received since. */
async function innerMigration(host: Host, since: number): Promise<Migration | null> {
  for (const pid of host.processes()) {
    if (capsuleSeen(pid) === undefined) continue;
    const client = new AgentClient({ name: 'capsule', socket: socketIn(pid) });
    try {
      const received = (await client.migrations()).filter(
        ({ role, started_at }) => role === 'destination' && started_at >= since,
      );
      const last = received.toSorted((a, b) => b.started_at - a.started_at)[0];
      if (last !== undefined) return last;
    } finally {
      await client.close();
    }
  }
  return null;
}

/**
 * The service's own container moves it to another one of the same image. That other one is what any migration makes at its
 * destination, so it is started and paired within the time that is measured.
 */
class ServiceWay implements Way {
  readonly #work: PaperWork;
  readonly #image: string;
  readonly #here: MigratablePlace;
  readonly #there: MigratablePlace;
  /** Images that this run has built and loaded. */
  readonly #built: Set<string>;

  constructor(lab: Lab, { from, to }: Route, work: PaperWork, built: Set<string>) {
    if (!isServiceEngine(from) || !isServiceEngine(to)) {
      throw new Error(`service-level is not run from ${from} to ${to}`);
    }
    this.#work = work;
    this.#image = `moving-${work.image}`;
    this.#here = { host: lab.host('alpha'), engine: from, container: `${work.name}-here`, port: 7540 };
    this.#there = { host: lab.host('beta'), engine: to, container: `${work.name}-there`, port: 7540 };
    this.#built = built;
  }

  async start(): Promise<void> {
    await this.clear();
    const wanted = { workload: this.#work.image, name: this.#image, files: [FILES] };
    await giveMigratable(this.#here.host, [this.#here, this.#there], wanted, this.#built);
    await runMigratable(this.#here, this.#image, { args: this.#work.args });
    await agentIn(this.#here);
  }

  async move(): Promise<Moved> {
    const requested_at = Date.now();
    await runMigratable(this.#there, this.#image, { args: this.#work.args, waits: true });
    const [here, there] = [await agentIn(this.#here), await agentIn(this.#there)];
    await pairAgents(here, there);
    const words = ['--approach', 'service-level', '--technique', 'cold'];
    const moved = await moveBy(here, this.#image, this.#there.container, { visible: false, words });
    return { moved, prepared_ms: moved.from - requested_at, inner: null };
  }

  async left(): Promise<string[]> {
    return await servicesOf(await agentIn(this.#here));
  }

  clear(): Promise<void> {
    return removeMigratable(this.#here, this.#there);
  }
}

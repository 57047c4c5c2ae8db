import { DAEMON_ENGINES, type DaemonEngine } from '#lab/lab.ts';
import type { MigratableEngine } from '#lab/migratable.ts';
import { type Approach, APPROACHES, type Engine, type Group } from '../matrix/plan.ts';
import { FILES, type Work } from '../matrix/stages.ts';

/** From one host's engine to the other host's, by one approach. */
export interface Route {
  approach: Approach;
  from: Engine;
  to: Engine;
}

/** Between these containers of a migratable image have been seen to hand their service over. */
export const SERVICE_ENGINES = ['podman', 'docker', 'kubernetes'] as const satisfies readonly MigratableEngine[];
export type ServiceEngine = (typeof SERVICE_ENGINES)[number];
/** Where service-level is shown when none of the engines that are asked for can do it. */
const SERVICE_ROUTE: Route = { approach: 'service-level', from: 'podman', to: 'docker' };

export const isServiceEngine = (engine: Engine): engine is ServiceEngine =>
  SERVICE_ENGINES.some((each) => each === engine);

/** Every approach between hosts of one engine each; service-level between those that it can be run on. */
export function routesOf(asked: { approach: readonly Approach[]; engine: readonly Engine[] }): Route[] {
  const approaches = APPROACHES.filter((each) => asked.approach.includes(each));
  return approaches.flatMap((approach) => {
    const engines = approach === 'service-level' ? asked.engine.filter(isServiceEngine) : [...asked.engine];
    if (approach === 'service-level' && engines.length === 0) return [SERVICE_ROUTE];
    return engines.map((engine) => ({ approach, from: engine, to: engine }));
  });
}

export function groupOf({ approach, from, to }: Route): Group {
  return { approach, a: from, b: to, cells: [] };
}

/** Daemons that the test hosts must run. */
export function daemonsFor(routes: readonly Route[]): DaemonEngine[] {
  const used = new Set<string>(routes.flatMap(({ from, to }) => [from, to]));
  return DAEMON_ENGINES.filter((engine) => used.has(engine));
}

export function nameOf({ from, to }: Pick<Route, 'from' | 'to'>): string {
  return `${from} → ${to}`;
}

/** What runs in the service, and how it can be known again. */
export interface PaperWork extends Work {
  /** Of the program; the service may have other processes, but has not. */
  processes: number;
}

/** One point of an experiment: what is varied, and what runs at it. */
export interface Point {
  /** MiB, processes: what the horizontal axis shows. */
  at: number;
  title: string;
  work: PaperWork;
}

const NAME = 'paper';

/** Memory that cannot be compressed and is not written, in place of the paper's memhog. */
export function holding(mib: number): PaperWork {
  return { name: NAME, image: 'pulse', args: hold(mib, 1), processes: 1 };
}

function hold(mib: number, number: number): string[] {
  return ['pulse', 'hold', '--size', String(mib), '--log', `${FILES}/pulse-${number}.log`];
}

/** So many processes of one service: the first starts the others and then becomes one of them itself. */
export function processesOf(count: number, mib: number): PaperWork {
  const others = Array.from({ length: count - 1 }, (_, at) => `${hold(mib, at + 2).join(' ')} &`);
  const script = [...others, `exec ${hold(mib, 1).join(' ')}`].join(' ');
  const args = count === 1 ? hold(mib, 1) : ['sh', '-c', script];
  return { name: NAME, image: 'pulse', args, processes: count };
}

/** A network that computes and keeps every result (lab/workloads/growing.c). */
export function growingBy(kb_s: number, start_mib: number): PaperWork {
  const amounts = ['--start', String(start_mib), '--rate', String(kb_s)];
  return { name: NAME, image: 'growing', args: ['growing', ...amounts, '--log', `${FILES}/growing.log`], processes: 1 };
}

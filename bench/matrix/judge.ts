import { setTimeout as delay } from 'node:timers/promises';
import type { Host } from '#lab/host.ts';
import type { Lab } from '#lab/lab.ts';
import { toUmsError } from '#src/telemetry/errors.ts';
import { gapsOf, lengthOf, longestGap, type PulseLog } from '../measure/pulse-log.ts';
import type { Answer } from './ask.ts';
import type { Cell, Side } from './plan.ts';
import { hostOf, other, type Stage } from './stages.ts';
import type { CellResult } from './table.ts';
import { beganOn, provedAfter, readLog, witnesses } from './witness.ts';

const CALM_TICKS = 300;
const GONE_LIMIT_MS = 10_000;
const POLL_MS = 100;

/** Asks for one cell, and looks at both hosts whether what was answered is so. */
export async function judge(lab: Lab, stage: Stage, from: Side, cell: Cell, signal: AbortSignal): Promise<CellResult> {
  const source = hostOf(lab, from);
  const pid = await beganOn(source, CALM_TICKS, signal);
  const before = await readLog(pid);
  const answer = await stage.ask(from, cell);
  signal.throwIfAborted();
  const problems: string[] = [];
  let log: PulseLog | undefined;
  try {
    const host = hostOf(lab, answer.status === 'done' ? other(from) : from);
    const alive = await theOneOn(host, hostOf(lab, answer.status === 'done' ? from : other(from)), problems);
    if (answer.status !== 'done' && alive !== undefined && alive !== pid) problems.push('it is not the process it was');
    if (alive !== undefined) log = await provedAfter(alive, answer.to, signal);
    problems.push(...(await leftovers(stage, from, answer)));
  } catch (thrown) {
    signal.throwIfAborted();
    problems.push(toUmsError(thrown).message);
  }
  if (log !== undefined) problems.push(...continuity(before, log));
  problems.push(...spoken(answer));
  return { ...resultOf(cell, answer, log, problems), problems };
}

/** The service's one process where it must be, and none where it must not be. */
async function theOneOn(host: Host, empty: Host, problems: string[]): Promise<number | undefined> {
  const limit = Date.now() + GONE_LIMIT_MS;
  while (witnesses(empty).length > 0 && Date.now() < limit) await delay(POLL_MS);
  if (witnesses(empty).length > 0) problems.push(`it runs on ${empty.name}, too`);
  const [pid, another] = witnesses(host);
  if (pid === undefined) problems.push(`it does not run on ${host.name}`);
  if (another !== undefined) problems.push(`it runs more than once on ${host.name}`);
  return pid;
}

/** After a move nothing of it is left where it was; after a refusal nothing has come to be where it was to go. */
async function leftovers(stage: Stage, from: Side, { status }: Answer): Promise<string[]> {
  const [full, empty] = status === 'done' ? [other(from), from] : [from, other(from)];
  const limit = Date.now() + GONE_LIMIT_MS;
  let left = await stage.known(empty);
  while (left.length > 0 && Date.now() < limit) {
    await delay(POLL_MS);
    left = await stage.known(empty);
  }
  const owner = await stage.known(full);
  return [
    ...left.map((what) => `${what} is left on the side where nothing may be`),
    ...(owner.length === 0 ? ['nobody knows of it where it runs'] : []),
  ];
}

const last = (log: PulseLog): number => log.entries.at(-1)?.n ?? 0;

export function continuity(before: PulseLog, log: PulseLog): string[] {
  return [
    ...(log.continuous ? [] : ['its ticks have a break, or two copies made them']),
    ...(log.checksums_bad === 0 ? [] : ['its memory is not what it must be']),
    ...(last(log) > last(before) ? [] : ['it is behind where it was']),
  ];
}

/** A refusal must say why, and what cannot be done must be said before it is begun. */
function spoken({ status, code, reason }: Answer): string[] {
  if (status === 'done') return [];
  if (status === 'failed') return [`it failed: ${code ?? 'no code'}: ${reason ?? 'no reason'}`];
  return code?.startsWith('UMS_E_') === true && (reason ?? '') !== '' ? [] : ['it was refused without a reason'];
}

function resultOf(cell: Cell, answer: Answer, log: PulseLog | undefined, problems: readonly string[]) {
  const { status, code, reason, mend, agents, from, to } = answer;
  const away = log === undefined || status !== 'done' ? undefined : longestGap(gapsOf(log), from, to);
  return {
    cell,
    repetition: 1,
    outcome:
      problems.length > 0 ? ('wrong' as const) : status === 'done' ? ('migrated' as const) : ('refused' as const),
    code,
    reason,
    mend,
    downtime_ms: away === undefined ? null : lengthOf(away),
    total_ms: to - from,
    agents,
  };
}

import { setTimeout as delay } from 'node:timers/promises';
import { z } from 'zod';
import type { Lab } from '#lab/lab.ts';
import type { Migration } from '#src/coordination/schema.ts';
import { toUmsError } from '#src/telemetry/errors.ts';
import { qualityOf, type Quality } from './measure/service-quality.ts';
import { type Move, move } from './moves.ts';
import { type ClientView, PulseClient } from './pulse/client.ts';
import {
  checkMemory,
  frontPulse,
  pidOf,
  PULSE,
  type PulseSettings,
  readPulse,
  removePulse,
  startPulse,
} from './pulse/service.ts';

/** One move of the workload pulse by `ums`, and everything that is known of it afterwards. */
export const TECHNIQUES = ['cold', 'pre-copy', 'post-copy', 'hybrid'] as const;
export type Technique = (typeof TECHNIQUES)[number];

export interface Case extends PulseSettings {
  technique: Technique;
  /** More words for `ums migrate`. */
  words?: readonly string[];
}

export interface Outcome extends Case, Quality {
  /** Of the command, from its start to its end. */
  total_ms: number;
  bytes_on_wire: number;
  /** Rounds of copying while it ran. */
  rounds: Round[];
  /** How often it was given up before, because its downtime would have been longer than asked for. */
  stalls: number;
  /** Of memory alone, in all phases. */
  memory_wire_bytes: number;
  /** From its first tick at the destination until all memory was there, where that came later. */
  filling_ms: number | null;
  client: ClientView | null;
  continuous: boolean;
  memory_ok: boolean;
  migration: Migration;
}

const roundSchema = z.object({
  event: z.literal('round'),
  round: z.int(),
  elapsed_ms: z.number(),
  changed_bytes: z.number(),
  wire_bytes: z.number(),
  left_bytes: z.number(),
  predicted_downtime_ms: z.number(),
  predicted_total_ms: z.number(),
  decision: z.string(),
  why: z.string(),
});
export type Round = z.infer<typeof roundSchema>;

export interface Watch {
  signal: AbortSignal;
  /** How often the client outside asks; undefined: there is none. */
  client_every_us?: number | undefined;
  /** How long at most the service is watched for being back to full speed. */
  watch_ms?: number;
}

const WATCH_MS = 20_000;
/** Enough to see a whole second of full speed at the earliest possible moment. */
const WATCH_LEAST_MS = 1500;
const POLL_MS = 250;

/** Starts the service anew on the first host, moves it to the second and looks at it there. */
export async function freshMove(lab: Lab, one: Case, watch: Watch): Promise<Outcome> {
  await removePulse(lab);
  const alpha = lab.host('alpha');
  const reachable = watch.client_every_us !== undefined;
  await startPulse(alpha, { ...one, reachable }, watch.signal);
  if (reachable) await frontPulse(lab, alpha);
  return oneMove(lab, one, 'alpha', 'beta', watch);
}

/** Moves the service that is there. */
export async function oneMove(lab: Lab, one: Case, from: string, to: string, watch: Watch): Promise<Outcome> {
  watch.signal.throwIfAborted();
  const { client_every_us: every_us } = watch;
  const client = every_us === undefined ? undefined : PulseClient.start(lab, lab.host('alpha'), every_us);
  try {
    if (client !== undefined) await delay(CLIENT_FIRST_MS);
    const { moved, rounds, stalls } = await moveAccepting(lab, one, from, to);
    watch.signal.throwIfAborted();
    const seen = await lookAt(lab, one, to, moved, watch);
    return { ...one, ...seen, rounds, stalls, client: client === undefined ? null : await client.end(moved) };
  } finally {
    client?.close();
  }
}

/** So long the client asks undisturbed before the move. */
const CLIENT_FIRST_MS = 500;

/** The longest downtime that can be asked for, which is to say: whatever it takes. */
const WHATEVER = '1h';
/** Of a predicted downtime, what is asked for when the default was given up on. */
const ROOM = 1.5;

/**
 * Moves it. Where pre-copy gives up because the service writes too fast and cannot be slowed, the service is untouched,
 * and its operator would ask again with a longer downtime: first what was predicted, then whatever it takes.
 */
async function moveAccepting(lab: Lab, one: Case, from: string, to: string) {
  let rounds: Round[] = [];
  const event = (told: Record<string, unknown>): void => {
    const { data } = roundSchema.safeParse(told);
    if (data !== undefined) rounds.push(data);
  };
  for (let stalls = 0; ; stalls += 1) {
    const predicted_ms = rounds.at(-1)?.predicted_downtime_ms ?? 0;
    const accepted = stalls === 1 ? `${Math.ceil(predicted_ms * ROOM) + 1}ms` : WHATEVER;
    const words = [...wordsOf(one), ...(stalls === 0 ? [] : ['--max-downtime', accepted])];
    rounds = [];
    try {
      return { moved: await move(lab, PULSE, from, to, { visible: false, words, event }), rounds, stalls };
    } catch (thrown) {
      if (toUmsError(thrown).code !== 'UMS_E_STALLED' || stalls >= 2) throw thrown;
    }
  }
}

function wordsOf(one: Case): string[] {
  return ['--technique', one.technique, ...(one.words ?? [])];
}

const memorySchema = z.object({ memory: z.object({ wire_bytes: z.number(), filling_ms: z.number().nullable() }) });

function memoryOf(migration: Migration): Pick<Outcome, 'memory_wire_bytes' | 'filling_ms'> {
  const { data } = memorySchema.safeParse(migration);
  return {
    memory_wire_bytes: data?.memory.wire_bytes ?? migration.bytes_on_wire,
    filling_ms: data?.memory.filling_ms ?? null,
  };
}

async function lookAt(lab: Lab, one: Case, to: string, moved: Move, watch: Watch) {
  const host = lab.host(to);
  const pid = await pidOf(host, one.engine, PULSE);
  const { migration } = moved;
  const restoring = migration.steps.find((step) => step.name === 'restoring');
  const frozen_at = restoring === undefined ? undefined : migration.started_at + restoring.start_ms;
  const times = { from: moved.from, to: moved.to, frozen_at };
  const limit = Date.now() + (watch.watch_ms ?? WATCH_MS);
  const least = Date.now() + WATCH_LEAST_MS;
  let quality = qualityOf(await readPulse(host, pid), times);
  while ((quality.after.full_speed_ms === null || Date.now() < least) && Date.now() < limit) {
    await delay(POLL_MS, undefined, { signal: watch.signal });
    quality = qualityOf(await readPulse(host, pid), times);
  }
  const log = await checkMemory(host, pid, watch.signal);
  return {
    ...quality,
    total_ms: moved.to - moved.from,
    bytes_on_wire: migration.bytes_on_wire,
    ...memoryOf(migration),
    continuous: log.continuous,
    memory_ok: log.checksums_ok > 0 && log.checksums_bad === 0,
    migration,
  };
}

export interface Failure {
  error: string;
}

/** A move that fails is a result too: it is told, and the next one gets its chance. */
export async function attempt<Result extends object>(
  act: () => Promise<Result>,
  signal: AbortSignal,
): Promise<Result | Failure> {
  try {
    return await act();
  } catch (thrown) {
    signal.throwIfAborted();
    const error = toUmsError(thrown);
    return { error: `${error.code}: ${error.message}` };
  }
}

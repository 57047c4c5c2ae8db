/**
 * The states of a migration, on both sides: the one table from which the saga, the kill tests and the documents are made.
 *
 *  SOURCE                                                    DESTINATION
 *  planned      row exists, service locked
 *  checking     pre-flight, nothing touched
 *  reserving    asks the destination to make room  ───────▶  reserving   image, container, directories are made
 *                                                  ◀───────  reserved    waits for data
 *  copying      image and files while it runs      ───────▶  reserved
 *  holding      control messages and traffic wait
 *  freezing     service is frozen
 *  dumping      memory and last file changes       ───────▶  receiving ▶ received
 *  restoring    asks for a restore                 ───────▶  restoring   processes are made, none runs
 *                                                  ◀───────  restored
 * ┌committing   tells it to run                    ───────▶  committing  the service runs and is looked after
 * │  the window: thawed only if the destination answers that it does not run
 * └             ◀────────────────────────────────────────── active      (or aborted)
 *  committed    is it still alive there?           ───────▶  settling    the one copy; never goes back
 *  redirecting  traffic goes to the destination
 *  filling      memory that is still here follows  ───────▶  settling    serves it to the processes as they need it
 *  removing     the source's copy is deleted       ───────▶  done
 *  done
 *
 *  nested       after `reserving`, where what moves is the service within a capsule: the agents in the two capsules move
 *               it by a saga of their own, which this one follows to `removing` or to `aborting`
 *
 *  On any failure before `committing`: aborting (thaw, release, tell the destination to give up) ▶ aborted.
 *  In `committing` the source repeats `commit` until the destination answers: `active` goes on, `aborted` goes back. Only
 *  if an operator cancels does it ask with `give-up` instead, which ends for good what has not been committed yet; by
 *  itself it must not, because after a loss of the source's host the destination's copy may be the only one. Where memory
 *  was to follow the commit, such a source commits only a copy that is whole, and the destination drops any other.
 *  In `committed` the destination may still answer `aborted`: it lost the service before anyone was served there.
 *  From `redirecting` on every failure is tried again until it succeeds: there is no way back by itself. While memory
 *  is still `filling` the source keeps its frozen copy; if the destination can never get the rest, the migration is in
 *  doubt, and only an operator may choose the frozen copy, which knows nothing of what happened since.
 *  docs/model checks this with Promela.
 */
export const SOURCE_STATES = [
  'planned',
  'checking',
  'reserving',
  'copying',
  'holding',
  'freezing',
  'dumping',
  'restoring',
  'committing',
  'committed',
  'redirecting',
  'filling',
  'nested',
  'removing',
  'done',
  'aborting',
  'aborted',
] as const;
export type SourceState = (typeof SOURCE_STATES)[number];

export const DESTINATION_STATES = [
  'reserving',
  'reserved',
  'receiving',
  'received',
  'restoring',
  'restored',
  'committing',
  'active',
  'settling',
  'done',
  'aborting',
  'aborted',
] as const;
export type DestinationState = (typeof DESTINATION_STATES)[number];

export type Role = 'source' | 'destination';
export type MigrationState = SourceState | DestinationState;
export const FINAL_STATES = ['done', 'aborted'] as const satisfies readonly MigrationState[];

/**
 * Of these a power cut may leave the one before. Nothing has happened in them that outlives the host's memory, or that
 * the other side was promised, so they need no flush to the disk: in most of them the service stands still.
 */
const FLEETING_STATES: readonly MigrationState[] = [
  'checking',
  'copying',
  'holding',
  'freezing',
  'dumping',
  'receiving',
  'received',
  'restored',
];

/** Whether reaching this state must survive a power cut; `restoring` must at the source, whose service may be rescued by it. */
export function mustLast(role: Role, state: MigrationState): boolean {
  return !FLEETING_STATES.includes(state) && !(role === 'destination' && state === 'restoring');
}

export function isSourceState(state: string): state is SourceState {
  return SOURCE_STATES.some((known) => known === state);
}

export function isDestinationState(state: string): state is DestinationState {
  return DESTINATION_STATES.some((known) => known === state);
}

export function isMigrationState(state: string): state is MigrationState {
  return isSourceState(state) || isDestinationState(state);
}

export function isFinal(state: MigrationState): boolean {
  return FINAL_STATES.some((final) => final === state);
}

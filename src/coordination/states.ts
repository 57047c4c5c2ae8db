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
 *  committed    the destination owns the service   ───────▶  settling    marks and images are dropped
 *  redirecting  traffic goes to the destination              done
 *  removing     the source's copy is deleted
 *  done
 *
 *  On any failure before `committing`: aborting (tell the destination to drop everything, thaw, release) ▶ aborted.
 *  In `committing`: ask until the destination answers. `active` goes on, `aborted` goes back. A destination that has
 *  not been told to commit answers the question by aborting for good, so the answer can never change afterwards.
 *  From `committed` on every failure is tried again until it succeeds: there is no way back.
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

export function isMigrationState(state: string): state is MigrationState {
  return [...SOURCE_STATES, ...DESTINATION_STATES].some((known) => known === state);
}

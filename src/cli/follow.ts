import { setTimeout as delay } from 'node:timers/promises';
import type { Migration, MigrationEvent } from '#src/coordination/schema.ts';
import { toUmsError, UmsError } from '#src/telemetry/errors.ts';
import type { AgentClient } from './client.ts';
import { type Cli, suggest } from './command.ts';
import { openDisplay, type Display } from './display.ts';
import { EXIT_DETACHED } from './exit-statuses.ts';
import { exitStatusOf, renderChoices, renderOutcome, resultEvent, statusOf } from './outcome.ts';
import { renderError } from './render-error.ts';

/** How long an agent may be away (it is being restarted, say) before the command line gives up looking. */
const RECONNECT_LIMIT_MS = 60_000;
const RECONNECT_EVERY_MS = 250;

interface Watch {
  seq: number;
  ended: Migration | undefined;
  inDoubt: boolean;
}

/** Follows a migration to its end, shows it, and returns the exit status. Ctrl-C asks to cancel, again detaches. */
export async function follow(cli: Cli, client: AgentClient, started: Migration, after = 0): Promise<number> {
  const display = openDisplay(cli, started);
  const detach = new AbortController();
  const release = cli.io.onInterrupt(interruptHandler(client, started.id, display, detach));
  const watch: Watch = { seq: after, ended: undefined, inDoubt: false };
  try {
    await watchEvents(client, started.id, watch, display, detach.signal);
  } finally {
    release();
    display.stop();
  }
  if (detach.signal.aborted && watch.ended === undefined) return detached(cli, started);
  return conclude(cli, client, watch.ended ?? (await client.migration(started.id)));
}

function interruptHandler(client: AgentClient, id: string, display: Display, detach: AbortController): () => void {
  let asked = false;
  return () => {
    if (asked) {
      detach.abort();
      return;
    }
    asked = true;
    display.note('Cancelling … (Ctrl-C again stops watching and leaves the migration to the agents)');
    client.cancel(id).catch((thrown: unknown) => {
      const error = toUmsError(thrown);
      display.note(`It cannot be cancelled: ${error.message} ${error.mend}`.trim());
    });
  };
}

/** Reads events until the end, across a restart of the agent. */
async function watchEvents(client: AgentClient, id: string, watch: Watch, display: Display, signal: AbortSignal) {
  let lost_at: number | undefined;
  while (watch.ended === undefined && !watch.inDoubt && !signal.aborted) {
    const before = watch.seq;
    try {
      for await (const event of client.events(id, watch.seq, signal)) {
        take(event, watch, display);
        // An old doubt may have been settled since: the journal knows whether it still stands.
        if (event.event === 'in_doubt') watch.inDoubt = (await client.migration(id)).in_doubt;
        if (watch.ended !== undefined || watch.inDoubt) return;
      }
      // The stream may end without `ended` when the agent stops in an orderly way; then the journal is asked.
      await settleFromJournal(client, id, watch);
    } catch (thrown) {
      if (signal.aborted) return;
      if (!(thrown instanceof UmsError) || thrown.code !== 'UMS_E_AGENT_UNREACHABLE') throw thrown;
      if (lost_at === undefined || watch.seq > before) {
        lost_at = Date.now();
        display.note('The agent does not answer; looking again …');
      }
      if (Date.now() - lost_at > RECONNECT_LIMIT_MS) throw thrown;
    }
    await delay(RECONNECT_EVERY_MS);
  }
}

function take(event: MigrationEvent, watch: Watch, display: Display): void {
  if (event.seq <= watch.seq) return;
  watch.seq = event.seq;
  display.event(event);
  if (event.event === 'ended') watch.ended = event.migration;
}

async function settleFromJournal(client: AgentClient, id: string, watch: Watch): Promise<void> {
  const migration = await client.migration(id);
  if (statusOf(migration) === 'done' || statusOf(migration) === 'aborted') watch.ended = migration;
  if (statusOf(migration) === 'in_doubt') watch.inDoubt = true;
}

function detached(cli: Cli, migration: Migration): number {
  cli.emit({ ...resultEvent(migration), status: 'running' });
  cli.say(`The migration goes on without this command. To look: ums show ${migration.id} --follow`);
  return EXIT_DETACHED;
}

/** A system that is not known is found out only when it is asked: then too the nearest names help. */
async function withNames(client: AgentClient, { error, service, destination }: Migration): Promise<Migration['error']> {
  if (error === null) return null;
  return (await suggest(client, { service, system: destination }, UmsError.fromReport(error))).toReport();
}

/** Tells how a migration ended. */
export async function conclude(cli: Cli, client: AgentClient, ended: Migration): Promise<number> {
  const columns = cli.io.columns();
  const status = statusOf(ended);
  const migration = { ...ended, error: await withNames(client, ended) };
  if (cli.json) cli.emit(resultEvent(migration));
  else if (status === 'done') cli.say(renderOutcome(migration, cli.style, columns));
  else {
    if (migration.error !== null) cli.io.err(renderError(UmsError.fromReport(migration.error), cli.style, columns));
    if (status === 'in_doubt') cli.say(`\n${renderChoices(migration)}`);
    if (status === 'aborted' && migration.error === null)
      cli.say(`${migration.service} was not moved; it is on ${migration.source}.`);
  }
  return exitStatusOf(migration);
}

import { UmsError } from '#src/telemetry/errors.ts';
import { approachOf } from './approach.ts';
import { bootMark } from './boot.ts';
import type { SagaContext } from './context.ts';
import { EarlyPreflight } from './early-preflight.ts';
import { techniqueRows } from './forecast.ts';
import { Destination } from './destination/destination.ts';
import { isForsaken } from './destination/lease.ts';
import { newMigrationId, type Row } from './journal.ts';
import { APPROACH, checkNested } from './nested/source.ts';
import { askedFor, chosenFor, makePlan, planOf, runsEarly } from './plan.ts';
import { findFirst, findService, type Found, preflight } from './preflight.ts';
import type { CheckResult, Migration, MigrateOptions } from './schema.ts';
import { SourceSaga } from './source/saga.ts';
import { tellPeer } from './source/tell-peer.ts';
import type { SourceState } from './states.ts';
import { type ChosenWay, wayOf } from './choose-way.ts';

const MAINTENANCE_PERIOD_MS = 5000;

/** Both sides of every migration of this agent: what the API calls, and what happens after a restart. */
export class Coordinator {
  readonly source: SourceSaga;
  readonly destination: Destination;
  readonly #context: SagaContext;
  #maintenance: NodeJS.Timeout | undefined;

  constructor(context: SagaContext) {
    this.#context = context;
    this.source = new SourceSaga(context);
    this.destination = new Destination(context);
  }

  async check(service: string, to: string, options: MigrateOptions): Promise<CheckResult> {
    this.#refuseDestination(to);
    const found = await findService(this.#context, service);
    const way = wayOf(found, options);
    if (way.nested) return await this.#checkNested(found, to, options, way);
    const result = await preflight(this.#context, found, to, options, undefined, AbortSignal.timeout(120_000));
    const blocked = result.findings.some((finding) => finding.severity === 'error');
    const { choice } = await result.forecast();
    const plan = makePlan(askedFor(options) ?? chosenFor(choice), result.sizes, result.notLazy);
    return {
      service: result.description.specification.name,
      source: this.#context.systemName,
      destination: to,
      technique: plan.technique,
      approach: approachOf(result.description.specification.engine),
      feasible: !blocked,
      findings: result.findings,
      state_bytes: result.sizes.state_bytes,
      file_bytes: result.sizes.file_bytes,
      why: `${way.why} ${plan.why}`,
      techniques: techniqueRows(choice),
    };
  }

  /** The technique is for the agents in the capsules to choose: they have not met yet. */
  async #checkNested(found: Found, to: string, options: MigrateOptions, way: ChosenWay): Promise<CheckResult> {
    const request = { id: newMigrationId(), to, options };
    const { findings, blocking } = await checkNested(this.#context, found, request, AbortSignal.timeout(120_000));
    return {
      service: found.description.specification.name,
      source: this.#context.systemName,
      destination: to,
      technique: options.technique === 'auto' ? null : options.technique,
      approach: APPROACH,
      feasible: blocking === undefined,
      findings,
      state_bytes: 0,
      file_bytes: 0,
      why: way.why,
      techniques: [],
    };
  }

  async migrate(service: string, to: string, options: MigrateOptions): Promise<Migration> {
    const { journal } = this.#context;
    this.#refuseDestination(to);
    const id = newMigrationId();
    const { first, only } = await findFirst(this.#context, service);
    const way = wayOf(first, options);
    const early = way.nested
      ? undefined
      : new EarlyPreflight((signal) => preflight(this.#context, first, to, options, id, signal));
    try {
      await only;
      await this.#begin(id, first, to, options, way, early);
    } catch (error) {
      early?.drop(error);
      throw error;
    }
    return journal.view(id);
  }

  async #begin(
    id: string,
    found: Found,
    to: string,
    options: MigrateOptions,
    way: ChosenWay,
    early: EarlyPreflight | undefined,
  ): Promise<void> {
    const { journal, systemName } = this.#context;
    const { driver, description } = found;
    const engineId = description.summary.id;
    const uid = journal.knowService(driver.engine, engineId, description.handle);
    const row = journal.insert({
      id,
      role: 'source',
      state: 'planned',
      serviceUid: uid,
      // By engine and id from here on: a name can be given to another container meanwhile.
      service: description.specification.name,
      engine: driver.engine,
      engineId,
      handle: description.handle,
      source: systemName,
      destination: to,
      options,
      specification: JSON.stringify(description.specification),
      data: { boot: await bootMark(), ...(way.nested ? { approach: APPROACH, why: way.why } : {}) },
    });
    this.source.start(row.id, early);
  }

  #refuseDestination(to: string): void {
    if (to !== this.#context.systemName) {
      this.#context.peers.requireLive(to);
      return;
    }
    throw new UmsError('UMS_E_USAGE', {
      message: `${to} is this system: the service is there already.`,
      fault: 'user',
      state: 'Nothing was changed.',
      mend: 'Choose another system (ums systems).',
    });
  }

  cancel(id: string): Migration {
    this.source.cancel(id);
    return this.#context.journal.view(id);
  }

  recoverByOperator(id: string, choice: 'thaw-source' | 'drop-source'): Migration {
    this.source.recover(id, choice);
    return this.#context.journal.view(id);
  }

  /** Refuses the user's own control messages while a migration holds the service. */
  refuseIfHeld(engine: string, engineId: string): void {
    const holder = this.#context.journal.lockHolder(engine, engineId);
    if (holder === undefined) return;
    throw new UmsError('UMS_E_SERVICE_BUSY', {
      message: `The service takes part in migration ${holder}, which holds such commands until it ends.`,
      fault: 'user',
      state: 'Nothing was changed.',
      mend: `Wait for it (ums show ${holder}) or cancel it (ums cancel ${holder}).`,
    });
  }

  /** After a start: every unfinished migration goes on or goes back, from what the journal and the engines say. */
  async recover(): Promise<void> {
    const { journal, log } = this.#context;
    for (const row of journal.unfinished()) {
      try {
        if (row.role === 'destination') await this.destination.recover(row.id);
        else await this.#recoverSource(row);
      } catch (error) {
        log.error({ migration: row.id, err: error }, 'recovery failed; it is tried again at the next start');
      }
    }
    this.#maintenance = setInterval(() => {
      this.#maintain().catch((error: unknown) => log.error({ err: error }, 'maintenance failed; it is tried again'));
    }, MAINTENANCE_PERIOD_MS);
    this.#maintenance.unref();
  }

  async #recoverSource(row: Row): Promise<void> {
    const { journal } = this.#context;
    await this.#stopFreshCopy(row);
    const going: readonly string[] = [
      'committing',
      'committed',
      'redirecting',
      'filling',
      'nested',
      'removing',
      'aborting',
    ];
    if (!going.includes(row.state)) {
      const next = await this.#whereFrom(row);
      if (next === 'aborting' && row.error === null) {
        journal.update(row.id, { error: restarted(row, this.#context.systemName).toReport() });
      }
      journal.transition(row.id, row.state, next);
    }
    this.source.start(row.id);
  }

  /**
   * This host went down while the destination had, or may have, all of the service. If a restart policy started a copy
   * from the files here, it must not go on beside the real one.
   */
  async #stopFreshCopy(row: Row): Promise<void> {
    const handedOver: readonly string[] = [
      'dumping',
      'restoring',
      'committing',
      'committed',
      'redirecting',
      'filling',
      'removing',
    ];
    if (!handedOver.includes(row.state) || row.data['boot'] === (await bootMark())) return;
    const driver = this.#context.driver(row.engine);
    // It stands still rather than being ended: if nothing of the service lives on elsewhere, it is what there is.
    if ((await driver.state(row.handle)) === 'running') await driver.freeze(row.handle);
  }

  /**
   * Before the commit an agent that was restarted goes back: the service is here and thawed. But if this whole host went
   * down the memory of the service is gone here, and if all of it had arrived at the destination, that is where it lives on:
   * never where the rest of it was to follow the commit.
   */
  async #whereFrom(row: Row): Promise<SourceState> {
    const rebooted = row.data['boot'] !== (await bootMark());
    const mayLiveThere = (row.state === 'dumping' || row.state === 'restoring') && !runsEarly(planOf(row).technique);
    return rebooted && mayLiveThere ? 'restoring' : 'aborting';
  }

  async #maintain(): Promise<void> {
    const { journal } = this.#context;
    for (const row of journal.untold()) {
      if (await tellPeer(this.#context, row)) journal.update(row.id, { peer_told: true });
    }
    await this.#expireLeases();
  }

  async #expireLeases(): Promise<void> {
    const { journal, log } = this.#context;
    for (const row of journal.unfinished()) {
      if (row.role !== 'destination') continue;
      const heard = await this.destination.heard(row);
      if (!isForsaken(heard)) continue;
      log.warn({ migration: row.id }, 'nothing heard from the source, dropping what was made for it');
      await this.destination.giveUp(row.source, row.id).catch((error: unknown) => {
        log.error({ migration: row.id, err: error }, 'what was made could not be dropped; it is tried again');
      });
    }
  }

  async stop(): Promise<void> {
    clearInterval(this.#maintenance);
    await this.source.stop();
    await this.destination.leave();
  }
}

function restarted(row: Row, here: string): UmsError {
  return new UmsError('UMS_E_CANCELLED', {
    message: `The agent on ${here} was restarted while ${row.service} was ${row.state}.`,
    fault: 'source',
    state: `${row.service} runs on ${here} as before.`,
    mend: 'Start the migration again.',
  });
}

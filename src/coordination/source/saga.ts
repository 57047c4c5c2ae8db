import { type UmsError, toUmsError, UmsError as UmsFailure } from '#src/telemetry/errors.ts';
import { bootMark } from '../boot.ts';
import type { SagaContext } from '../context.ts';
import type { EarlyPreflight } from '../early-preflight.ts';
import type { Row } from '../journal.ts';
import { FINAL_STATES, type SourceState, isSourceState } from '../states.ts';
import { nested } from '../nested/source.ts';
import { aborting } from './aborting.ts';
import { checking } from './checking.ts';
import { committed } from './committed.ts';
import { committing } from './committing.ts';
import { copying } from './copying.ts';
import { dumping } from './dumping.ts';
import { filling } from './filling.ts';
import { freezing } from './freezing.ts';
import { holding } from './holding.ts';
import { planned } from './planned.ts';
import { redirecting } from './redirecting.ts';
import { removing } from './removing.ts';
import { reserving } from './reserving.ts';
import { restoring } from './restoring.ts';
import type { SourceMemory, SourceStep } from './steps.ts';

type ActiveState = Exclude<SourceState, (typeof FINAL_STATES)[number]>;

const STEPS: Record<ActiveState, SourceStep> = {
  planned,
  checking,
  reserving,
  copying,
  holding,
  freezing,
  dumping,
  restoring,
  committing,
  committed,
  redirecting,
  filling,
  nested,
  removing,
  aborting,
};

/** States in which a cancellation ends the step at once. In `committing` the destination is asked instead. */
const CANCELLABLE: readonly SourceState[] = [
  'planned',
  'checking',
  'reserving',
  'copying',
  'holding',
  'freezing',
  'dumping',
  'restoring',
];

/** In these states a cancellation is for others to answer, who are told of it: the destination, or a capsule's own agent. */
const PASSED_ON: readonly SourceState[] = ['committing', 'nested'];

/** In these states a failure means going back; `committed` still may, because no client has been served elsewhere. */
const MAY_GO_BACK: readonly SourceState[] = [...CANCELLABLE, 'committing', 'committed'];

/** In these states a failure may come from the service having gone away. */
const TOUCHES_SERVICE: readonly SourceState[] = ['reserving', 'copying', 'holding', 'freezing', 'dumping', 'restoring'];

const RETRY_PAUSE_MS = 1000;

function isActive(state: SourceState): state is ActiveState {
  return state !== 'done' && state !== 'aborted';
}

/** Runs the source's side of migrations. One instance an agent; each migration is driven by at most one loop. */
export class SourceSaga {
  readonly #context: SagaContext;
  readonly #running = new Map<string, { cancel: AbortController; stop: AbortController; ended: Promise<void> }>();

  constructor(context: SagaContext) {
    this.#context = context;
  }

  /** Drives a migration to its end in the background. Calling it for one that is being driven does nothing. */
  start(id: string, early?: EarlyPreflight): void {
    if (this.#running.has(id)) return;
    const cancel = new AbortController();
    const stop = new AbortController();
    const ended = this.#drive(id, cancel.signal, stop.signal, early)
      .catch((error: unknown) => {
        if (!stop.signal.aborted)
          this.#context.log.error({ migration: id, err: error }, 'the saga stopped by a defect');
      })
      .finally(() => this.#running.delete(id));
    this.#running.set(id, { cancel, stop, ended });
  }

  /** Asks for the end of a migration; refused from `committed` on. */
  cancel(id: string): Row {
    const row = this.#context.journal.get(id);
    if (row.role !== 'source') throw notHere(row);
    if (!isSourceState(row.state) || !(CANCELLABLE.includes(row.state) || PASSED_ON.includes(row.state))) {
      throw new UmsFailure('UMS_E_MIGRATION_STATE', {
        message: `Migration ${id} is ${row.state}: it cannot be cancelled any more.`,
        fault: 'user',
        state: 'Nothing was changed.',
        mend: `Look at it with: ums show ${id}`,
      });
    }
    this.#context.journal.update(id, { cancel_requested: true });
    if (CANCELLABLE.includes(row.state)) this.#running.get(id)?.cancel.abort(cancelled(row));
    return this.#context.journal.get(id);
  }

  /** The operator's decision in the commit window. */
  recover(id: string, choice: 'thaw-source' | 'drop-source'): Row {
    const { journal } = this.#context;
    const row = journal.get(id);
    if (row.role !== 'source' || !(row.state === 'committing' || row.state === 'filling') || !row.in_doubt) {
      throw new UmsFailure('UMS_E_MIGRATION_STATE', {
        message: `Migration ${id} does not wait for an operator (${row.role}, ${row.state}).`,
        fault: 'user',
        state: 'Nothing was changed.',
        mend: `Look at it with: ums show ${id}`,
      });
    }
    journal.emit(id, { event: 'note', text: `An operator chose ${choice}.` });
    journal.merge(id, { operator: choice });
    // The step itself asks the destination first, which may have got everything meanwhile.
    if (row.state === 'filling' && choice === 'thaw-source') return journal.get(id);
    this.#running.get(id)?.stop.abort(new Error('an operator decided'));
    const next: SourceState =
      row.state === 'filling' ? 'removing' : choice === 'thaw-source' ? 'aborting' : 'redirecting';
    if (choice === 'thaw-source') journal.update(id, { error: cancelled(row).toReport() });
    journal.transition(id, row.state, next);
    const previous = this.#running.get(id)?.ended ?? Promise.resolve();
    void previous.then(() => this.start(id));
    return journal.get(id);
  }

  /** Stops driving, without changing any state: the agent is going down. */
  async stop(): Promise<void> {
    const all = [...this.#running.values()];
    for (const one of all) one.stop.abort(new Error('the agent stops'));
    await Promise.all(all.map((one) => one.ended));
  }

  async #drive(id: string, cancel: AbortSignal, stop: AbortSignal, early: EarlyPreflight | undefined): Promise<void> {
    const memory: SourceMemory = {
      early,
      predict: () => Promise.resolve(),
      created: undefined,
      trees: undefined,
      frozenSince_ms: undefined,
      moving: undefined,
      received: undefined,
      images: undefined,
      prepared: false,
      files: undefined,
    };
    try {
      await this.#run(id, cancel, stop, memory);
    } finally {
      memory.images?.destroy();
      memory.trees?.close();
      await memory.moving?.close();
    }
  }

  async #run(id: string, cancel: AbortSignal, stop: AbortSignal, memory: SourceMemory): Promise<void> {
    const { journal, breakpoints } = this.#context;
    const deadline = AbortSignal.timeout(remaining_ms(journal.get(id)));
    for (;;) {
      const row = journal.get(id);
      const { state } = row;
      if (!isSourceState(state)) throw new Error(`${id} is in state ${state}, which is no source state`);
      if (!isActive(state)) return;
      await breakpoints.reach(journal, id, 'source', state, 'before');
      stop.throwIfAborted();
      const next = await this.#step(row, state, this.#signals(state, cancel, stop, deadline), stop, memory);
      await breakpoints.reach(journal, id, 'source', state, 'after');
      stop.throwIfAborted();
      if (next !== state) journal.transition(id, state, next);
    }
  }

  #signals(state: SourceState, cancel: AbortSignal, stop: AbortSignal, deadline: AbortSignal): AbortSignal {
    return CANCELLABLE.includes(state) ? AbortSignal.any([cancel, stop, deadline]) : stop;
  }

  async #step(
    row: Row,
    state: ActiveState,
    signal: AbortSignal,
    stop: AbortSignal,
    memory: SourceMemory,
  ): Promise<SourceState> {
    try {
      signal.throwIfAborted();
      return await STEPS[state].run(this.#context, row, signal, memory);
    } catch (error) {
      stop.throwIfAborted();
      const failure = asFailure(row, error, signal);
      if (MAY_GO_BACK.includes(state)) {
        this.#fail(row, TOUCHES_SERVICE.includes(state) ? ((await this.#gone(row, failure)) ?? failure) : failure);
        return 'aborting';
      }
      // Going back (aborting) and going on (redirecting, removing) are repeated until they succeed; each try is told.
      this.#context.log.error({ migration: row.id, state, err: failure }, 'step failed, trying again');
      this.#context.journal.emit(row.id, { event: 'note', text: `${state}: ${failure.message} Trying again.` });
      await new Promise((resolve) => setTimeout(resolve, RETRY_PAUSE_MS));
      return state;
    }
  }

  /** Whatever failed, if the service is no longer there then that is the reason, and it does not run on as before. */
  async #gone(row: Row, failure: UmsError): Promise<UmsError | undefined> {
    if (row.data['boot'] !== (await bootMark())) return undefined;
    const state = await this.#context
      .driver(row.engine)
      .state(row.handle)
      .catch((error: unknown) => {
        this.#context.log.warn({ migration: row.id, err: error }, 'the engine does not say where the service is');
        return undefined;
      });
    if (state !== 'absent' && state !== 'stopped') return undefined;
    return new UmsFailure('UMS_E_SERVICE_GONE', {
      message: `${row.service} is ${state}: it ended or was removed while it was being moved.`,
      fault: 'service',
      state: `It does not run on ${row.source}; nothing of it is left on ${row.destination}.`,
      mend: 'Start it again, if it is still wanted, and look at its log.',
      detail: [failure.message, failure.detail ?? ''].join('\n').trim(),
    });
  }

  #fail(row: Row, failure: UmsError): void {
    const told = new UmsFailure(failure.code, {
      message: failure.message,
      fault: failure.fault,
      state: failure.state === '' ? `${row.service} runs on ${row.source} as before.` : failure.state,
      mend: failure.mend,
      ...(failure.detail === undefined ? {} : { detail: failure.detail }),
    });
    this.#context.journal.update(row.id, { error: told.toReport() });
    this.#context.log.warn({ migration: row.id, state: row.state, err: failure }, 'migration fails, going back');
  }
}

function asFailure(row: Row, error: unknown, signal: AbortSignal): UmsError {
  const reason: unknown = signal.aborted ? signal.reason : error;
  if (reason instanceof DOMException && reason.name === 'TimeoutError') {
    return new UmsFailure('UMS_E_TIMEOUT', {
      message: `The migration took longer than its limit of ${row.options.timeout_ms} ms.`,
      fault: 'network',
      mend: 'Give it more time with --timeout.',
    });
  }
  return toUmsError(reason);
}

function remaining_ms(row: Row): number {
  return Math.max(row.started_at + row.options.timeout_ms - Date.now(), 1);
}

function cancelled(row: Row): UmsError {
  return new UmsFailure('UMS_E_CANCELLED', {
    message: `The migration of ${row.service} was cancelled.`,
    fault: 'user',
    state: `${row.service} runs on ${row.source} as before.`,
    mend: 'Nothing needs to be done; migrate it again when you like.',
  });
}

function notHere(row: Row): UmsError {
  return new UmsFailure('UMS_E_MIGRATION_STATE', {
    message: `This system is the destination of ${row.id}; its source, ${row.source}, decides.`,
    fault: 'user',
    mend: `Run the same command on ${row.source}.`,
  });
}

import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { Driver } from '#src/drivers/contract.ts';
import { toUmsError, UmsError } from '#src/telemetry/errors.ts';
import { bootMark } from '../boot.ts';
import type { SagaContext } from '../context.ts';
import type { Row } from '../journal.ts';
import { abortingNested, isNested } from '../nested/source.ts';
import type { SourceStep } from './steps.ts';
import { tellPeer } from './tell-peer.ts';

/**
 * Everything back as it was: the service runs on with its state, its clients are let through, the destination drops
 * what it made. Entered only when the destination does not run the service and never will for this migration.
 */
export const aborting: SourceStep = {
  async run(context, row, _signal, memory) {
    if (isNested(row)) return await abortingNested(context, row);
    await memory.moving?.close();
    memory.moving = undefined;
    await bringBack(context, row);
    await context.traffic.release(row.service_uid, row.id, { kind: 'here' });
    await rm(join(context.stagingRoot, row.id), { recursive: true, force: true });
    // Best effort now; a destination that does not hear it is told when it can be reached again.
    // Before its pre-flight has ended a migration is not known to it.
    const known = row.data['sizes'] !== undefined;
    if (known && !(await tellPeer(context, row))) {
      context.journal.update(row.id, { peer_told: false });
      context.log.warn({ migration: row.id }, 'the destination will be told later that the service stays here');
    }
    return 'aborted';
  },
};

async function bringBack(context: SagaContext, row: Row): Promise<void> {
  const driver = context.driver(row.engine);
  const state = await driver.state(row.handle);
  // Also when it seems to run: a dump that outlived the agent lets its cgroup go and freezes it again at its end.
  if (state === 'frozen' || state === 'running') await driver.thaw(row.handle);
  // A dump that was prepared is let go by it too, also when the service has ended meanwhile.
  else await driver.thaw(row.handle).catch(unlessGone);
  if (row.data['boot'] === (await bootMark())) return;
  // This host went down and took the service's memory with it, as it would have without a migration. What is left is
  // its files, and the service was running, so it is started from them.
  // A restart policy may have done so already.
  const problem = state === 'stopped' ? await startAgain(driver, row) : undefined;
  const lost = new UmsError('UMS_E_HOST_LOST', {
    message: `${context.systemName} went down while ${row.service} was being moved, before its memory had arrived at ${row.destination}.`,
    fault: 'source',
    state:
      problem === undefined
        ? `${row.service} was started again on ${context.systemName} from its files; what was only in memory is lost.`
        : `${row.service} is stopped on ${context.systemName} with its files; what was only in memory is lost. It could not be started again: ${problem}`,
    mend: problem === undefined ? 'Try the migration again when you like.' : 'Mend what the message says and start it.',
  });
  context.journal.update(row.id, { error: lost.toReport() });
}

function unlessGone(error: unknown): void {
  if (!(error instanceof UmsError)) throw error;
}

/** The host's own crash stopped it, so not being able to start it again must not hold the migration open for ever. */
async function startAgain(driver: Driver, row: Row): Promise<string | undefined> {
  try {
    await driver.startFresh(row.handle);
    return undefined;
  } catch (error) {
    return toUmsError(error).message;
  }
}

import { UmsError } from '#src/telemetry/errors.ts';
import type { Row } from '../journal.ts';

/** Why a migration ends at its destination, and what state everything is in then. */
export function surrendered(row: Row): UmsError {
  return new UmsError('UMS_E_MEMORY_LOST', {
    message: `An operator chose the copy of ${row.service} that is frozen on ${row.source}.`,
    fault: 'user',
    mend: 'What happened since it was frozen there is lost.',
  });
}

export function lostMemory(row: Row, here: string, { message, detail }: UmsError): UmsError {
  return new UmsError('UMS_E_RESTORE', {
    message: `${row.service} was restored on ${here}, and lost its memory before it ran there: ${message}`,
    fault: 'destination',
    mend: `Try again; if it happens again, look at the log of the agent on ${here}.`,
    ...(detail === undefined ? {} : { detail }),
  });
}

export function neverWhole(row: Row, here: string): UmsError {
  return new UmsError('UMS_E_HOST_LOST', {
    message: `${row.source} went down before all memory of ${row.service} had arrived at ${here}.`,
    fault: 'source',
    mend: 'Try the migration again when you like.',
  });
}

export function sourceLost(row: Row, here: string): UmsError {
  return new UmsError('UMS_E_HOST_LOST', {
    message: `${row.source} went down before all memory of ${row.service} had arrived at ${here}.`,
    fault: 'source',
    state: `${row.service} was started again on ${here} from its files; what was only in memory is lost.`,
    mend: 'Look at what it recovered by itself.',
  });
}

export function lost(row: Row, here: string): UmsError {
  return new UmsError('UMS_E_HOST_LOST', {
    message: `${here} went down or lost ${row.service} while it was arriving.`,
    fault: 'destination',
    mend: `Look at ${here} before you try again.`,
  });
}

export function interrupted(row: Row, here: string): UmsError {
  return new UmsError('UMS_E_RESTORE', {
    message: `The agent on ${here} was restarted while it restored ${row.service}.`,
    fault: 'destination',
    mend: 'Try again.',
  });
}

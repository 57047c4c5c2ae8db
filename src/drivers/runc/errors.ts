import { UmsError } from '#src/telemetry/errors.ts';
import type { ServiceState } from '../contract.ts';
import { handleReader } from '../handles.ts';
import { handleSchema, type RuncHandle } from './schema.ts';

export const readHandle = handleReader<RuncHandle>('runc', handleSchema);

export function unknown(reference: string, candidates: readonly string[]): UmsError {
  if (candidates.length > 1) {
    return new UmsError('UMS_E_SERVICE_AMBIGUOUS', {
      message: `${reference} fits ${candidates.length} runc containers`,
      fault: 'user',
      mend: `Use more of the id: ${candidates.slice(0, 5).join(', ')}`,
    });
  }
  return new UmsError('UMS_E_SERVICE_UNKNOWN', {
    message: `runc has no container ${reference} that is not another engine's`,
    fault: 'user',
    mend: 'See `ums ls` for what runs here.',
  });
}

export function notRunning(id: string, state: ServiceState): UmsError {
  return new UmsError(state === 'stopped' || state === 'absent' ? 'UMS_E_SERVICE_GONE' : 'UMS_E_SERVICE_NOT_RUNNING', {
    message: `${id} is ${state}, so this cannot be done with it`,
    fault: 'service',
    mend: `Start it and try again.`,
  });
}

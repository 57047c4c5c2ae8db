import { UmsError } from '#src/telemetry/errors.ts';
import type { ServiceState, ServiceSummary } from '../contract.ts';

export function ambiguous(reference: string, matches: readonly ServiceSummary[]): UmsError {
  return new UmsError('UMS_E_SERVICE_AMBIGUOUS', {
    message: `${reference} fits ${matches.length} Podman containers`,
    fault: 'user',
    mend: `Use more of the id or the name: ${matches
      .slice(0, 5)
      .map((match) => match.name)
      .join(', ')}`,
  });
}

export function unknown(reference: string): UmsError {
  return new UmsError('UMS_E_SERVICE_UNKNOWN', {
    message: `Podman has no container ${reference}`,
    fault: 'user',
    mend: 'See `ums ls` for what runs here.',
  });
}

export function gone(name: string): UmsError {
  return new UmsError('UMS_E_SERVICE_GONE', {
    message: `${name} is no longer there`,
    fault: 'service',
    mend: 'Somebody removed it; `podman ps --all` shows what is there.',
  });
}

export function notRunning(name: string, state: ServiceState): UmsError {
  return new UmsError(state === 'stopped' ? 'UMS_E_SERVICE_GONE' : 'UMS_E_SERVICE_NOT_RUNNING', {
    message: `${name} is ${state}, so this cannot be done with it`,
    fault: 'service',
    mend: `Start it (podman start ${name}) and try again.`,
  });
}

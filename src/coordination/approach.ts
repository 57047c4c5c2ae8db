import type { EngineName } from '#src/drivers/contract.ts';
import type { Approach } from './schema.ts';

/** How much authority a migration uses follows from who starts the service: its own container's init, or an engine. */
export function approachOf(engine: EngineName): Approach {
  return engine === 'init' ? 'service-level' : 'orchestrator-level';
}

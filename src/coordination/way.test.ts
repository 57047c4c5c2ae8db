import { describe, expect, it } from 'vitest';
import type { EngineName } from '#src/drivers/contract.ts';
import type { MigrateOptions } from './schema.ts';
import { wayFindings } from './way.ts';

const ids = (approach: MigrateOptions['approach'], engine: EngineName = 'podman'): string[] =>
  wayFindings({ name: 'cache', engine }, { approach }).map(({ id }) => id);

describe('the way of a service that is no capsule', () => {
  it('is open orchestrator-level, and closed to what the service has not been made for', () => {
    expect(ids('auto')).toEqual([]);
    expect(ids('orchestrator-level')).toEqual([]);
    expect(ids('container-level')).toEqual(['approach.container-level']);
    expect(ids('service-level')).toEqual(['approach.service-level']);
  });
  it('is service-level, and nothing else, for one that is asked for in its own container', () => {
    expect(ids('auto', 'init')).toEqual([]);
    expect(ids('service-level', 'init')).toEqual([]);
    expect(ids('orchestrator-level', 'init')).toEqual(['approach.orchestrator-level']);
    expect(ids('container-level', 'init')).toEqual(['approach.container-level']);
  });
});

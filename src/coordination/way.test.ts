import { describe, expect, it } from 'vitest';
import type { MigrateOptions } from './schema.ts';
import { wayFindings } from './way.ts';

const ids = (approach: MigrateOptions['approach']): string[] =>
  wayFindings({ name: 'cache' }, { approach }).map(({ id }) => id);

describe('the way of a service that is no capsule', () => {
  it('is open orchestrator-level, and closed to what the service has not been made for', () => {
    expect(ids('auto')).toEqual([]);
    expect(ids('orchestrator-level')).toEqual([]);
    expect(ids('container-level')).toEqual(['approach.container-level']);
    expect(ids('service-level')).toEqual(['approach.service-level']);
  });
});

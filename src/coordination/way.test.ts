import { describe, expect, it } from 'vitest';
import { type Way, wayFindings } from './way.ts';

const theirs = (engine: string, available = true) => ({ engine, available, version: '1', runtime: 'runc 1' });

function ids(options: Partial<Way['options']>, engines = [theirs('podman'), theirs('docker')]): string[] {
  const specification = { name: 'cache', engine: 'podman' as const };
  const destination = { name: 'beta', engines };
  return wayFindings({ specification, options: { approach: 'auto', ...options }, destination }).map(({ id }) => id);
}

describe('the way of a service', () => {
  it('is open between equal engines', () => {
    expect(ids({})).toEqual([]);
    expect(ids({ approach: 'orchestrator-level', engine: 'podman' })).toEqual([]);
  });

  it('is closed orchestrator-level between unlike ones, and the engine that is wanted must be there', () => {
    expect(ids({ engine: 'docker' })).toEqual(['approach.orchestrator-level']);
    expect(ids({ engine: 'docker' }, [theirs('podman'), theirs('docker', false)])).toEqual(['engine.missing']);
    expect(ids({ engine: 'swarm' })).toEqual(['engine.missing']);
  });

  it('is closed to what the service has not been made for', () => {
    expect(ids({ approach: 'container-level' })).toEqual(['approach.container-level']);
    expect(ids({ approach: 'service-level', engine: 'docker' })).toEqual(['approach.service-level']);
  });
});

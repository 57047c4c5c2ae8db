import { describe, expect, it } from 'vitest';
import { hostEngineSchema } from '#src/drivers/specification.ts';
import { granted, launcherOf } from './launch.ts';
import { CAPABILITIES } from './needs.ts';

describe('a capsule that is started for another', () => {
  it('gets what a capsule needs and what its service may have had, and nothing that somebody else asks for', () => {
    expect(granted([])).toEqual(CAPABILITIES);
    expect(granted(['SYS_MODULE', 'MKNOD', 'CHOWN'])).toEqual([...CAPABILITIES, 'MKNOD']);
  });

  it('can be started under every engine that there is a driver for, and under no other', () => {
    for (const engine of hostEngineSchema.options) {
      expect(launcherOf(engine)?.image, engine).toContain('ums-capsule');
    }
    expect(launcherOf('mesos')).toBeUndefined();
  });
});

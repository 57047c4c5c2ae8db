import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { CAPABILITIES, lacks, NEEDS, SECURITY_OPTIONS } from './needs.ts';

it('names what a capsule lacks', () => {
  const all = new Set(CAPABILITIES);
  expect(lacks({ capabilities: all, seccomp: 0, profile: '' })).toEqual([]);
  expect(lacks({ capabilities: all, seccomp: 0, profile: 'unconfined\n' })).toEqual([]);
  const without = lacks({ capabilities: new Set(), seccomp: 2, profile: 'docker-default (enforce)' });
  expect(without.map((lack) => lack.what)).toEqual([...CAPABILITIES.map((name) => `CAP_${name}`), ...SECURITY_OPTIONS]);
});

it('docs/container-level.md has the same table', async () => {
  const page = await readFile(join(import.meta.dirname, '..', '..', '..', 'docs', 'container-level.md'), 'utf8');
  for (const need of NEEDS) {
    const when = { start: 'to start', move: 'to move', some: 'for some' }[need.for];
    expect(page).toContain(`| \`${need.capability}\` | ${when} | ${need.without}`);
  }
  for (const option of SECURITY_OPTIONS) expect(page).toContain(`| \`${option}\` |`);
});

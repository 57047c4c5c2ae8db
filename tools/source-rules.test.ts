import { expect, test } from 'vitest';
import { contentViolations, importsOf, importViolations, resolveImport } from './source-rules.ts';

test('imports are found in all their forms', () => {
  const text = [
    "import { a } from '#src/agent/api.ts';",
    "import type {\n  B,\n} from './b.ts';",
    "export * from '../c.ts';",
    "import 'reflect-metadata';",
    "const d = await import('./d.ts');",
  ].join('\n');
  expect(importsOf(text)).toEqual(['#src/agent/api.ts', './b.ts', '../c.ts', 'reflect-metadata', './d.ts']);
});

test('relative imports are resolved against the importing file', () => {
  expect(resolveImport('src/drivers/podman/x.ts', '../../telemetry/log.ts')).toBe('src/telemetry/log.ts');
  expect(resolveImport('src/drivers/x.ts', '#lab/lab.ts')).toBe('lab/lab.ts');
  expect(resolveImport('src/drivers/x.ts', 'zod')).toBeUndefined();
});

test.each([
  ['src/cli/x.ts', '#src/agent/api.ts', 0],
  ['src/agent/x.ts', '../cli/y.ts', 1],
  ['src/drivers/podman/x.ts', '#src/coordination/schema.ts', 1],
  ['src/drivers/podman/x.ts', '#src/checkpoint/criu.ts', 0],
  ['src/trust/x.ts', '#src/telemetry/log.ts', 0],
  ['src/telemetry/x.ts', '#src/trust/trust.ts', 1],
  ['src/cli/x.ts', '#lab/lab.ts', 1],
  ['lab/x.ts', '#src/cli/format.ts', 0],
  ['src/somewhere/x.ts', 'zod', 1],
])('%s importing %s breaks %i rules', (file, specifier, count) => {
  expect(importViolations(file, `import { x } from '${specifier}';`)).toHaveLength(count);
});

test('what belongs to one machine is found with its line', () => {
  const path = ['', 'work', 'main', 'x'].join('/');
  expect(contentViolations('docs/x.md', `fine\nsee ${path}`)).toEqual([
    { file: 'docs/x.md:2', problem: 'a path of one machine must not be in the project' },
  ]);
  expect(
    contentViolations('package-lock.json', `https://${['registry', 'example', 'org'].join('.')}/zod`),
  ).toHaveLength(1);
  expect(contentViolations('a.ts', "const at = '/var/lib/ums/work/main';")).toEqual([]);
});

import { readdirSync, readFileSync } from 'node:fs';
import { join, relative, resolve } from 'node:path';
import { contentViolations, importViolations } from './source-rules.ts';

/** Checks every file of the checkout against source-rules.ts: `node tools/check-imports.ts`. */
const root = resolve(import.meta.dirname, '..');
const SKIPPED = new Set(['node_modules', '.git', 'coverage', 'results']);
const TEXT_BYTES_MAX = 2 * 1024 * 1024;

function filesIn(directory: string): string[] {
  return readdirSync(directory, { withFileTypes: true }).flatMap((entry) => {
    if (SKIPPED.has(entry.name) || entry.name.startsWith('.node_modules')) return [];
    const path = join(directory, entry.name);
    if (entry.isDirectory()) return filesIn(path);
    return entry.isFile() ? [path] : [];
  });
}

const found = filesIn(root).flatMap((path) => {
  const bytes = readFileSync(path);
  if (bytes.length > TEXT_BYTES_MAX || bytes.includes(0)) return [];
  const file = relative(root, path);
  const text = bytes.toString('utf8');
  return [...(file.endsWith('.ts') ? importViolations(file, text) : []), ...contentViolations(file, text)];
});
for (const { file, problem } of found) process.stderr.write(`${file}: ${problem}\n`);
process.exitCode = found.length === 0 ? 0 : 1;

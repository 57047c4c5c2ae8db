/**
 * Rules about the source that no linter knows: which room may import which (ARCHITECTURE), and what must not be in any
 * file because it is true of one machine only.
 */
const RANKS: Readonly<Record<string, number>> = {
  web: 0,
  cli: 0,
  agent: 1,
  coordination: 2,
  decision: 3,
  approaches: 3,
  drivers: 4,
  checkpoint: 4,
  transfer: 4,
  frontman: 4,
  network: 4,
  trust: 5,
  telemetry: 6,
};
const OUTSIDE_SRC = new Set(['lab', 'bench', 'test', 'tools']);

export interface Violation {
  file: string;
  problem: string;
}

/** The module specifiers that a TypeScript file imports, statically or not. */
export function importsOf(text: string): string[] {
  const pattern =
    /(?:^|\n)\s*(?:import|export)\s[^;'"]*?from\s*['"]([^'"]+)['"]|(?:^|\n)\s*import\s*['"]([^'"]+)['"]|\bimport\(\s*['"]([^'"]+)['"]/g;
  return [...text.matchAll(pattern)].map((match) => match[1] ?? match[2] ?? match[3] ?? '');
}

/** Path from the root of the project of what a specifier names; undefined for packages and Node's own modules. */
export function resolveImport(file: string, specifier: string): string | undefined {
  if (specifier.startsWith('#')) return specifier.slice(1);
  if (!specifier.startsWith('.')) return undefined;
  const parts = file.split('/').slice(0, -1);
  for (const part of specifier.split('/')) {
    if (part === '..') parts.pop();
    else if (part !== '.') parts.push(part);
  }
  return parts.join('/');
}

function roomOf(path: string): string | undefined {
  const [top, room] = path.split('/');
  return top === 'src' ? room : undefined;
}

export function importViolations(file: string, text: string): Violation[] {
  const room = roomOf(file);
  if (room === undefined) return [];
  const rank = RANKS[room];
  if (rank === undefined) return [{ file, problem: `src/${room} is no room that ARCHITECTURE knows` }];
  return importsOf(text).flatMap((specifier) => {
    const target = resolveImport(file, specifier);
    if (target === undefined) return [];
    if (OUTSIDE_SRC.has(target.split('/')[0] ?? '')) return [{ file, problem: `src may not import ${specifier}` }];
    const targetRoom = roomOf(target);
    const targetRank = targetRoom === undefined ? undefined : RANKS[targetRoom];
    if (targetRank === undefined || targetRank >= rank) return [];
    return [{ file, problem: `${room} may not import ${targetRoom} (${specifier}): imports go down only` }];
  });
}

/** Written in pieces, so that this file keeps its own rule. */
const inPieces = (...pieces: string[]): RegExp => new RegExp(pieces.join(''));
const FORBIDDEN: readonly { what: string; pattern: RegExp }[] = [
  { what: 'a path of one machine', pattern: inPieces('(^|[^\\w.-])/wo', 'rk/(main|shared|MACHINE)') },
  { what: 'a path of one machine', pattern: inPieces('/tmp/', '(ums|proto)/') },
  { what: 'the host name of a package registry', pattern: inPieces('\\bregistry', '\\.[a-z0-9-]+\\.[a-z]{2,}') },
  { what: 'the host name of a package registry', pattern: inPieces('\\bnpm', 'js\\.(org|com)\\b') },
];

export function contentViolations(file: string, text: string): Violation[] {
  return FORBIDDEN.flatMap(({ what, pattern }) => {
    const line = text.split('\n').findIndex((candidate) => pattern.test(candidate));
    return line < 0 ? [] : [{ file: `${file}:${line + 1}`, problem: `${what} must not be in the project` }];
  });
}

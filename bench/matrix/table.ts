import { formatTable, wrap } from '#src/cli/format.ts';
import { type Technique, TECHNIQUES } from '../cases.ts';
import { median } from '../measure/statistics.ts';
import { APPROACHES, type Approach, type Cell } from './plan.ts';

export interface CellResult {
  cell: Cell;
  repetition: number;
  outcome: 'migrated' | 'refused' | 'wrong';
  /** Why it was refused, in the words of ums; also why it failed. */
  code: string | null;
  reason: string | null;
  mend: string | null;
  /** As the service itself saw it. */
  downtime_ms: number | null;
  /** Of the command, from its start to its end. */
  total_ms: number;
  /** As the agents tell them. */
  agents: { downtime_ms: number | null; total_ms: number | null };
  /** What must not be, and is. */
  problems: string[];
}

const WIDTH = 80;
const seconds = (value_ms: number): string => (value_ms / 1000).toFixed(2);

/** One cell in nine characters: seconds away and in all, or what else came of it. */
function shown(results: readonly CellResult[]): string {
  if (results.length === 0) return '';
  if (results.some(({ outcome }) => outcome === 'wrong')) return 'WRONG';
  const moved = results.filter(({ outcome }) => outcome === 'migrated');
  if (moved.length === 0) return 'refused';
  const away = median(moved.flatMap(({ downtime_ms }) => downtime_ms ?? []));
  return `${seconds(away)}/${seconds(median(moved.map(({ total_ms }) => total_ms)))}`;
}

interface TableRow {
  pair: string;
  of: (technique: Technique) => CellResult[];
}

function rowsOf(results: readonly CellResult[]): TableRow[] {
  const pairOf = ({ cell }: CellResult): string => `${cell.from} → ${cell.to}`;
  return [...new Set(results.map(pairOf))].toSorted().map((pair) => ({
    pair,
    of: (technique) => results.filter((one) => pairOf(one) === pair && one.cell.technique === technique),
  }));
}

function tableOf(approach: Approach, results: readonly CellResult[]): string {
  const own = results.filter(({ cell }) => cell.approach === approach);
  if (own.length === 0) return '';
  const techniques = TECHNIQUES.filter((each) => own.some(({ cell }) => cell.technique === each));
  const columns = techniques.map((technique) => ({
    title: technique,
    value: (row: TableRow) => shown(row.of(technique)),
    align: 'right' as const,
  }));
  const table = formatTable(
    [{ title: 'from → to', value: (row: TableRow) => row.pair }, ...columns],
    rowsOf(own),
    WIDTH,
  );
  return `${approach}\n${table}`;
}

/** Refusals in the words that ums had for them: one of each code and approach, and how many there were. */
function refusals(results: readonly CellResult[]): string[] {
  const refused = results.filter(({ outcome }) => outcome === 'refused');
  const kinds = new Map<string, CellResult[]>();
  for (const one of refused) {
    const kind = `${one.cell.approach} ${one.code ?? ''}`;
    kinds.set(kind, [...(kinds.get(kind) ?? []), one]);
  }
  return [...kinds].flatMap(([kind, those]) => {
    const [first] = those;
    const text = `${kind}, ${those.length} of them, such as: ${first?.reason ?? ''} ${first?.mend ?? ''}`;
    return wrap(text.trim(), WIDTH - 4).map((line, at) => `${at === 0 ? '  ' : '    '}${line}`);
  });
}

function wrongs(results: readonly CellResult[]): string[] {
  return results
    .filter(({ outcome }) => outcome === 'wrong')
    .flatMap(({ cell, problems }) => {
      const text = `WRONG ${cell.from} → ${cell.to}, ${cell.approach}, ${cell.technique}: ${problems.join('; ')}`;
      return wrap(text, WIDTH - 4).map((line, at) => `${at === 0 ? '  ' : '    '}${line}`);
    });
}

export function renderMatrix(results: readonly CellResult[]): string {
  const tables = APPROACHES.map((approach) => tableOf(approach, results)).filter((table) => table !== '');
  const why = refusals(results);
  return [
    ...tables,
    'Seconds that the service was away, as it saw it itself / that the command took.',
    ...(why.length === 0 ? [] : ['', 'Refused:', ...why]),
    ...wrongs(results),
  ].join('\n');
}

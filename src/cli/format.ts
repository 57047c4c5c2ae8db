/** Numbers and tables for people. Widths count characters; everything fits 80 columns when the cells allow it. */
const BINARY_UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB'] as const;

export function formatBytes(bytes: number): string {
  let value = Math.max(0, bytes);
  let unit = 0;
  while (value >= 1024 && unit < BINARY_UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  const digits = unit === 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return `${value.toFixed(digits)} ${BINARY_UNITS[unit] ?? 'B'}`;
}

export function formatRate(bytes_s: number): string {
  return `${formatBytes(bytes_s)}/s`;
}

export function formatDuration(duration_ms: number): string {
  const value_ms = Math.max(0, duration_ms);
  if (value_ms < 999.5) return `${Math.round(value_ms)} ms`;
  if (value_ms < 59_950) return `${(value_ms / 1000).toFixed(value_ms < 9995 ? 2 : 1)} s`;
  const seconds = Math.round(value_ms / 1000);
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${seconds % 60} s`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** "3 min 2 s ago"; a time in the future is "in 3 min 2 s". */
export function formatWhen(at_ms: number, now_ms: number): string {
  const distance = now_ms - at_ms;
  return distance >= 0 ? `${formatDuration(distance)} ago` : `in ${formatDuration(-distance)}`;
}

export function truncate(text: string, width: number): string {
  if (text.length <= width) return text;
  return width <= 1 ? text.slice(0, Math.max(0, width)) : `${text.slice(0, width - 1)}…`;
}

/** Breaks text at spaces; a word longer than the width keeps a line of its own. */
export function wrap(text: string, width: number): string[] {
  const lines: string[] = [];
  for (const paragraph of text.split('\n')) {
    let line = '';
    for (const word of paragraph.split(' ')) {
      const longer = line === '' ? word : `${line} ${word}`;
      if (longer.length > width && line !== '') {
        lines.push(line);
        line = word;
      } else {
        line = longer;
      }
    }
    lines.push(line);
  }
  return lines;
}

export interface Column<Row> {
  title: string;
  value(row: Row): string;
  align?: 'left' | 'right';
  /** Characters beyond which the cell is cut, when the table is wider than the terminal. */
  least?: number;
}

/** A table whose last left-aligned wide columns are cut so that it fits `width`. */
export function formatTable<Row>(columns: readonly Column<Row>[], rows: readonly Row[], width = 80): string {
  const cells = rows.map((row) => columns.map((column) => column.value(row)));
  const widths = columns.map((column, at) =>
    Math.max(column.title.length, ...cells.map((line) => (line[at] ?? '').length)),
  );
  const spare = () => widths.reduce((sum, each) => sum + each, 0) + 2 * (columns.length - 1) - width;
  for (let round = 0; round < columns.length && spare() > 0; round += 1) {
    const shrinkable = columns.map(
      (column, at) => (widths[at] ?? 0) - Math.max(column.title.length, column.least ?? 8),
    );
    const widest = shrinkable.indexOf(Math.max(...shrinkable));
    const gain = Math.min(shrinkable[widest] ?? 0, spare());
    if (gain <= 0) break;
    widths[widest] = (widths[widest] ?? 0) - gain;
  }
  const line = (values: readonly string[]) =>
    values
      .map((value, at) => {
        const cell = truncate(value, widths[at] ?? 0);
        return columns[at]?.align === 'right' ? cell.padStart(widths[at] ?? 0) : cell.padEnd(widths[at] ?? 0);
      })
      .join('  ')
      .trimEnd();
  return [line(columns.map((column) => column.title.toUpperCase())), ...cells.map(line)]
    .map((text) => `${text}\n`)
    .join('');
}

/** A bar of `width` characters with eighths of a character. */
export function formatBar(fraction: number, width: number): string {
  const eighths = Math.round(Math.min(1, Math.max(0, fraction)) * width * 8);
  const full = '█'.repeat(Math.floor(eighths / 8));
  const part = ['', '▏', '▎', '▍', '▌', '▋', '▊', '▉'][eighths % 8] ?? '';
  return (full + part).padEnd(width, '░');
}

/** "500ms", "30s", "10m", "2h" or plain seconds; undefined when it is none of these. */
export function parseDuration(text: string): number | undefined {
  const match = /^(\d{1,9}(?:\.\d{1,3})?)(ms|s|m|h)?$/.exec(text.trim());
  if (match === null) return undefined;
  const factor = { ms: 1, s: 1000, m: 60_000, h: 3_600_000 }[match[2] ?? 's'];
  return factor === undefined ? undefined : Math.round(Number(match[1]) * factor);
}

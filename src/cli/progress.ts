import type { MigrationEvent } from '#src/coordination/schema.ts';
import { formatBar, formatBytes, formatDuration, formatRate, truncate } from './format.ts';
import type { Style } from './terminal.ts';

/** What each state of the source means to the person who waits. `{to}` and `{from}` are the systems. */
const PHASES: Readonly<Record<string, string>> = {
  planned: 'Planning',
  checking: 'Checking both systems',
  reserving: 'Making room at {to}',
  copying: 'Copying files and memory (the service runs)',
  holding: 'Holding its traffic',
  freezing: 'Freezing the service',
  dumping: 'Copying its memory (frozen)',
  restoring: 'Restoring at {to} (frozen)',
  committing: 'Handing over to {to}',
  committed: 'It runs at {to}',
  redirecting: 'Sending its clients to {to}',
  filling: 'Sending the rest of its memory (it runs)',
  removing: 'Deleting the copy at {from}',
  aborting: 'Undoing: the service stays at {from}',
  reserved: 'Room is made; waiting for data',
  receiving: 'Receiving its memory',
  received: 'Everything has arrived',
  restored: 'Restored, not running yet',
  active: 'It runs here',
  settling: 'Dropping what only the move needed',
};

export interface Phase {
  state: string;
  title: string;
  began_at: number;
  ended_at: number | undefined;
  /** It did not come to its end: the migration was undone from here. */
  broken: boolean;
}

export interface Copy {
  what: string;
  bytes: number;
  total_bytes: number | null;
  rate_bytes_s: number;
}

/** What is known of a migration from its events: no input or output, so that it can be shown in any way. */
export class Progress {
  readonly phases: Phase[] = [];
  readonly #from: string;
  readonly #to: string;
  copy: Copy | undefined;
  last_at = 0;

  constructor(from: string, to: string) {
    this.#from = from;
    this.#to = to;
  }

  apply(event: MigrationEvent): void {
    this.last_at = Math.max(this.last_at, event.at);
    if (event.event === 'progress') {
      const { what, bytes, total_bytes, rate_bytes_s } = event;
      this.copy = { what, bytes, total_bytes, rate_bytes_s };
    }
    if (event.event === 'state') this.#enter(event.state, event.at);
    if (event.event === 'ended') this.#leave(event.at);
  }

  #enter(state: string, at: number): void {
    this.#leave(at);
    const last = this.phases.at(-1);
    if (state === 'aborting' && last !== undefined) last.broken = true;
    if (state === 'done' || state === 'aborted') return;
    this.phases.push({ state, title: this.#title(state), began_at: at, ended_at: undefined, broken: false });
  }

  #leave(at: number): void {
    const last = this.phases.at(-1);
    if (last !== undefined && last.ended_at === undefined) last.ended_at = at;
    this.copy = undefined;
  }

  #title(state: string): string {
    return (PHASES[state] ?? state).replace('{to}', this.#to).replace('{from}', this.#from);
  }
}

const SPINNER = ['⠋', '⠙', '⠹', '⠸', '⠼', '⠴', '⠦', '⠧', '⠇', '⠏'] as const;

/** The phases with their times and the current copy, for a terminal of `columns`. */
export function progressLines(progress: Progress, now_ms: number, style: Style, columns = 80): string[] {
  const width = Math.min(columns, 100) - 1;
  const lines = progress.phases.map((phase) => {
    const running = phase.ended_at === undefined;
    const turn = SPINNER[Math.floor(now_ms / 100) % SPINNER.length] ?? '·';
    const undoing = phase.state === 'aborting';
    const done = phase.broken ? style.red('✗') : style.green('✔');
    const mark = running ? style.cyan(turn) : undoing ? style.yellow('↩') : done;
    const time = formatDuration((phase.ended_at ?? Math.max(now_ms, phase.began_at)) - phase.began_at);
    return `  ${mark} ${truncate(phase.title, width - 16).padEnd(width - 15)} ${style.dim(time.padStart(10))}`;
  });
  if (progress.copy !== undefined) lines.push(copyLine(progress.copy, width));
  return lines;
}

export function copyLine(copy: Copy, width: number): string {
  const rate = formatRate(copy.rate_bytes_s);
  if (copy.total_bytes === null || copy.total_bytes <= 0) {
    return truncate(`    ${copy.what}: ${formatBytes(copy.bytes)}, ${rate}`, width);
  }
  const figures = `${formatBytes(copy.bytes)} of ${formatBytes(copy.total_bytes)}, ${rate}`;
  const what = truncate(copy.what, 16);
  const room = Math.max(8, Math.min(30, width - 8 - what.length - figures.length));
  return truncate(`    ${what} ${formatBar(copy.bytes / copy.total_bytes, room)} ${figures}`, width);
}

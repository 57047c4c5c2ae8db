import type { Migration, MigrationEvent } from '#src/coordination/schema.ts';
import type { Cli } from './command.ts';
import { formatBytes, formatDuration, formatRate, wrap } from './format.ts';
import { Progress, progressLines } from './progress.ts';

/** Shows a migration's events while they come. `stop` leaves the last picture on the screen. */
export interface Display {
  event(event: MigrationEvent): void;
  note(text: string): void;
  stop(): void;
}

export function openDisplay(cli: Cli, migration: Migration): Display {
  if (cli.json) return jsonDisplay(cli);
  if (cli.quiet) return silentDisplay();
  const progress = new Progress(migration.source, migration.destination);
  const { service, source, destination, technique, approach, id } = migration;
  cli.say(
    `Moving ${cli.style.bold(service)} from ${source} to ${destination} (${technique}, ${approach})\n  ${cli.style.dim(id)}`,
  );
  return cli.io.outIsTty ? liveDisplay(cli, progress) : plainDisplay(cli, progress);
}

function jsonDisplay(cli: Cli): Display {
  return {
    event: (event) => cli.emit(event),
    note: (text) => cli.io.err(`${text}\n`),
    stop: () => undefined,
  };
}

function silentDisplay(): Display {
  return { event: () => undefined, note: () => undefined, stop: () => undefined };
}

/** Text that events other than phases and bytes say to a person. */
function spoken(event: MigrationEvent): string | undefined {
  if (event.event === 'note') return event.text;
  if (event.event === 'round') return spokenRound(event);
  if (event.event === 'finding') return `${event.finding.severity}: ${event.finding.what}`;
  if (event.event === 'breakpoint') return `halted ${event.point} ${event.state} (fault injection)`;
  return undefined;
}

function spokenRound(round: Extract<MigrationEvent, { event: 'round' }>): string {
  const { changed_bytes, wire_bytes, left_bytes, elapsed_ms, predicted_downtime_ms, predicted_total_ms, why } = round;
  const left = left_bytes === 0 ? '' : ` The last ${formatBytes(left_bytes)} of it come after the move.`;
  return (
    `round ${round.round}: ${formatBytes(changed_bytes)} in ${formatDuration(elapsed_ms)}, ${formatRate((wire_bytes / elapsed_ms) * 1000)} on the wire; ` +
    `a freeze now: ${formatDuration(predicted_downtime_ms)} away, ${formatDuration(predicted_total_ms)} in all. ${why}${left}`
  );
}

/** Text in the width of the terminal, its further lines beneath its first. */
function hung(text: string, columns: number, mark = '•'): string[] {
  return wrap(text, Math.min(columns, 100) - 5).map((line, at) => (at === 0 ? `  ${mark} ${line}` : `    ${line}`));
}

const PLAIN_EVERY_MS = 5000;

/** One line for each thing that happened: for files, pipes and continuous integration. */
function plainDisplay(cli: Cli, progress: Progress): Display {
  let copySaid_at = 0;
  const said = new Set<string>();
  const finish = () => {
    for (const phase of progress.phases) {
      if (phase.ended_at === undefined || said.has(phase.state)) continue;
      said.add(phase.state);
      const broken = phase.broken ? ' (not finished)' : '';
      cli.say(`  ${phase.title}: ${formatDuration(phase.ended_at - phase.began_at)}${broken}`);
    }
  };
  return {
    event: (event) => {
      progress.apply(event);
      finish();
      const text = spoken(event);
      if (text !== undefined) for (const line of hung(text, cli.io.columns())) cli.say(line);
      if (event.event === 'progress' && event.at - copySaid_at >= PLAIN_EVERY_MS) {
        copySaid_at = event.at;
        const of = event.total_bytes === null ? '' : ` of ${formatBytes(event.total_bytes)}`;
        cli.say(`  ${event.what}: ${formatBytes(event.bytes)}${of}, ${formatRate(event.rate_bytes_s)}`);
      }
    },
    note: (text) => hung(text, cli.io.columns()).forEach((line) => cli.say(line)),
    stop: finish,
  };
}

const DRAW_EVERY_MS = 100;

/** Draws in place: the cursor goes up over what was drawn last, and every line is rewritten. */
function liveDisplay(cli: Cli, progress: Progress): Display {
  let drawn = 0;
  const above: string[] = [];
  const draw = () => {
    const lines = progressLines(progress, cli.io.now_ms(), cli.style, cli.io.columns());
    const up = drawn === 0 ? '' : `\u001B[${drawn}A`;
    const fresh = [...above.splice(0), ...lines];
    cli.io.out(`${up}\r${fresh.map((line) => `\u001B[2K${line}\n`).join('')}\u001B[0J`);
    drawn = lines.length;
  };
  const timer = setInterval(draw, DRAW_EVERY_MS);
  return {
    event: (event) => {
      progress.apply(event);
      const text = spoken(event);
      if (text !== undefined) above.push(...hung(text, cli.io.columns(), cli.style.yellow('•')));
    },
    note: (text) => {
      above.push(...hung(text, cli.io.columns(), cli.style.yellow('•')));
      draw();
    },
    stop: () => {
      clearInterval(timer);
      draw();
    },
  };
}

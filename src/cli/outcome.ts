import type { Migration } from '#src/coordination/schema.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { EXIT_DETACHED } from './exit-statuses.ts';
import { formatBytes, formatDuration } from './format.ts';
import type { Style } from './terminal.ts';

export type OutcomeStatus = 'done' | 'aborted' | 'in_doubt' | 'running' | 'refused' | 'dry_run';

export function statusOf(migration: Migration): OutcomeStatus {
  if (migration.state === 'done' || migration.state === 'aborted') return migration.state;
  return migration.in_doubt ? 'in_doubt' : 'running';
}

export function exitStatusOf(migration: Migration): number {
  const status = statusOf(migration);
  if (status === 'done') return 0;
  if (status === 'in_doubt') return 6;
  if (status === 'running') return EXIT_DETACHED;
  return migration.error === null ? 5 : UmsError.fromReport(migration.error).exitStatus;
}

/** The last object of `ums migrate --json`. */
export function resultEvent(migration: Migration): Record<string, unknown> {
  return {
    event: 'result',
    status: statusOf(migration),
    id: migration.id,
    service: migration.service,
    source: migration.source,
    destination: migration.destination,
    technique: migration.technique,
    approach: migration.approach,
    downtime_ms: migration.downtime_ms,
    total_ms: migration.total_ms,
    bytes_on_wire: migration.bytes_on_wire,
    state_bytes: migration.state_bytes,
    memory: migration.memory,
    steps: migration.steps,
    measured_by: 'agents',
    ...(migration.error === null ? {} : { error: migration.error }),
  };
}

/** The last object when no migration came to be. */
export function refusedEvent(error: UmsError, service: string, destination: string): Record<string, unknown> {
  return { event: 'result', status: 'refused', id: null, service, destination, error: error.toReport() };
}

/** The state in which the downtime begins. */
const FROZEN = 'freezing';

/** Each step's bar over the total time, and the downtime's below them. */
export function renderTimeline(migration: Migration, style: Style, columns = 80): string {
  const { steps } = migration;
  const total_ms = migration.total_ms ?? Math.max(1, ...steps.map((step) => step.start_ms + step.duration_ms));
  const labelWidth = Math.min(24, Math.max(8, ...steps.map((step) => step.name.length)));
  const barWidth = Math.max(10, Math.min(columns, 100) - labelWidth - 16);
  const row = (label: string, start_ms: number, duration_ms: number, mark: string) => {
    const scale = barWidth / Math.max(1, total_ms);
    const from = Math.min(barWidth - 1, Math.max(0, Math.floor(start_ms * scale)));
    const length = Math.max(1, Math.min(barWidth - from, Math.round(duration_ms * scale)));
    const bar = `${' '.repeat(from)}${mark.repeat(length)}`;
    return `  ${label.slice(0, labelWidth).padEnd(labelWidth)} ${formatDuration(duration_ms).padStart(10)} ${bar}`;
  };
  const lines = steps.map((step) => row(step.name, step.start_ms, step.duration_ms, '█'));
  const frozen = steps.find((step) => step.name === FROZEN);
  if (migration.downtime_ms !== null && frozen !== undefined) {
    lines.push(style.yellow(row('downtime', frozen.start_ms, migration.downtime_ms, '▒')));
  }
  return lines.length === 0 ? '' : `${lines.join('\n')}\n`;
}

function renderFillingChoices({ id, source, destination, service }: Migration): string {
  return [
    `${service} runs at ${destination}, or is paused there, and part of its memory is`,
    `still only at ${source}, where it is frozen as it was when it left. ${source} goes on`,
    'sending; when that works again the migration ends by itself.',
    '',
    `  ums recover ${id} --thaw-source`,
    `      ${service} runs here again, from where it was frozen. What it did at`,
    `      ${destination} since is LOST. If ${destination} cannot be asked and does run it,`,
    '      there are TWO copies until it can, and drops its own: make sure that it is off.',
    '',
    `  ums recover ${id} --drop-source`,
    `      The copy here is given up and deleted. Memory that is not at ${destination} is LOST;`,
    `      choose this only when ${destination} has it all, or can start it from its files.`,
    '',
  ].join('\n');
}

/** What a person reads at the end of a migration that is not an error. */
export function renderOutcome(migration: Migration, style: Style, columns = 80): string {
  const { service, source, destination } = migration;
  const downtime = migration.downtime_ms === null ? 'not measured' : formatDuration(migration.downtime_ms);
  const total = migration.total_ms === null ? 'not measured' : formatDuration(migration.total_ms);
  return [
    `${style.green('✔')} ${style.bold(service)} runs on ${style.bold(destination)} now; ${source} has given it up.\n`,
    renderTimeline(migration, style, columns),
    `  downtime ${style.bold(downtime)}, total ${total}, measured by the agents (a client may see more)\n`,
    `  ${formatBytes(migration.state_bytes)} of state, ${formatBytes(migration.bytes_on_wire)} on the wire\n`,
  ].join('');
}

/** Which commands settle a migration in doubt, and what each risks. */
export function renderChoices(migration: Migration): string {
  const { id, source, destination, service } = migration;
  if (migration.state === 'filling') return renderFillingChoices(migration);
  return [
    `${source} froze ${service}, told ${destination} to run it, and then lost ${destination}.`,
    `Nobody on this side can know whether ${destination} did. ${source} goes on asking; when`,
    `${destination} answers, the migration ends by itself and this choice is not needed.`,
    '',
    `  ums recover ${id} --thaw-source`,
    `      ${service} runs here again, from where it was frozen.`,
    `      If ${destination} does run it, there are TWO copies until it hears of this and`,
    '      drops its own: choose this only when you have made sure that',
    `      ${destination} is off, or does not run it and never will.`,
    '',
    `  ums recover ${id} --drop-source`,
    `      The copy here is given up and deleted.`,
    `      If ${destination} does not run it, there is then NO copy and its memory is lost:`,
    `      choose this only when you have seen it running on ${destination}.`,
    '',
  ].join('\n');
}

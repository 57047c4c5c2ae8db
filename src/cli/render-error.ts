import { ERROR_CODES } from '#src/telemetry/error-codes.ts';
import type { Fault, UmsError } from '#src/telemetry/errors.ts';
import { wrap } from './format.ts';
import type { Style } from './terminal.ts';

const WHOSE: Readonly<Record<Fault, string>> = {
  user: 'the request',
  source: 'the source system',
  destination: 'the destination system',
  network: 'the network between the systems',
  service: 'the service itself',
  ums: 'ums',
};

/** An error as a person reads it: what happened, whose fault, the state of everything, what to do. */
export function renderError(error: UmsError, style: Style, columns: number): string {
  const summary = ERROR_CODES[error.code].summary;
  const rows: [string, string][] = [['What', error.message]];
  rows.push(['Where', WHOSE[error.fault]]);
  if (error.state !== '') rows.push(['State', error.state]);
  if (error.mend !== '') rows.push(['To do', error.mend]);
  const width = Math.max(30, Math.min(columns, 100) - 9);
  const body = rows.flatMap(([label, text]) =>
    wrap(text, width).map((line, at) => `  ${at === 0 ? style.bold(label.padEnd(6)) : ' '.repeat(6)} ${line}`),
  );
  const detail = error.detail === undefined ? [] : renderDetail(error.detail, style);
  return `${[style.red(style.bold(`${error.code}: ${summary}`)), ...body, ...detail].join('\n')}\n`;
}

const DETAIL_LINES = 20;

function renderDetail(detail: string, style: Style): string[] {
  const lines = detail.trimEnd().split('\n');
  const shown = lines.slice(-DETAIL_LINES).map((line) => `  ${style.dim(`│ ${line}`)}`);
  return lines.length > DETAIL_LINES
    ? [`  ${style.dim(`│ … ${lines.length - DETAIL_LINES} lines before`)}`, ...shown]
    : shown;
}

/** The same as one JSON object on standard output, for programs. */
export function errorEvent(error: UmsError): Record<string, unknown> {
  return { event: 'error', ...error.toReport(), exit_status: error.exitStatus };
}

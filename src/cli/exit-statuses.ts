/** What the exit status of any command means; the codes behind each are in telemetry/error-codes.ts and docs/errors.md. */
export const EXIT_STATUSES: Readonly<Record<number, string>> = {
  0: 'done',
  1: 'a defect in ums itself',
  2: 'the command is not well-formed',
  3: 'service, system or migration not found',
  4: 'refused before anything was touched',
  5: 'failed and undone: the service runs at its source',
  6: 'an operator must choose (see: ums recover ID)',
  7: 'cancelled',
  8: 'the agent or the other system cannot be reached',
  9: 'not authorised: unpaired, expired or revoked',
  130: 'detached by Ctrl-C; the migration goes on',
};

export const EXIT_DETACHED = 130;

export function exitStatusHelp(): string {
  const lines = Object.entries(EXIT_STATUSES).map(([status, meaning]) => `  ${status.padEnd(4)} ${meaning}`);
  return `Exit status:\n${lines.join('\n')}\n`;
}

import { UmsError } from '#src/telemetry/errors.ts';

/** Lines of context that an error carries. */
const MAX_LINES = 20;

/** CRIU's `Error (file.c:line): text` lines, without time and process, the telling one first in order of the log. */
export function criuErrorLines(log: string): string[] {
  const lines: string[] = [];
  for (const line of log.split('\n')) {
    const at = line.indexOf('Error (');
    if (at >= 0) lines.push(line.slice(at).trim());
    if (lines.length >= MAX_LINES) break;
  }
  return lines;
}

/** What only says that something else failed before. */
const CONSEQUENCES =
  /Dumping FAILED|Restoring FAILED|Can't (dump|restore) (task|file|files) |^Error \(criu\/cr-(dump|restore)\.c:\d+\): .*(FAILED|failed)\b/;

/** The error of a failed dump or restore: CRIU's own first reason as the message, more of its log as the detail. */
export function criuFailure(code: 'UMS_E_DUMP' | 'UMS_E_RESTORE', log: string, cause: UmsError): UmsError {
  const lines = criuErrorLines(log);
  const telling = lines.find((line) => !CONSEQUENCES.test(line)) ?? lines[0];
  const doing = code === 'UMS_E_DUMP' ? 'dump' : 'restore';
  const reason = telling?.replace(/^Error \([^)]*\):\s*/, '') ?? cause.message;
  return new UmsError(code, {
    message: `CRIU could not ${doing} the service: ${reason}`,
    fault: code === 'UMS_E_DUMP' ? 'service' : 'destination',
    mend: 'Run the pre-flight check (ums check), and see the detail for what the service uses that CRIU refuses.',
    detail: [...lines, cause.detail ?? cause.message].join('\n'),
    cause,
  });
}

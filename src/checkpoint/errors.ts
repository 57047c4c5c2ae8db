import { UmsError } from '#src/telemetry/errors.ts';

/** Lines of context that an error carries. */
const MAX_LINES = 20;

/** What CRIU calls an error and then does without. */
const HARMLESS =
  /Can't setup RLIMIT_NOFILE for self|Unable to create tun|No parent found|cgroup.*Failed to open.*swappiness/;
/** What only says that something else failed before. */
const CONSEQUENCES =
  /Dumping FAILED|Restoring FAILED|^Error \(criu\/cr-(?:dump|restore)\.c:\d+\): .*(?:FAILED|failed)\b/;

/** CRIU's `Error (file.c:line): text` lines, without time and process, in the order of the log. */
export function criuErrorLines(log: string): string[] {
  const lines: string[] = [];
  for (const line of log.split('\n')) {
    const at = line.indexOf('Error (');
    if (at < 0 || HARMLESS.test(line)) continue;
    lines.push(line.slice(at).trim());
    if (lines.length >= MAX_LINES) break;
  }
  return lines;
}

/** The line that says why, without its place in CRIU's source. */
export function tellingLine(log: string): string | undefined {
  const lines = criuErrorLines(log);
  const telling = lines.find((line) => !CONSEQUENCES.test(line)) ?? lines[0];
  return telling?.replace(/^Error \([^)]*\):\s*/, '');
}

/** The error of a failed dump or restore: CRIU's own first reason as the message, more of its log as the detail. */
export function criuFailure(code: 'UMS_E_DUMP' | 'UMS_E_RESTORE', log: string, cause: UmsError): UmsError {
  const doing = code === 'UMS_E_DUMP' ? 'dump' : 'restore';
  return new UmsError(code, {
    message: `CRIU could not ${doing} the service: ${tellingLine(log) ?? cause.message}`,
    fault: code === 'UMS_E_DUMP' ? 'service' : 'destination',
    mend: 'Run the pre-flight check (ums check), and see the detail for what the service uses that CRIU refuses.',
    detail: [...criuErrorLines(log), cause.detail ?? cause.message].join('\n'),
    cause,
  });
}

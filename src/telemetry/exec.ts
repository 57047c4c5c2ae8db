import { execa } from 'execa';
import { UmsError } from './errors.ts';

/**
 * The one door to child processes that run to an end. It adds to execa what every caller needs: a time limit, bounded
 * output, and an error that carries the command, its exit code and the line of its output that matters.
 */
export interface RunOptions {
  /** Milliseconds until the child is sent SIGTERM, and SIGKILL two seconds later. Default 60,000. */
  timeout_ms?: number;
  cwd?: string;
  /** Added to the environment. */
  env?: Record<string, string>;
  /** Bytes or text for its standard input; without it, standard input is empty. */
  input?: string | Uint8Array;
  signal?: AbortSignal;
  /** Exit codes that are not failures. Default [0]. */
  okExitCodes?: readonly number[];
  /** Picks the telling line out of the output of a failed command. Default: the last non-empty line of stderr. */
  pickLine?: (stderr: string, stdout: string) => string | undefined;
}

export interface RunResult {
  stdout: string;
  stderr: string;
  exitCode: number;
}

/** Output beyond this is an error of the caller: bulk belongs in a stream or a file. */
const OUTPUT_LIMIT_BYTES = 16 * 1024 * 1024;

function lastLine(text: string): string | undefined {
  return text
    .split('\n')
    .map((line) => line.trim())
    .findLast((line) => line !== '');
}

export async function run(command: string, args: readonly string[], options: RunOptions = {}): Promise<RunResult> {
  const okExitCodes = options.okExitCodes ?? [0];
  const result = await execa(command, [...args], {
    reject: false,
    timeout: options.timeout_ms ?? 60_000,
    forceKillAfterDelay: 2000,
    maxBuffer: OUTPUT_LIMIT_BYTES,
    stripFinalNewline: false,
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    ...(options.env === undefined ? {} : { env: options.env }),
    ...(options.input === undefined ? { stdin: 'ignore' as const } : { input: options.input }),
    ...(options.signal === undefined ? {} : { cancelSignal: options.signal }),
  });
  const stdout = result.stdout ?? '';
  const stderr = result.stderr ?? '';
  if (result.exitCode !== undefined && okExitCodes.includes(result.exitCode)) {
    return { stdout, stderr, exitCode: result.exitCode };
  }
  if (options.signal?.aborted === true) options.signal.throwIfAborted();
  throw childError(command, args, result, stdout, stderr, options.pickLine);
}

interface ChildEnd {
  exitCode?: number;
  signal?: string;
  timedOut: boolean;
  originalMessage?: string;
}

function childError(
  command: string,
  args: readonly string[],
  end: ChildEnd,
  stdout: string,
  stderr: string,
  pickLine: RunOptions['pickLine'],
): UmsError {
  const how = end.timedOut
    ? 'ran out of time'
    : end.signal !== undefined
      ? `was ended by ${end.signal}`
      : end.exitCode !== undefined
        ? `exited with ${end.exitCode}`
        : `could not be started (${end.originalMessage ?? 'no reason given'})`;
  const line = pickLine?.(stderr, stdout) ?? lastLine(stderr) ?? lastLine(stdout) ?? '';
  return new UmsError('UMS_E_CHILD', {
    message: `${command} ${how}${line === '' ? '' : `: ${line}`}`,
    fault: 'ums',
    detail: `command: ${[command, ...args].join(' ')}\n${(stderr === '' ? stdout : stderr).slice(-4000)}`,
  });
}

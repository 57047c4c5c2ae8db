import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtemp, open, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Duplex } from 'node:stream';
import { UmsError } from '#src/telemetry/errors.ts';

/**
 * Runs a command whose effect must not be cut short when the agent is killed: it gets a session of its own and files
 * for its output, so neither a signal to the agent's group nor a broken pipe reaches it.
 */
export interface DetachedOptions {
  env?: Record<string, string>;
  /** Milliseconds until the call fails with UMS_E_TIMEOUT. What then happens to the child is `onTimeout`. */
  timeout_ms: number;
  /** 'terminate' for engines; 'leave' for CRIU, which must cure the tasks it has stopped and may never be killed. */
  onTimeout: 'terminate' | 'leave';
  okExitCodes?: readonly number[];
  /** The child gets one end of a stream socket as this descriptor; the other end is the argument of `use`. */
  socket?: { fd: number; use: (socket: Duplex) => void };
}

export interface DetachedResult {
  stdout: string;
  stderr: string;
  exitCode: number;
}

/** Characters of output that are read back; engines' answers to changing commands are short. */
const OUTPUT_LIMIT = 256 * 1024;

async function readEnd(path: string): Promise<string> {
  const text = await readFile(path, 'utf8');
  return text.slice(-OUTPUT_LIMIT);
}

export async function runDetached(
  command: string,
  args: readonly string[],
  options: DetachedOptions,
): Promise<DetachedResult> {
  const directory = await mkdtemp(join(tmpdir(), 'ums-child-'));
  const stdoutPath = join(directory, 'stdout');
  const stderrPath = join(directory, 'stderr');
  try {
    const stdout = await open(stdoutPath, 'w', 0o600);
    const stderr = await open(stderrPath, 'w', 0o600);
    let ended: Promise<number>;
    try {
      ended = start(command, args, options, stdout.fd, stderr.fd);
      // The child has its own copies of both descriptors as soon as spawn returns.
    } finally {
      await stdout.close();
      await stderr.close();
    }
    const exitCode = await ended;
    const result = { stdout: await readEnd(stdoutPath), stderr: await readEnd(stderrPath), exitCode };
    if ((options.okExitCodes ?? [0]).includes(exitCode)) return result;
    throw failure(command, args, result);
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

function start(
  command: string,
  args: readonly string[],
  options: DetachedOptions,
  stdout: number,
  stderr: number,
): Promise<number> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, [...args], {
      stdio: ['ignore', stdout, stderr, ...further(options)],
      detached: true,
      env: { ...process.env, ...options.env },
    });
    useSocket(child, options);
    const timer = setTimeout(() => {
      if (options.onTimeout === 'terminate') child.kill('SIGTERM');
      reject(
        new UmsError('UMS_E_TIMEOUT', {
          message: `${command} ${args[0] ?? ''} did not end within ${options.timeout_ms} ms`,
          fault: 'ums',
          detail: [command, ...args].join(' '),
        }),
      );
    }, options.timeout_ms);
    child.once('error', (error) => {
      clearTimeout(timer);
      reject(
        new UmsError('UMS_E_CHILD', {
          message: `${command} could not be started: ${error.message}`,
          fault: 'ums',
          cause: error,
        }),
      );
    });
    child.once('exit', (code, signal) => {
      clearTimeout(timer);
      // A child that a signal ended has no exit code; shells report such an end as a number above 128.
      resolve(code ?? (signal === null ? 255 : 128));
    });
  });
}

function further(options: DetachedOptions): ('ignore' | 'pipe')[] {
  if (options.socket === undefined) return [];
  return [...Array.from({ length: options.socket.fd - 3 }, () => 'ignore' as const), 'pipe'];
}

function useSocket(child: ChildProcess, options: DetachedOptions): void {
  const socket: unknown = options.socket === undefined ? undefined : child.stdio[options.socket.fd];
  // A child that could not be started has none; its error is told by the event.
  if (socket instanceof Duplex) options.socket?.use(socket);
}

function failure(command: string, args: readonly string[], result: DetachedResult): UmsError {
  const lines = `${result.stderr}\n${result.stdout}`.split('\n').map((line) => line.trim());
  const telling = lines.filter((line) => line !== '' && !line.includes('level=warning'));
  const line =
    result.stderr.trim() === '' ? telling[0] : (telling.findLast((each) => /error/i.test(each)) ?? telling[0]);
  return new UmsError('UMS_E_CHILD', {
    message: `${command} exited with ${result.exitCode}${line === undefined ? '' : `: ${line}`}`,
    fault: 'ums',
    detail: `command: ${[command, ...args].join(' ').slice(0, 4000)}\n${result.stderr.slice(-4000)}`,
  });
}

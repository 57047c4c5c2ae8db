import { type ChildProcess, spawn } from 'node:child_process';
import { statSync } from 'node:fs';
import { mkdir, readdir, rm } from 'node:fs/promises';
import { connect, Socket } from 'node:net';
import { join } from 'node:path';
import { UmsError } from '#src/telemetry/errors.ts';
import { Agent, request } from 'undici';
import { poll } from '../oci/cgroup.ts';
import { exists } from '../oci/files.ts';

/**
 * Podman's own HTTP service (podman-system-service(1)), started when something is asked and gone with the agent, or by itself
 * when nothing was asked for a while. Podman's command takes forty milliseconds for any question, of which a migration has
 * two dozen; its service takes one. What changes something stays with the command, which a killed agent does not cut
 * short, except where doing it once more ends as well.
 */
const DIRECTORY = '/run/ums-podman';
/** Seconds without a question after which Podman ends it. */
const IDLE_S = 30;
/**
 * It keeps Podman's database open, whatever becomes of the path to it (`podman system reset`, another file system mounted
 * there): with another one there, another service is asked. Podman's default places, of which there is one or the other.
 */
const DATABASES = ['/var/lib/containers/storage/db.sql', '/var/lib/containers/storage/libpod/bolt_state.db'];
const START_LIMIT_MS = 30_000;
const START_LOOK_MS = 5;
const ANSWER_LIMIT_BYTES = 64 * 1024 * 1024;
const COMPLAINT_LIMIT = 16_384;

export interface Answer {
  status: number;
  text: string;
}

interface Service {
  child: ChildProcess;
  dispatcher: Agent;
  /** Which database it has open. */
  storage: string;
}

let running: Promise<Service> | undefined;
let started = 0;

export interface Call {
  /** What may be repeated. */
  method: 'GET' | 'DELETE';
  /** What follows `/libpod`. */
  path: string;
  limit_ms: number;
}

export async function call(what: Call): Promise<Answer> {
  const service = running ?? begin();
  const { child, dispatcher, storage } = await service;
  try {
    if (storage === storageNow()) return await ask(dispatcher, what);
  } catch (error) {
    // It may end by itself in the instant in which it is asked again. Then another one is asked.
    if (!isGone(error)) throw noAnswer(what, error);
  }
  if (running === service) running = undefined;
  child.kill();
  const { dispatcher: another } = await (running ?? begin());
  try {
    return await ask(another, what);
  } catch (error) {
    throw noAnswer(what, error);
  }
}

async function ask(dispatcher: Agent, { method, path, limit_ms }: Call): Promise<Answer> {
  const limits = { headersTimeout: limit_ms, bodyTimeout: limit_ms };
  const { statusCode, body } = await request(`http://podman/v5.0.0/libpod${path}`, { dispatcher, method, ...limits });
  return { status: statusCode, text: await body.text() };
}

const GONE = ['ECONNREFUSED', 'ECONNRESET', 'ENOENT', 'EPIPE', 'UND_ERR_SOCKET', 'UND_ERR_DESTROYED'];

function isGone(error: unknown): boolean {
  return error instanceof Error && 'code' in error && GONE.some((code) => code === error.code);
}

function begin(): Promise<Service> {
  const service = start();
  running = service;
  const forget = () => {
    if (running === service) running = undefined;
  };
  service.then(({ child, dispatcher }) => {
    const takeAlong = () => child.kill();
    process.once('exit', takeAlong);
    child.once('exit', () => {
      process.off('exit', takeAlong);
      forget();
      void dispatcher.destroy();
    });
  }, forget);
  return service;
}

async function start(): Promise<Service> {
  await mkdir(DIRECTORY, { recursive: true, mode: 0o700 });
  await sweep();
  started += 1;
  const socketPath = join(DIRECTORY, `${process.pid}-${started}.sock`);
  const args = ['system', 'service', '--time', String(IDLE_S), `unix://${socketPath}`];
  const child = spawn('podman', args, { stdio: ['ignore', 'ignore', 'pipe'] });
  let complaint = '';
  child.once('error', (error) => (complaint = error.message));
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    complaint = (complaint + text).slice(-COMPLAINT_LIMIT);
  });
  // Who runs for one question only must not have to wait until Podman ends its service.
  child.unref();
  if (child.stderr instanceof Socket) child.stderr.unref();
  const hasEnded = () => child.pid === undefined || child.exitCode !== null || child.signalCode !== null;
  const isOver = await poll(async () => hasEnded() || (await listens(socketPath)), START_LIMIT_MS, START_LOOK_MS);
  if (!isOver || hasEnded()) {
    child.kill();
    throw notStarted(args, complaint);
  }
  const dispatcher = new Agent({ connect: { socketPath }, maxResponseSize: ANSWER_LIMIT_BYTES });
  return { child, dispatcher, storage: storageNow() };
}

function storageNow(): string {
  return DATABASES.map((path) => {
    const seen = statSync(path, { throwIfNoEntry: false });
    return seen === undefined ? '' : `${seen.dev}:${seen.ino}`;
  }).join(' ');
}

function listens(socketPath: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(socketPath, () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', () => resolve(false));
  });
}

/** Removes the sockets of services that were killed: this agent's earlier ones, and those of agents that are gone. */
async function sweep(): Promise<void> {
  for (const name of await readdir(DIRECTORY)) {
    const pid = /^(\d+)-\d+\.sock$/.exec(name)?.[1];
    if (pid === undefined) continue;
    if (pid !== String(process.pid) && (await exists(`/proc/${pid}`))) continue;
    await rm(join(DIRECTORY, name), { force: true });
  }
}

function notStarted(args: readonly string[], complaint: string): UmsError {
  const line = complaint.trim().split('\n').at(-1) ?? '';
  return new UmsError('UMS_E_ENGINE', {
    message: `Podman does not start its service: ${line === '' ? 'no reason given' : line}`,
    fault: 'ums',
    mend: 'See whether it answers at all: podman info',
    detail: `command: podman ${args.join(' ')}\n${complaint}`,
  });
}

function noAnswer({ method, path }: Call, error: unknown): UmsError {
  return new UmsError('UMS_E_ENGINE', {
    message: `Podman does not answer: ${error instanceof Error ? error.message : String(error)}`,
    fault: 'ums',
    mend: 'See whether it answers at all: podman info',
    detail: `${method} ${path}`,
    cause: error,
  });
}

import { mkdtemp, rm } from 'node:fs/promises';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Service, ServiceDetail, System } from '#src/agent/api.ts';
import type { Migration, MigrationEvent } from '#src/coordination/schema.ts';
import type { ErrorReport } from '#src/telemetry/errors.ts';
import { run } from '../program.ts';
import type { Io } from '../terminal.ts';

/** An answer: JSON with a status, or lines of a stream (`cut` breaks the connection after them). */
export type Answer =
  | { status?: number; json: unknown }
  | { lines: readonly unknown[]; cut?: boolean; hold?: Promise<void> };
export type Script = Record<string, Answer | ((body: unknown, url: string) => Answer)>;

/** An HTTP server on a unix socket with scripted answers, keyed by "METHOD /path". */
export class FakeAgent {
  readonly directory: string;
  readonly requests: { key: string; body: unknown; url: string }[] = [];
  script: Script = {};
  readonly #server = createServer((request, response) => void this.#answer(request, response));

  private constructor(directory: string) {
    this.directory = directory;
  }

  static async start(script: Script = {}): Promise<FakeAgent> {
    const agent = new FakeAgent(await mkdtemp(join(tmpdir(), 'ums-fake-agent-')));
    agent.script = script;
    const { promise, resolve } = Promise.withResolvers<void>();
    agent.#server.listen(agent.socket, resolve);
    await promise;
    return agent;
  }

  get socket(): string {
    return join(this.directory, 'agent.sock');
  }

  async stop(): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#server.close(() => resolve());
    this.#server.closeAllConnections();
    await promise;
    await rm(this.directory, { recursive: true, force: true });
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    let text = '';
    for await (const chunk of request) text += String(chunk);
    const url = request.url ?? '';
    const key = `${request.method ?? ''} ${url.split('?')[0] ?? ''}`;
    const body: unknown = text === '' ? undefined : JSON.parse(text);
    this.requests.push({ key, body, url });
    const scripted = this.script[key];
    const answer = typeof scripted === 'function' ? scripted(body, url) : scripted;
    if (answer === undefined) {
      response.writeHead(500).end(JSON.stringify({ error: report('UMS_E_INTERNAL', `not scripted: ${key}`) }));
    } else if ('lines' in answer) {
      response.writeHead(200, { 'content-type': 'application/x-ndjson' });
      for (const line of answer.lines) response.write(`${JSON.stringify(line)}\n`);
      await answer.hold;
      if (answer.cut === true) response.destroy();
      else response.end();
    } else {
      response.writeHead(answer.status ?? 200, { 'content-type': 'application/json' }).end(JSON.stringify(answer.json));
    }
  }
}

export interface Said {
  status: number;
  out: string;
  err: string;
  /** Each line of the output, parsed. */
  events(): Record<string, unknown>[];
}

export interface FakeTerminal {
  tty?: boolean;
  columns?: number;
  env?: Record<string, string>;
  onOut?(text: string): void;
  /** Receives a function that acts as one Ctrl-C. */
  onReady?(interrupt: () => void): void;
}

/** Runs a command line against the agent, and keeps what it wrote. */
export async function runCli(
  agent: FakeAgent | undefined,
  argv: readonly string[],
  terminal: FakeTerminal = {},
): Promise<Said> {
  let out = '';
  let err = '';
  const directory = agent?.directory ?? '/nonexistent';
  const io: Io = {
    out: (text) => {
      out += text;
      terminal.onOut?.(text);
    },
    err: (text) => {
      err += text;
    },
    env: {
      UMS_CONFIG_DIR: join(directory, 'config'),
      UMS_RUN_DIR: join(directory, 'run'),
      HOME: directory,
      ...terminal.env,
    },
    outIsTty: terminal.tty ?? false,
    columns: () => terminal.columns ?? 80,
    now_ms: () => NOW_MS,
    onInterrupt: (handler) => {
      terminal.onReady?.(handler);
      return () => undefined;
    },
  };
  const status = await run(argv, io);
  return {
    status,
    out,
    err,
    events: () =>
      out
        .trim()
        .split('\n')
        .map((line): Record<string, unknown> => ({ ...JSON.parse(line) })),
  };
}

export const NOW_MS = 1_790_000_100_000;
export const ID = 'm-0123456789abcdefghij';

export function report(code: string, message: string): ErrorReport {
  return { code, message, fault: 'user', state: 'Nothing was touched.', mend: 'Look at it.' };
}

export function migration(changes: Partial<Migration> = {}): Migration {
  return {
    id: ID,
    role: 'source',
    state: 'planned',
    in_doubt: false,
    service: 'redis',
    engine: 'podman',
    source: 'alpha',
    destination: 'beta',
    technique: 'cold',
    approach: 'orchestrator-level',
    started_at: NOW_MS - 3000,
    ended_at: null,
    downtime_ms: null,
    total_ms: null,
    bytes_on_wire: 0,
    state_bytes: 0,
    steps: [],
    memory: null,
    error: null,
    ...changes,
  };
}

export function doneMigration(): Migration {
  return migration({
    state: 'done',
    ended_at: NOW_MS,
    downtime_ms: 812.5,
    total_ms: 2400,
    bytes_on_wire: 281_018_368,
    state_bytes: 268_435_456,
    steps: [
      { name: 'checking', start_ms: 0, duration_ms: 200 },
      { name: 'freezing', start_ms: 600, duration_ms: 50 },
      { name: 'dumping', start_ms: 650, duration_ms: 500 },
      { name: 'removing', start_ms: 2000, duration_ms: 400 },
    ],
  });
}

export function service(changes: Partial<Service> = {}): Service {
  return {
    engine: 'podman',
    id: '0123456789abcdef',
    name: 'redis',
    state: 'running',
    image: 'localhost/redis:7',
    pid: 4711,
    ports: ['0.0.0.0:6379->6379/tcp'],
    created_at: '2026-11-20T20:00:00Z',
    migration: null,
    ...changes,
  };
}

export function serviceDetail(changes: Partial<ServiceDetail> = {}): ServiceDetail {
  return {
    ...service(),
    specification: { version: 1 },
    memory_bytes: 268_435_456,
    trees: [{ id: 'upper', path: '/var/lib/containers/x/diff', kind: 'overlay-upper' }],
    losses: ['Its log so far stays at the source.'],
    ...changes,
  };
}

export function system(): System {
  return {
    name: 'alpha',
    version: '0.1.0',
    protocol: { min: 1, max: 1 },
    peer_address: '10.77.0.1',
    peer_port: 7440,
    kernel: '6.18',
    criu: { version: '4.2.1', works: true },
    engines: [{ engine: 'podman', available: true, version: '5.4.2', runtime: 'runc 1.1.15' }],
    pid: 1,
    started_at: NOW_MS - 60_000,
  };
}

/** The events of a migration that succeeds. */
export function goodEvents(): MigrationEvent[] {
  const at = NOW_MS - 3000;
  return [
    { seq: 1, at, id: ID, event: 'state', from: 'planned', state: 'checking' },
    { seq: 2, at: at + 200, id: ID, event: 'state', from: 'checking', state: 'freezing' },
    { seq: 3, at: at + 250, id: ID, event: 'state', from: 'freezing', state: 'dumping' },
    {
      seq: 4,
      at: at + 300,
      id: ID,
      event: 'progress',
      state: 'dumping',
      what: 'memory',
      bytes: 134_217_728,
      total_bytes: 268_435_456,
      rate_bytes_s: 117_440_512,
    },
    { seq: 5, at: at + 900, id: ID, event: 'note', text: 'the link is slower than usual' },
    { seq: 6, at: at + 2400, id: ID, event: 'state', from: 'removing', state: 'done' },
    { seq: 7, at: at + 2400, id: ID, event: 'ended', migration: doneMigration() },
  ];
}

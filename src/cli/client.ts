import { Agent, request } from 'undici';
import { z } from 'zod';
import {
  checkResultSchema,
  errorBodySchema,
  frontmanSchema,
  inviteResponseSchema,
  migrationSchema,
  pairedSystemSchema,
  predictionErrorsSchema,
  serviceDetailSchema,
  serviceSchema,
  systemSchema,
  type checkRequestSchema,
  type frontmanRequestSchema,
} from '#src/agent/api.ts';
import { type MigrationEvent, migrationEventSchema } from '#src/coordination/schema.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import type { Context } from './contexts.ts';

type Method = 'GET' | 'POST' | 'DELETE';
const RESPONSE_LIMIT_BYTES = 64 * 1024 * 1024;
const EVENT_LIMIT_CHARS = 1024 * 1024;
/** A check or an image comparison may take the agent a while. */
const ANSWER_LIMIT_MS = 300_000;
const emptySchema = z.object({});

/** The local agent, spoken to over its unix socket. Every answer is parsed before it is used. */
export class AgentClient {
  readonly context: Context;
  readonly #requests: Agent;
  readonly #streams: Agent;

  constructor(context: Context) {
    this.context = context;
    const connect = { socketPath: context.socket, timeout: 10_000 };
    this.#requests = new Agent({
      connect,
      headersTimeout: ANSWER_LIMIT_MS,
      bodyTimeout: ANSWER_LIMIT_MS,
      maxResponseSize: RESPONSE_LIMIT_BYTES,
    });
    // A migration may be silent for long (a big image is being imported), so only a broken connection ends its stream.
    this.#streams = new Agent({ connect, headersTimeout: ANSWER_LIMIT_MS, bodyTimeout: 0 });
  }

  async close(): Promise<void> {
    await Promise.all([this.#requests.destroy(), this.#streams.destroy()]);
  }

  system = () => this.#call('GET', '/v1/system', systemSchema);
  systems = () => this.#call('GET', '/v1/systems', z.array(pairedSystemSchema));
  invite = (ttl_s: number) => this.#call('POST', '/v1/pairing/invite', inviteResponseSchema, { ttl_s });
  join = (token: string) => this.#call('POST', '/v1/pairing/join', pairedSystemSchema, { token });
  rotate = (name: string) => this.#call('POST', `/v1/systems/${encodeURIComponent(name)}/rotate`, pairedSystemSchema);
  revoke = (name: string) => this.#call('DELETE', `/v1/systems/${encodeURIComponent(name)}`, emptySchema);
  services = () => this.#call('GET', '/v1/services', z.array(serviceSchema));
  service = (ref: string) => this.#call('GET', `/v1/services/${encodeURIComponent(ref)}`, serviceDetailSchema);
  control = (ref: string, action: 'stop' | 'start' | 'remove') =>
    this.#call('POST', `/v1/services/${encodeURIComponent(ref)}/${action}`, emptySchema);
  check = (body: z.input<typeof checkRequestSchema>) => this.#call('POST', '/v1/check', checkResultSchema, body);
  migrate = (body: z.input<typeof checkRequestSchema>) => this.#call('POST', '/v1/migrations', migrationSchema, body);
  migrations = () => this.#call('GET', '/v1/migrations', z.array(migrationSchema));
  migration = (id: string) => this.#call('GET', `/v1/migrations/${encodeURIComponent(id)}`, migrationSchema);
  cancel = (id: string) => this.#call('POST', `/v1/migrations/${encodeURIComponent(id)}/cancel`, migrationSchema);
  recover = (id: string, choice: 'thaw-source' | 'drop-source') =>
    this.#call('POST', `/v1/migrations/${encodeURIComponent(id)}/recover`, migrationSchema, { choice });
  predictions = () => this.#call('GET', '/v1/predictions', z.array(predictionErrorsSchema));
  frontmen = () => this.#call('GET', '/v1/frontmen', z.array(frontmanSchema));
  addFrontman = (body: z.input<typeof frontmanRequestSchema>) =>
    this.#call('POST', '/v1/frontmen', frontmanSchema, body);
  removeFrontman = (id: string) => this.#call('DELETE', `/v1/frontmen/${encodeURIComponent(id)}`, emptySchema);

  /** The events after `after`, in order, until the agent ends the stream. A broken connection throws. */
  async *events(id: string, after: number, signal: AbortSignal): AsyncGenerator<MigrationEvent> {
    const path = `/v1/migrations/${encodeURIComponent(id)}/events?after=${after}`;
    const response = await this.#send('GET', path, this.#streams, undefined, signal);
    if (response.statusCode >= 400) throw errorOf(response.statusCode, await response.body.text());
    let pending = '';
    const decoder = new TextDecoder();
    try {
      for await (const chunk of response.body) {
        const bytes: unknown = chunk;
        if (!(bytes instanceof Uint8Array)) throw notUnderstood('an event stream that is not bytes');
        pending += decoder.decode(bytes, { stream: true });
        const lines = pending.split('\n');
        pending = lines.pop() ?? '';
        if (pending.length > EVENT_LIMIT_CHARS) throw notUnderstood('an event over the limit of 1 MiB');
        for (const line of lines) if (line.trim() !== '') yield parseJson(line, migrationEventSchema);
      }
    } catch (thrown) {
      throw thrown instanceof UmsError ? thrown : this.#unreachable(thrown);
    }
    if (pending.trim() !== '') throw this.#unreachable(new Error('the stream ended within an event'));
  }

  async #call<T>(method: Method, path: string, schema: z.ZodType<T>, body?: object): Promise<T> {
    const response = await this.#send(method, path, this.#requests, body);
    let text: string;
    try {
      text = await response.body.text();
    } catch (thrown) {
      throw this.#unreachable(thrown);
    }
    if (response.statusCode >= 400) throw errorOf(response.statusCode, text);
    return parseJson(text === '' ? '{}' : text, schema);
  }

  async #send(method: Method, path: string, dispatcher: Agent, body?: object, signal?: AbortSignal) {
    try {
      return await request(`http://agent${path}`, {
        method,
        dispatcher,
        ...(signal === undefined ? {} : { signal }),
        ...(body === undefined ? {} : { body: JSON.stringify(body), headers: { 'content-type': 'application/json' } }),
      });
    } catch (thrown) {
      throw this.#unreachable(thrown);
    }
  }

  #unreachable(thrown: unknown): UmsError {
    const code = thrown instanceof Error && 'code' in thrown ? String(thrown.code) : '';
    const reason = thrown instanceof Error ? thrown.message : String(thrown);
    const mends: Record<string, string> = {
      EACCES: 'The socket is for its owner only: run this as root (sudo ums …).',
      EPERM: 'The socket is for its owner only: run this as root (sudo ums …).',
    };
    const local = this.context.name === 'local';
    const start = local
      ? 'Start it (systemctl start ums-agent, or ums agent run --help), or name another with --context (ums contexts).'
      : `Look at the context's host: ums lab status, ums lab logs ${this.context.name}.`;
    return new UmsError('UMS_E_AGENT_UNREACHABLE', {
      message: `No agent answers at ${this.context.socket} (${reason}).`,
      fault: 'user',
      state: 'Nothing was changed by this command line; a migration that was under way goes on without it.',
      mend: mends[code] ?? start,
      cause: thrown,
    });
  }
}

function parseJson<T>(text: string, schema: z.ZodType<T>): T {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (thrown) {
    throw notUnderstood(`something that is not JSON: ${text.slice(0, 200)}`, thrown);
  }
  const parsed = schema.safeParse(value);
  if (!parsed.success) throw notUnderstood(z.prettifyError(parsed.error), parsed.error);
  return parsed.data;
}

function notUnderstood(what: string, cause?: unknown): UmsError {
  return new UmsError('UMS_E_INTERNAL', {
    message: `The agent sent an answer that this command line does not understand: ${what}`,
    fault: 'ums',
    mend: 'Use the same version of ums for the agent and the command line (ums version shows both).',
    cause,
  });
}

function errorOf(status: number, text: string): UmsError {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (thrown) {
    return notUnderstood(`status ${status}: ${text.slice(0, 200)}`, thrown);
  }
  const parsed = errorBodySchema.safeParse(value);
  return parsed.success
    ? UmsError.fromReport(parsed.data.error)
    : notUnderstood(`status ${status}: ${text.slice(0, 200)}`);
}

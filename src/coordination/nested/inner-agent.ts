import { request } from 'node:http';
import { z } from 'zod';
import { socketIn } from '#src/approaches/container-level/outside.ts';
import { errorReportSchema, UmsError } from '#src/telemetry/errors.ts';
import { type Migration, type MigrateOptions, migrationSchema, systemNameSchema } from '../schema.ts';

/**
 * The agent in a capsule of this host, spoken to over its own local API as its command line would. What it answers is
 * bounded and checked: it comes out of a container.
 */
const TIMEOUT_MS = 30_000;
const ANSWER_LIMIT_BYTES = 4 * 1024 * 1024;

const pairedSchema = z.array(z.object({ name: systemNameSchema, status: z.string() })).max(1000);
const servicesSchema = z
  .array(z.object({ name: z.string().max(512), state: z.string(), migration: z.string().nullable() }))
  .max(1000);
const invitationSchema = z.object({ token: z.string().max(8192) });
const migrationsSchema = z.array(migrationSchema).max(10_000);

export class InnerAgent {
  readonly #pid: number;

  constructor(pid: number) {
    this.#pid = pid;
  }

  async name(): Promise<string> {
    return (await this.#ask('GET', '/v1/system', z.object({ name: systemNameSchema }))).name;
  }

  services(): Promise<z.infer<typeof servicesSchema>> {
    return this.#ask('GET', '/v1/services', servicesSchema);
  }

  systems(): Promise<z.infer<typeof pairedSchema>> {
    return this.#ask('GET', '/v1/systems', pairedSchema);
  }

  async invite(): Promise<string> {
    return (await this.#ask('POST', '/v1/pairing/invite', invitationSchema, {})).token;
  }

  async join(token: string): Promise<void> {
    await this.#ask('POST', '/v1/pairing/join', z.looseObject({}), { token });
  }

  migrate(service: string, to: string, options: Partial<MigrateOptions>): Promise<Migration> {
    return this.#ask('POST', '/v1/migrations', migrationSchema, { service, to, options });
  }

  migrations(): Promise<Migration[]> {
    return this.#ask('GET', '/v1/migrations', migrationsSchema);
  }

  migration(id: string): Promise<Migration> {
    return this.#ask('GET', `/v1/migrations/${id}`, migrationSchema);
  }

  async cancel(id: string): Promise<void> {
    await this.#ask('POST', `/v1/migrations/${id}/cancel`, z.looseObject({}));
  }

  async #ask<T>(method: string, path: string, schema: z.ZodType<T>, body?: unknown): Promise<T> {
    const { status, text } = await exchange(socketIn(this.#pid), method, path, body);
    const json = jsonOf(text);
    if (status < 200 || status > 299) {
      const told = z.object({ error: errorReportSchema }).safeParse(json);
      throw told.success ? UmsError.fromReport(told.data.error) : strange(`${method} ${path}: ${status}`);
    }
    const parsed = schema.safeParse(json);
    if (parsed.success) return parsed.data;
    throw strange(`${method} ${path}: ${parsed.error.issues[0]?.message ?? ''}`);
  }
}

function jsonOf(text: string): unknown {
  try {
    return text === '' ? {} : JSON.parse(text);
  } catch {
    // The schema says that it is not what was asked for.
    return undefined;
  }
}

function strange(detail: string): UmsError {
  return new UmsError('UMS_E_PEER_MESSAGE', {
    message: 'The agent in the capsule answers with what no agent of this version does.',
    fault: 'service',
    mend: 'Build the capsule’s image of the same version: ums image build capsule.',
    detail,
  });
}

function exchange(
  socketPath: string,
  method: string,
  path: string,
  body: unknown,
): Promise<{ status: number; text: string }> {
  const text = body === undefined ? undefined : JSON.stringify(body);
  const headers =
    text === undefined ? {} : { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) };
  return new Promise((fulfil, reject) => {
    const call = request({ socketPath, method, path, timeout: TIMEOUT_MS, headers });
    call.on('timeout', () => call.destroy(new Error(`no answer within ${TIMEOUT_MS} ms`)));
    call.on('error', (cause) => reject(unreachable(cause)));
    call.on('response', (response) => {
      const chunks: Buffer[] = [];
      let size_bytes = 0;
      response.on('data', (chunk: Buffer) => {
        size_bytes += chunk.length;
        if (size_bytes > ANSWER_LIMIT_BYTES) call.destroy(new Error('its answer is too large'));
        else chunks.push(chunk);
      });
      response.on('error', (cause) => reject(unreachable(cause)));
      response.on('end', () =>
        fulfil({ status: response.statusCode ?? 0, text: Buffer.concat(chunks).toString('utf8') }),
      );
    });
    call.end(text);
  });
}

function unreachable(cause: Error): UmsError {
  return new UmsError('UMS_E_AGENT_UNREACHABLE', {
    message: `The agent in the capsule does not answer: ${cause.message}.`,
    fault: 'service',
    mend: 'Look at the capsule’s log; its first process starts the agent again by itself.',
    cause,
  });
}

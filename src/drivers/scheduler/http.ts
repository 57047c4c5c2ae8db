import { UmsError } from '#src/telemetry/errors.ts';
import { Agent, request } from 'undici';
import type { z } from 'zod';
import { type Answerer, messageIn, parseAnswer, readText } from '../oci/answers.ts';

/** The HTTP interface of a scheduler, typed. It is asked every time; nothing is remembered here. */
const LIMIT_MS = 10_000;
const UNAUTHORIZED = 401;
const FORBIDDEN = 403;
const REDIRECTED = 300;

const dispatcher = new Agent({ connections: 8, pipelining: 1 });

export interface HttpAccess {
  answerer: Answerer;
  /** Without credentials: it is shown in messages. */
  address: string;
  headers: Readonly<Record<string, string>>;
  /** What a person can do when nobody answers, and when the agent is not let in. */
  mend: string;
  mendRights: string;
}

interface Call {
  method?: 'GET' | 'POST' | 'PATCH' | 'DELETE';
  body?: unknown;
  /** Answers of this status are no failures; the result is undefined then. */
  absent?: readonly number[];
}

/** The scheduler answered with an error; `status` is HTTP's, `said` its own words. */
export class SchedulerRefusal extends UmsError {
  readonly status: number;
  readonly said: string;

  constructor(status: number, said: string, path: string, { answerer, mendRights }: HttpAccess) {
    const isRights = status === UNAUTHORIZED || status === FORBIDDEN;
    super('UMS_E_ENGINE', {
      message: `${answerer.name} ${isRights ? 'does not let this agent do that' : 'refused'}: ${said}`,
      fault: isRights ? 'user' : 'ums',
      ...(isRights ? { state: 'Nothing was changed.', mend: mendRights } : {}),
      detail: `${path}: ${status}`,
    });
    this.status = status;
    this.said = said;
  }
}

export class HttpApi {
  readonly #access: HttpAccess;
  readonly #limit_ms: number;

  constructor(access: HttpAccess, limit_ms = LIMIT_MS) {
    this.#access = access;
    this.#limit_ms = limit_ms;
  }

  async call<T>(path: string, schema: z.ZodType<T>, options: Call = {}): Promise<T | undefined> {
    const { method = 'GET', body, absent = [] } = options;
    const { address, answerer, headers } = this.#access;
    const { status, text } = await this.#reach(`${method} ${path}`, async (signal) => {
      const answer = await request(`${address}${path}`, {
        dispatcher,
        method,
        signal,
        headers: {
          accept: 'application/json',
          ...headers,
          ...(body === undefined ? {} : { 'content-type': 'application/json' }),
        },
        ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      });
      return { status: answer.statusCode, text: await readText(answer.body, path, answerer.name) };
    });
    if (absent.includes(status)) return undefined;
    if (status >= REDIRECTED) throw new SchedulerRefusal(status, messageIn(text), path, this.#access);
    return parseAnswer(schema, text === '' ? 'null' : text, path, answerer);
  }

  /** All of an exchange has one limit, so that one that comes by drops ends, too. */
  async #reach<T>(what: string, ask: (signal: AbortSignal) => Promise<T>): Promise<T> {
    const signal = AbortSignal.timeout(this.#limit_ms);
    try {
      return await ask(signal);
    } catch (error) {
      if (error instanceof UmsError) throw error;
      const why = error instanceof Error ? error.message : String(error);
      const { answerer, address, mend } = this.#access;
      throw new UmsError('UMS_E_ENGINE', {
        message: `${answerer.name} does not answer at ${address}: ${signal.aborted ? `nothing came within ${this.#limit_ms} ms` : why}`,
        fault: 'ums',
        mend,
        detail: what,
        cause: error,
      });
    }
  }
}

export interface Address {
  /** Without a slash at its end, and without credentials. */
  address: string;
  user: string;
  password: string;
}

/** Where a scheduler is, as a variable of the environment says. */
export function addressIn(variable: string, text: string): Address {
  const url = URL.parse(text);
  if (url === null || !['http:', 'https:'].includes(url.protocol)) {
    throw new UmsError('UMS_E_USAGE', {
      // Not the text: it may hold a password.
      message: `${variable} is no address that begins with http:// or https://`,
      fault: 'user',
      mend: `Correct ${variable} in the environment of the agent.`,
    });
  }
  return {
    address: `${url.origin}${url.pathname}`.replace(/\/+$/, ''),
    user: decodeURIComponent(url.username),
    password: decodeURIComponent(url.password),
  };
}

import { readFileSync } from 'node:fs';
import { createServer, type IncomingMessage, type RequestListener, type ServerResponse } from 'node:http';
import { isDeepStrictEqual } from 'node:util';
import { z } from 'zod';

/**
 * A scheduler that answers only what its contract says. The contract is a file of exchanges, one a line, each of a case. Within
 * a case they are in order: a request that changes something is taken once, and only when those before it have been; a
 * reading has the answers that stand between two changes, one after the other, and then keeps the last one. A request that
 * is not in the contract is answered with 501 and complained of, and whoever uses this must see that there are no complaints.
 */
const exchangeSchema = z.object({
  case: z.string(),
  request: z.object({
    method: z.enum(['GET', 'POST', 'PATCH', 'DELETE']),
    path: z.string().startsWith('/'),
    headers: z.record(z.string(), z.string()).default({}),
    body: z.unknown().optional(),
  }),
  response: z.object({
    status: z.int(),
    headers: z.record(z.string(), z.string()).default({}),
    /** A text is sent as it is, all else as JSON. */
    body: z.unknown(),
  }),
});
export type Exchange = z.infer<typeof exchangeSchema>;
type Answer = Exchange['response'];

const NOT_IN_CONTRACT = 501;

export function readContract(file: URL): Exchange[] {
  const lines = readFileSync(file, 'utf8').split('\n');
  return lines.filter((line) => line !== '').map((line) => exchangeSchema.parse(JSON.parse(line)));
}

function called({ request: { method, path } }: Exchange): string {
  return `${method} ${path}`;
}

class FakeAnswers {
  readonly complaints: string[] = [];
  /** Readings, and the change that ends each group of them. */
  readonly #phases: { readings: Exchange[]; change: Exchange | undefined }[] = [];
  readonly #given = new Set<Exchange>();
  #at = 0;

  constructor(exchanges: readonly Exchange[]) {
    let readings: Exchange[] = [];
    for (const exchange of exchanges) {
      if (exchange.request.method === 'GET') readings.push(exchange);
      else {
        this.#phases.push({ readings, change: exchange });
        readings = [];
      }
    }
    this.#phases.push({ readings, change: undefined });
  }

  left(): string[] {
    return this.#phases.slice(this.#at).flatMap(({ change }) => (change === undefined ? [] : [called(change)]));
  }

  answer(method: string, path: string, headers: IncomingMessage['headers'], body: unknown): Answer {
    const what = `${method} ${path}`;
    const found = method === 'GET' ? this.#reading(what) : this.#change(what, body);
    if (found === undefined) return this.#complain(`${what} is not in the contract here: ${JSON.stringify(body)}`);
    for (const [name, value] of Object.entries(found.request.headers)) {
      if (headers[name] !== value) return this.#complain(`${what} has not the header ${name}: ${value}`);
    }
    return found.response;
  }

  /** What was said before a change still holds, if nothing else is said after it. */
  #reading(what: string): Exchange | undefined {
    for (let at = this.#at; at >= 0; at -= 1) {
      const answers = (this.#phases[at]?.readings ?? []).filter((each) => called(each) === what);
      const fresh = at === this.#at ? answers.find((each) => !this.#given.has(each)) : undefined;
      const found = fresh ?? answers.at(-1);
      if (found === undefined) continue;
      this.#given.add(found);
      return found;
    }
    return undefined;
  }

  #change(what: string, body: unknown): Exchange | undefined {
    const change = this.#phases[this.#at]?.change;
    if (change === undefined || called(change) !== what) return undefined;
    if (!isDeepStrictEqual(change.request.body, body)) return undefined;
    this.#at += 1;
    return change;
  }

  #complain(why: string): Answer {
    this.complaints.push(why);
    return { status: NOT_IN_CONTRACT, headers: {}, body: why };
  }
}

export interface FakeServer {
  address: string;
  close: () => void;
}

export interface FakeScheduler extends FakeServer {
  complaints: string[];
  /** Changes of the case that nobody has asked for yet. */
  left: () => string[];
}

async function serve(listener: RequestListener): Promise<FakeServer> {
  const server = createServer(listener);
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const address = server.address();
  if (address === null || typeof address === 'string') throw new Error('the server has no port');
  const close = () => {
    server.closeAllConnections();
    server.close();
  };
  return { address: `http://127.0.0.1:${address.port}`, close };
}

async function bodyOf(request: IncomingMessage): Promise<unknown> {
  let text = '';
  for await (const chunk of request) text += String(chunk);
  return text === '' ? undefined : JSON.parse(text);
}

function send(response: ServerResponse, { status, headers, body }: Answer): void {
  const isText = typeof body === 'string';
  response.writeHead(status, { 'content-type': isText ? 'text/plain' : 'application/json', ...headers });
  response.end(isText ? body : JSON.stringify(body));
}

/** `changed` is told of each change that was asked for, for what it does to the containers. */
export async function fakeScheduler(
  contract: readonly Exchange[],
  name: string,
  changed: (change: string) => void = () => undefined,
): Promise<FakeScheduler> {
  const exchanges = contract.filter((each) => each.case === name);
  if (exchanges.length === 0) throw new Error(`no case ${name}`);
  const answers = new FakeAnswers(exchanges);
  const server = await serve((request, response) => {
    const { method = '', url = '', headers } = request;
    void bodyOf(request).then((body) => {
      const before = answers.left().length;
      const answer = answers.answer(method, url, headers, body);
      if (answers.left().length < before) changed(`${method} ${url}`);
      send(response, answer);
    });
  });
  return { ...server, complaints: answers.complaints, left: () => answers.left() };
}

/** One that takes every request and says nothing. */
export function silentScheduler(): Promise<FakeServer> {
  return serve(() => undefined);
}

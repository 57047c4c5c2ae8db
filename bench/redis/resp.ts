import { once } from 'node:events';
import { connect, type Socket } from 'node:net';

/** A small client of Redis' protocol (RESP 2): what the demo and the benches need, so that nothing hides a retry. */
export type Reply = string | number | null | Buffer | Reply[];

export class ReplyError extends Error {
  override readonly name = 'ReplyError';
}

/** The connection is gone; whether the last commands were carried out is not known. */
export class ConnectionLost extends Error {
  override readonly name = 'ConnectionLost';
}

interface Waiter {
  resolve(reply: Reply): void;
  reject(error: Error): void;
}

const CONNECT_LIMIT_MS = 60_000;
const PENDING_LIMIT = 100_000;

export class RespClient {
  readonly #socket: Socket;
  #waiters: Waiter[] = [];
  #answered = 0;
  #received: Buffer = Buffer.alloc(0);
  #ended: Error | undefined;

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.setNoDelay(true);
    socket.on('data', (chunk) => this.#take(chunk));
    socket.on('error', (error) => this.#end(new ConnectionLost(error.message)));
    socket.on('close', () => this.#end(new ConnectionLost('the connection was closed')));
  }

  /** The limit covers a Frontman that accepts and lets the connection wait. */
  static async connect(host: string, port: number): Promise<RespClient> {
    const socket = connect({ host, port });
    try {
      await once(socket, 'connect', { signal: AbortSignal.timeout(CONNECT_LIMIT_MS) });
    } catch (thrown) {
      socket.destroy();
      throw new ConnectionLost(thrown instanceof Error ? thrown.message : String(thrown));
    }
    return new RespClient(socket);
  }

  command(...args: readonly (string | Buffer)[]): Promise<Reply> {
    const { promise, resolve, reject } = Promise.withResolvers<Reply>();
    if (this.#ended !== undefined) reject(this.#ended);
    else if (this.#waiters.length - this.#answered >= PENDING_LIMIT) reject(new Error('too many commands at once'));
    else {
      this.#waiters.push({ resolve, reject });
      this.#socket.cork();
      this.#socket.write(`*${args.length}\r\n`);
      for (const arg of args) {
        this.#socket.write(`$${Buffer.byteLength(arg)}\r\n`);
        this.#socket.write(arg);
        this.#socket.write('\r\n');
      }
      this.#socket.uncork();
    }
    return promise;
  }

  /** Resolves when what was written so far has left, so that a pipeline does not pile up in memory. */
  async drained(): Promise<void> {
    if (this.#socket.writableNeedDrain && this.#ended === undefined) {
      await Promise.race([once(this.#socket, 'drain'), once(this.#socket, 'close')]);
    }
  }

  close(): void {
    this.#end(new ConnectionLost('closed by the client'));
    this.#socket.destroy();
  }

  #end(error: Error): void {
    if (this.#ended !== undefined) return;
    this.#ended = error;
    for (const waiter of this.#waiters.slice(this.#answered)) waiter.reject(error);
    this.#waiters = [];
    this.#answered = 0;
  }

  #take(chunk: Buffer): void {
    this.#received = this.#received.length === 0 ? chunk : Buffer.concat([this.#received, chunk]);
    let at = 0;
    for (;;) {
      const parsed = parseReply(this.#received, at);
      if (parsed === undefined) break;
      at = parsed.next;
      const waiter = this.#waiters[this.#answered];
      if (waiter === undefined) break;
      this.#answered += 1;
      if (parsed.reply instanceof ReplyError) waiter.reject(parsed.reply);
      else waiter.resolve(parsed.reply);
    }
    this.#received = this.#received.subarray(at);
    if (this.#answered > 1024 || this.#answered === this.#waiters.length) {
      this.#waiters = this.#waiters.slice(this.#answered);
      this.#answered = 0;
    }
  }
}

interface Parsed {
  reply: Reply | ReplyError;
  next: number;
}

/** One reply from `at` on, or undefined while it is not complete. */
export function parseReply(bytes: Buffer, at: number): Parsed | undefined {
  const end = bytes.indexOf('\r\n', at);
  if (end < 0) return undefined;
  const rest = bytes.toString('utf8', at + 1, end);
  const next = end + 2;
  switch (String.fromCharCode(bytes[at] ?? 0)) {
    case '+':
      return { reply: rest, next };
    case '-':
      return { reply: new ReplyError(rest), next };
    case ':':
      return { reply: Number(rest), next };
    case '$':
      return parseBulk(bytes, next, Number(rest));
    case '*':
      return parseArray(bytes, next, Number(rest));
    default:
      throw new Error(`not a reply: ${rest.slice(0, 100)}`);
  }
}

function parseBulk(bytes: Buffer, from: number, length: number): Parsed | undefined {
  if (length < 0) return { reply: null, next: from };
  if (bytes.length < from + length + 2) return undefined;
  return { reply: Buffer.from(bytes.subarray(from, from + length)), next: from + length + 2 };
}

function parseArray(bytes: Buffer, from: number, length: number): Parsed | undefined {
  if (length < 0) return { reply: null, next: from };
  const replies: Reply[] = [];
  let next = from;
  for (let index = 0; index < length; index += 1) {
    const item = parseReply(bytes, next);
    if (item === undefined) return undefined;
    if (item.reply instanceof ReplyError) return { reply: item.reply, next: item.next };
    replies.push(item.reply);
    next = item.next;
  }
  return { reply: replies, next };
}

import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { z } from 'zod';
import type { Host } from '#lab/host.ts';
import type { EngineName } from '#src/drivers/contract.ts';
import { errorReportSchema, UmsError } from '#src/telemetry/errors.ts';

const COMMAND = '/opt/ums/app/test/e2e/support/driver-command.ts';
const NODE = '/opt/ums/node/bin/node';
const CALL_LIMIT_MS = 120_000;

const answerSchema = z.union([z.object({ value: z.unknown() }), z.object({ error: errorReportSchema })]);

/** One process inside a host with one driver, as one life of an agent: driver-command.ts says how it is spoken to. */
export class DriverProcess {
  readonly #who: string;
  readonly #child: ChildProcess;
  readonly #input: NodeJS.WritableStream;
  readonly #answers: AsyncIterator<string>;
  readonly #exited: Promise<unknown>;

  constructor(host: Host, engine: EngineName) {
    this.#who = `driver ${engine} on ${host.name}`;
    this.#child = host.spawn(NODE, ['--disable-warning=ExperimentalWarning', COMMAND, engine], {
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    this.#exited = once(this.#child, 'exit');
    const { stdin, stdout } = this.#child;
    if (stdin === null || stdout === null) throw new Error(`${this.#who} has no input or no output`);
    // One that has ended says so by having no answer.
    stdin.on('error', () => undefined);
    this.#input = stdin;
    this.#answers = createInterface({ input: stdout })[Symbol.asyncIterator]();
  }

  get hasEnded(): boolean {
    return this.#child.exitCode !== null || this.#child.signalCode !== null;
  }

  /** What the method returned; throws what it threw. */
  async ask(method: string, args: readonly unknown[]): Promise<unknown> {
    const line = await this.#within(`answer ${method}`, async () => {
      this.#input.write(`${JSON.stringify({ method, args })}\n`);
      return await this.#answers.next();
    });
    if (line.done === true) throw new Error(`${this.#who} ended without an answer to ${method}`);
    const answer = answerSchema.parse(JSON.parse(line.value));
    if ('error' in answer) throw UmsError.fromReport(answer.error);
    return answer.value;
  }

  /** As an agent is killed. */
  async die(): Promise<void> {
    this.#input.write(`${JSON.stringify({ method: 'die', args: [] })}\n`);
    await this.#within('die', () => this.#exited);
  }

  /** It ends by itself when what it has begun is done. */
  async end(): Promise<void> {
    this.#input.end();
    await this.#within('end', () => this.#exited);
    if (this.#child.exitCode !== 0) throw new Error(`${this.#who} ended with ${this.#child.exitCode}`);
  }

  async #within<T>(what: string, work: () => Promise<T>): Promise<T> {
    const limit = setTimeout(() => this.#child.kill(), CALL_LIMIT_MS);
    try {
      return await work();
    } catch (error) {
      throw new Error(`${this.#who} did not ${what}`, { cause: error });
    } finally {
      clearTimeout(limit);
    }
  }
}

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { createInterface, type Interface } from 'node:readline';
import type { Readable, Writable } from 'node:stream';
import type { z } from 'zod';
import type { Host } from '#lab/host.ts';
import type { Lab } from '#lab/lab.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { answerSchemas, envelopeSchema, type Request } from './protocol.ts';

const ANSWER_LIMIT_MS = 120_000;
const NODE = '/opt/ums/node/bin/node';
const PROGRAM_THERE = '/opt/ums/app/bench/redis/client-process.ts';
const PROGRAM = join(import.meta.dirname, 'client-process.ts');

/** A client process at the lab's outside place: on no test host, with an address of its own on the same network. */
export class OutsideClient {
  readonly #child: ChildProcess;
  readonly #input: Writable;
  readonly #lines: Interface;
  readonly #gone: Promise<undefined>;
  #stderr = '';

  private constructor(child: ChildProcess, input: Writable, output: Readable) {
    this.#child = child;
    this.#input = input;
    this.#lines = createInterface({ input: output });
    this.#gone = once(child, 'exit').then(() => undefined);
    child.stderr?.on('data', (chunk: Buffer) => {
      this.#stderr = (this.#stderr + chunk.toString('utf8')).slice(-4000);
    });
  }

  static start(lab: Lab, host: string, port: number): OutsideClient {
    const wire = lab.wirePid;
    if (wire === undefined) throw new UmsError('UMS_E_LAB', { message: 'The lab is not up.', fault: 'user' });
    const args = [`--net=/proc/${wire}/ns/net`, '--', process.execPath, PROGRAM, host, String(port)];
    const child = spawn('nsenter', args, { stdio: ['pipe', 'pipe', 'pipe'] });
    if (child.stdin === null || child.stdout === null) throw new Error('a child without pipes');
    return new OutsideClient(child, child.stdin, child.stdout);
  }

  /** On a host of the lab itself, which reaches what only that one does. */
  static on(host: Host, address: string, port: number): OutsideClient {
    const child = host.spawn(NODE, ['--disable-warning=ExperimentalWarning', PROGRAM_THERE, address, String(port)]);
    if (child.stdin === null || child.stdout === null) throw new Error('a child without pipes');
    return new OutsideClient(child, child.stdin, child.stdout);
  }

  fill = (bytes: number) => this.#ask({ do: 'fill', bytes }, answerSchemas.fill);
  digest = (keys: number) => this.#ask({ do: 'digest', keys }, answerSchemas.digest);
  identity = () => this.#ask({ do: 'identity' }, answerSchemas.identity);
  startWriting = (perSecond: number) => this.#ask({ do: 'start', perSecond }, answerSchemas.start);
  gap = (from: number, to: number) => this.#ask({ do: 'gap', from, to }, answerSchemas.gap);
  acknowledged = async () => (await this.#ask({ do: 'acknowledged' }, answerSchemas.acknowledged)).acknowledged;
  lost = () => this.#ask({ do: 'lost' }, answerSchemas.lost);
  stopWriting = () => this.#ask({ do: 'stop' }, answerSchemas.stop);

  async close(): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    this.#child.kill('SIGKILL');
    await this.#gone;
  }

  async #ask<T>(request: Request, schema: z.ZodType<T>): Promise<T> {
    const line = once(this.#lines, 'line', { signal: AbortSignal.timeout(ANSWER_LIMIT_MS) });
    this.#input.write(`${JSON.stringify(request)}\n`);
    const answered: unknown[] | undefined = await Promise.race([line, this.#gone]);
    if (answered === undefined) throw this.#failure(request.do, 'the client process ended');
    const envelope = envelopeSchema.parse(JSON.parse(String(answered[0])));
    if ('failed' in envelope) throw this.#failure(request.do, envelope.failed);
    return schema.parse(envelope.answer);
  }

  #failure(what: string, why: string): UmsError {
    return new UmsError('UMS_E_LAB', {
      message: `The client could not ${what}: ${why}`,
      fault: 'service',
      mend: 'Look at the agents: ./ums lab logs alpha; ./ums lab logs beta',
      ...(this.#stderr === '' ? {} : { detail: this.#stderr }),
    });
  }
}

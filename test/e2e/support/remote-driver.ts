import assert from 'node:assert/strict';
import { createInterface } from 'node:readline';
import { z } from 'zod';
import type { Host } from '#lab/host.ts';
import type { ConformanceDriver } from '#src/drivers/conformance.ts';
import type { EngineName, RemoveOptions } from '#src/drivers/contract.ts';
import { engineSchema, type Specification, specificationSchema } from '#src/drivers/specification.ts';
import { errorReportSchema, UmsError } from '#src/telemetry/errors.ts';

/** A driver that works inside a host of the lab: every call is a program run there, as after a restart of the agent. */
const COMMAND = '/opt/ums/app/test/e2e/support/driver-command.ts';
const NODE = '/opt/ums/node/bin/node';
const CALL_LIMIT_MS = 120_000;

const answerSchema = z.union([
  z.object({ prepared: z.literal(true) }),
  z.object({ value: z.unknown() }),
  z.object({ error: errorReportSchema }),
]);
const stateSchema = z.enum(['absent', 'created', 'running', 'frozen', 'restored', 'stopped']);
const summarySchema = z.object({
  engine: engineSchema,
  id: z.string(),
  name: z.string(),
  state: stateSchema,
  image: z.string(),
  pid: z.int(),
  ports: z.array(z.string()),
  created_at: z.string(),
});
const treesSchema = z.array(z.object({ id: z.string(), path: z.string(), kind: z.enum(['plain', 'overlay-upper']) }));
const descriptionSchema = z.object({
  summary: summarySchema,
  specification: specificationSchema,
  handle: z.string(),
  trees: treesSchema,
  losses: z.array(z.string()),
});
const createdSchema = z.object({ handle: z.string(), id: z.string(), trees: treesSchema });
const findingsSchema = z.array(
  z.object({
    severity: z.enum(['error', 'warning', 'info']),
    id: z.string(),
    what: z.string(),
    why: z.string(),
    mend: z.string(),
  }),
);

export class RemoteDriver implements ConformanceDriver {
  readonly #host: Host;
  readonly #engine: EngineName;

  constructor(host: Host, engine: EngineName) {
    this.#host = host;
    this.#engine = engine;
  }

  async #call<T>(schema: z.ZodType<T>, method: string, ...args: unknown[]): Promise<T> {
    const words = ['--disable-warning=ExperimentalWarning', COMMAND, this.#engine, method, JSON.stringify(args)];
    const { stdout } = await this.#host.exec(NODE, words, { timeout_ms: CALL_LIMIT_MS });
    const answer = answerSchema.parse(JSON.parse(stdout.trim().split('\n').at(-1) ?? ''));
    if ('error' in answer) throw UmsError.fromReport(answer.error);
    return schema.parse('value' in answer ? answer.value : undefined);
  }

  /** Prepares the restore and lets it go on when `between` is done, both in one process, as an agent does. */
  async preparedRestore(handle: string, request: object, between: () => Promise<void>): Promise<void> {
    const words = ['--disable-warning=ExperimentalWarning', COMMAND, this.#engine, 'preparedRestore'];
    const child = this.#host.spawn(NODE, [...words, JSON.stringify([handle, request])], {
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    assert.ok(child.stdout !== null && child.stdin !== null);
    const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
    const answer = async () => answerSchema.parse(JSON.parse(z.string().parse((await lines.next()).value)));
    const first = await answer();
    if ('error' in first) throw UmsError.fromReport(first.error);
    try {
      await between();
      child.stdin.write('go\n');
    } finally {
      // Without its line it ends there.
      child.stdin.end();
    }
    const last = await answer();
    if ('error' in last) throw UmsError.fromReport(last.error);
  }

  async #do(method: string, ...args: unknown[]): Promise<void> {
    await this.#call(z.null(), method, ...args);
  }

  list = () => this.#call(z.array(summarySchema), 'list');
  describe = (reference: string) => this.#call(descriptionSchema, 'describe', reference);
  state = (handle: string) => this.#call(stateSchema, 'state', handle);
  processes = (handle: string) => this.#call(z.array(z.int()), 'processes', handle);
  canCreate = (specification: Specification) => this.#call(findingsSchema, 'canCreate', specification);
  create = (specification: Specification, key: string) => this.#call(createdSchema, 'create', specification, key);
  findCreated = async (specification: Specification, key: string) =>
    (await this.#call(createdSchema.nullable(), 'findCreated', specification, key)) ?? undefined;
  freeze = (handle: string) => this.#do('freeze', handle);
  thaw = (handle: string) => this.#do('thaw', handle);
  checkpoint = (handle: string, request: object) => this.#do('checkpoint', handle, request);
  prepareCheckpoint = (handle: string, request: object) => this.#do('prepareCheckpoint', handle, request);
  preparedCheckpoint = (handle: string, request: object) => this.#do('preparedCheckpoint', handle, request);
  prepareRestore = (handle: string, request: object) => this.#do('prepareRestore', handle, request);
  throttle = (handle: string, share: number | undefined) =>
    this.#call(z.boolean(), 'throttle', handle, ...(share === undefined ? [] : [share]));
  restore = (handle: string, request: object) => this.#do('restore', handle, request);
  resume = (handle: string) => this.#do('resume', handle);
  remove = (handle: string, options: RemoveOptions) => this.#do('remove', handle, options);
  discard = (handle: string) => this.#do('discard', handle);
  settle = (handle: string) => this.#do('settle', handle);
  adopt = (handle: string) => this.#do('adopt', handle);
  restartFresh = (handle: string) => this.#do('restartFresh', handle);
  stop = (handle: string) => this.#do('stop', handle);
  start = (handle: string) => this.#do('start', handle);
  hasImage = (specification: Specification) => this.#call(z.boolean(), 'hasImage', specification);
  exportImage = (specification: Specification, path: string) => this.#do('exportImage', specification, path);
  importImage = (specification: Specification, path: string) => this.#do('importImage', specification, path);
}

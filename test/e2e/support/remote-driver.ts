import { z } from 'zod';
import type { Host } from '#lab/host.ts';
import type { ConformanceDriver } from '#src/drivers/conformance.ts';
import type { EngineName, RemoveOptions } from '#src/drivers/contract.ts';
import { engineSchema, type Specification, specificationSchema } from '#src/drivers/specification.ts';
import { DriverProcess } from './driver-process.ts';

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

/**
 * A driver that works inside a host of the lab. By itself each call comes from a process of its own there, as if the agent had
 * been restarted before: what a driver must know has to be written down, or asked of its engine. One that is `kept` is that
 * of one agent, until `close`.
 */
export class RemoteDriver implements ConformanceDriver {
  readonly #host: Host;
  readonly #engine: EngineName;
  readonly #isKept: boolean;
  #process: DriverProcess | undefined;

  constructor(host: Host, engine: EngineName, options: { kept?: boolean } = {}) {
    this.#host = host;
    this.#engine = engine;
    this.#isKept = options.kept ?? false;
  }

  /** What is done within it is done by one agent. */
  async #asOne<T>(work: (agent: DriverProcess) => Promise<T>): Promise<T> {
    const agent = (this.#process ??= new DriverProcess(this.#host, this.#engine));
    try {
      return await work(agent);
    } finally {
      if (!this.#isKept || agent.hasEnded) await this.close();
    }
  }

  /** The agent ends, and what it has begun is done. */
  async close(): Promise<void> {
    const ending = this.#process;
    this.#process = undefined;
    await ending?.end();
  }

  async #call<T>(schema: z.ZodType<T>, method: string, ...args: unknown[]): Promise<T> {
    return schema.parse(await this.#asOne((agent) => agent.ask(method, args)));
  }

  /** Prepares it, and the agent is killed. */
  async #abandon(method: string, args: unknown[]): Promise<void> {
    await this.#asOne(async (agent) => {
      await agent.ask(method, args);
      await agent.die();
    });
  }

  /** Prepares the dump, freezes and dumps. */
  async preparedCheckpoint(handle: string, request: object): Promise<void> {
    await this.#asOne(async (agent) => {
      await agent.ask('prepareCheckpoint', [handle, request]);
      await agent.ask('freeze', [handle]);
      await agent.ask('checkpoint', [handle, request]);
    });
  }

  /** Prepares the restore, and restores when `between` is done. */
  async preparedRestore(handle: string, request: object, between: () => Promise<void>): Promise<void> {
    await this.#asOne(async (agent) => {
      await agent.ask('prepareRestore', [handle, request]);
      await between();
      await agent.ask('restore', [handle, request]);
    });
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
  prepareCheckpoint = (handle: string, request: object) => this.#abandon('prepareCheckpoint', [handle, request]);
  prepareRestore = (handle: string, request: object) => this.#abandon('prepareRestore', [handle, request]);
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

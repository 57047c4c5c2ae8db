import { createReadStream, createWriteStream } from 'node:fs';
import { createInterface } from 'node:readline';
import { z } from 'zod';
import type { Driver, DriverOptions, EngineName } from '#src/drivers/contract.ts';
import { engineSchema, specificationSchema } from '#src/drivers/specification.ts';
import { toUmsError } from '#src/telemetry/errors.ts';

/**
 * A driver inside a host, as an agent has it: `node driver-command.ts ENGINE`. Each line of input is a call, {"method": …,
 * "args": […]}, and is answered by a line, {"value": …} or {"error": …}, before the next is looked at. It ends with its
 * input, when what it has begun is done; `die` ends it as an agent is killed: at once, with what it has prepared.
 */
const engineName = engineSchema.parse(process.argv[2]);

/** Only what is asked for is loaded: loading all of them takes longer than most calls. Those of `x-…` are in no registry. */
const DRIVERS: Partial<Record<EngineName, () => Promise<(options: DriverOptions) => Driver>>> = {
  podman: async () => (await import('#src/drivers/podman/index.ts')).createPodmanDriver,
  docker: async () => (await import('#src/drivers/docker/index.ts')).createDockerDriver,
  containerd: async () => (await import('#src/drivers/containerd/index.ts')).createContainerdDriver,
  kubernetes: async () => (await import('#src/drivers/kubernetes/index.ts')).createKubernetesDriver,
  runc: async () => (await import('#src/drivers/runc/index.ts')).createRuncDriver,
  'x-minibox': async () => (await import('./minibox/index.ts')).createMiniboxDriver,
};
const create = await DRIVERS[engineName]?.();
if (create === undefined) throw new Error(`no driver ${engineName}`);
const driver = create({ stateDir: '/var/lib/ums-conformance', runDir: '/run/ums-conformance' });
const callSchema = z.object({ method: z.string(), args: z.array(z.unknown()) });
const never = new AbortController().signal;
const restore = z.object({
  imagesDir: z.string(),
  workDir: z.string(),
  timeout_ms: z.number(),
  lazy: z.literal(true).exactOptional(),
});
const checkpoint = restore.extend({
  pageServer: z.object({ address: z.string(), port: z.number() }).exactOptional(),
});
const names = z.array(z.string()).exactOptional();
const removal = z.object({ volumes: z.boolean(), keep: names, described: names });

type Method = (args: readonly unknown[]) => Promise<unknown>;
const text = (value: unknown): string => z.string().parse(value);
const specification = (value: unknown) => specificationSchema.parse(value);

const METHODS: Record<string, Method> = {
  list: () => driver.list(),
  describe: ([reference]) => driver.describe(text(reference)),
  state: ([handle]) => driver.state(text(handle)),
  processes: ([handle]) => driver.processes(text(handle)),
  canCreate: ([what]) => driver.canCreate(specification(what)),
  create: ([what, key]) => driver.create(specification(what), text(key)),
  findCreated: ([what, key]) => driver.findCreated(specification(what), text(key)),
  freeze: ([handle]) => driver.freeze(text(handle)),
  thaw: ([handle]) => driver.thaw(text(handle)),
  checkpoint: ([handle, request]) => driver.checkpoint(text(handle), checkpoint.parse(request)),
  prepareCheckpoint: ([handle, request]) => driver.prepareCheckpoint(text(handle), checkpoint.parse(request)),
  prepareRestore: ([handle, request]) => driver.prepareRestore(text(handle), restore.parse(request)),
  throttle: ([handle, share]) => driver.throttle(text(handle), z.number().nullish().parse(share) ?? undefined),
  restore: ([handle, request]) => driver.restore(text(handle), restore.parse(request)),
  resume: ([handle]) => driver.resume(text(handle)),
  remove: ([handle, options]) => driver.remove(text(handle), removal.parse(options)),
  discard: ([handle]) => driver.discard(text(handle)),
  settle: ([handle]) => driver.settle(text(handle)),
  adopt: ([handle]) => driver.adopt(text(handle)),
  restartFresh: ([handle]) => driver.restartFresh(text(handle)),
  stop: ([handle]) => driver.stop(text(handle)),
  start: ([handle]) => driver.start(text(handle)),
  hasImage: ([what]) => driver.hasImage(specification(what)),
  exportImage: ([what, path]) => driver.exportImage(specification(what), createWriteStream(text(path)), never),
  importImage: ([what, path]) => driver.importImage(specification(what), createReadStream(text(path)), never),
  die: () => process.exit(0),
};

async function answer(line: string): Promise<object> {
  try {
    const { method, args } = callSchema.parse(JSON.parse(line));
    const call = METHODS[method];
    if (call === undefined) throw new Error(`no method ${method}`);
    return { value: (await call(args)) ?? null };
  } catch (error) {
    return { error: toUmsError(error).toReport() };
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  process.stdout.write(`${JSON.stringify(await answer(line))}\n`);
}

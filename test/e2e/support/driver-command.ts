import { once } from 'node:events';
import { createReadStream, createWriteStream } from 'node:fs';
import { z } from 'zod';
import type { Driver, DriverOptions, EngineName } from '#src/drivers/contract.ts';
import { engineSchema, specificationSchema } from '#src/drivers/specification.ts';
import { toUmsError } from '#src/telemetry/errors.ts';

/**
 * One call of a driver, inside a host: `node driver-command.ts ENGINE METHOD [JSON]`. The answer is one line of JSON,
 * {"value": …} or {"error": …}. What is prepared ends with its agent, or goes on without it: `preparedCheckpoint` and
 * `preparedRestore` are both calls in one process; the second says `{"prepared": true}` and waits for a line of input.
 */
const [engineName, method, argumentText] = z
  .tuple([engineSchema, z.string(), z.string().default('[]')])
  .parse(process.argv.slice(2));

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
const args = z.array(z.unknown()).parse(JSON.parse(argumentText));
const text = (at: number): string => z.string().parse(args[at]);
const specification = () => specificationSchema.parse(args[0]);
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

const METHODS: Record<string, () => Promise<unknown>> = {
  list: () => driver.list(),
  describe: () => driver.describe(text(0)),
  state: () => driver.state(text(0)),
  processes: () => driver.processes(text(0)),
  canCreate: () => driver.canCreate(specification()),
  create: () => driver.create(specification(), text(1)),
  findCreated: () => driver.findCreated(specification(), text(1)),
  freeze: () => driver.freeze(text(0)),
  thaw: () => driver.thaw(text(0)),
  checkpoint: () => driver.checkpoint(text(0), checkpoint.parse(args[1])),
  prepareCheckpoint: () => driver.prepareCheckpoint(text(0), checkpoint.parse(args[1])),
  prepareRestore: () => driver.prepareRestore(text(0), restore.parse(args[1])),
  throttle: () => driver.throttle(text(0), z.number().nullish().parse(args[1]) ?? undefined),
  preparedCheckpoint: async () => {
    const request = checkpoint.parse(args[1]);
    await driver.prepareCheckpoint(text(0), request);
    await driver.freeze(text(0));
    await driver.checkpoint(text(0), request);
  },
  preparedRestore: async () => {
    const request = restore.parse(args[1]);
    await driver.prepareRestore(text(0), request);
    process.stdout.write('{"prepared":true}\n');
    await once(process.stdin, 'data');
    process.stdin.destroy();
    await driver.restore(text(0), request);
  },
  restore: () => driver.restore(text(0), restore.parse(args[1])),
  resume: () => driver.resume(text(0)),
  remove: () => driver.remove(text(0), removal.parse(args[1])),
  discard: () => driver.discard(text(0)),
  settle: () => driver.settle(text(0)),
  adopt: () => driver.adopt(text(0)),
  restartFresh: () => driver.restartFresh(text(0)),
  stop: () => driver.stop(text(0)),
  start: () => driver.start(text(0)),
  hasImage: () => driver.hasImage(specification()),
  exportImage: () => driver.exportImage(specification(), createWriteStream(text(1)), never),
  importImage: () => driver.importImage(specification(), createReadStream(text(1)), never),
};

try {
  const call = METHODS[method];
  if (call === undefined) throw new Error(`no method ${method}`);
  process.stdout.write(`${JSON.stringify({ value: (await call()) ?? null })}\n`);
  // As an agent that is killed: what it has prepared does not keep it.
  if (method === 'prepareCheckpoint' || method === 'prepareRestore') process.exit(0);
} catch (error) {
  process.stdout.write(`${JSON.stringify({ error: toUmsError(error).toReport() })}\n`);
}

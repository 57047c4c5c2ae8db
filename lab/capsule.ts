import { createReadStream } from 'node:fs';
import { join, resolve } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { once } from 'node:events';
import { AGENT_NODE_FLAGS } from '#src/agent/node-flags.ts';
import { buildCapsule, KEY_LABEL } from '#src/approaches/container-level/build.ts';
import { CAPSULE_IMAGE } from '#src/approaches/container-level/layout.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import type { Host, ImageStore } from './host.ts';
import { withLock } from './lock.ts';
import { cacheDir } from './names.ts';

/** The capsule's image on a test host: the one that `ums image build capsule` makes of this checkout. */
export const CAPSULE = 'capsule';
const CHECKOUT = resolve(import.meta.dirname, '..');
const LOCK_LIMIT_S = 900;

/** Loads it, unless the engine has the same one. Everybody's builds wait for each other. */
export async function loadCapsule(host: Host, engine: ImageStore, namespace: string): Promise<string> {
  const lock = join(cacheDir(), '.capsule.lock');
  const built = await withLock(lock, LOCK_LIMIT_S, () =>
    buildCapsule(CHECKOUT, cacheDir(), AGENT_NODE_FLAGS, () => undefined),
  );
  const image = engine === 'docker' ? CAPSULE_IMAGE : `localhost/${CAPSULE_IMAGE}`;
  if (engine === 'podman' || engine === 'docker') {
    const format = `{{index .Config.Labels "${KEY_LABEL}"}}`;
    const inspect = ['image', 'inspect', '--format', format, image];
    const there = await host.exec(engine, inspect, { okExitCodes: [0, 1, 125] });
    if (there.exitCode !== 0 || there.stdout.trim() !== built.key) await feed(host, engine, ['load'], built.archive);
    return image;
  }
  const ctr = ['-n', namespace, 'images'];
  const same = ['ls', '-q', `name==${image},labels."${KEY_LABEL}"==${built.key}`];
  if ((await host.exec('ctr', [...ctr, ...same])).stdout.trim() === image) return image;
  await feed(host, 'ctr', [...ctr, 'import', '-'], built.archive);
  // containerd takes a name without a registry for one of Docker's.
  await host.exec('ctr', [...ctr, 'tag', '--force', `docker.io/library/${CAPSULE_IMAGE}`, image]);
  await host.exec('ctr', [...ctr, 'label', image, `${KEY_LABEL}=${built.key}`]);
  return image;
}

/** Runs a program on the host with a file of the machine as its input. */
async function feed(host: Host, program: string, args: readonly string[], file: string): Promise<void> {
  const child = host.spawn(program, args, { stdio: ['pipe', 'ignore', 'pipe'] });
  let said = '';
  child.stderr?.on('data', (chunk: Buffer) => {
    said = `${said}${chunk.toString()}`.slice(-4000);
  });
  const ended = once(child, 'exit');
  if (child.stdin === null) throw new Error('the child has no standard input');
  // A program may have what it needs before the archive's padding ends; whether it had is what its status says.
  const sent = pipeline(createReadStream(file), child.stdin).catch((error: unknown) => error);
  const [code] = await ended;
  const problem = await sent;
  if (code === 0 && (problem === undefined || isBrokenPipe(problem))) return;
  throw new UmsError('UMS_E_LAB', {
    message: `${program} on test host ${host.name} could not load the capsule`,
    fault: 'ums',
    detail: said,
  });
}

function isBrokenPipe(error: unknown): boolean {
  return error instanceof Error && 'code' in error && error.code === 'EPIPE';
}

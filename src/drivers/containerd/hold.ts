import { fileURLToPath } from 'node:url';
import { UmsError } from '#src/telemetry/errors.ts';
import { z } from 'zod';
import type { ContainerdClient } from './client.ts';
import type { Any, Container } from './schema.ts';

/** Under this name a held container's configuration holds the one that it had, to the byte; runtimes pass over it. */
const HELD = 'ums.held';
const HOOK = fileURLToPath(new URL('held.sh', import.meta.url));
const looseSchema = z.looseObject({
  [HELD]: z.string().optional(),
  hooks: z.looseObject({ createRuntime: z.array(z.unknown()).nullish() }).nullish(),
});

/**
 * Keeps containerd from starting the container, whoever asks for it: a person, its restart monitor, or anybody after a boot.
 * containerd has no such lock, and a service that is away must not begin anew from its files. What a start reads is the
 * configuration in the container's record, so that gets a hook that fails; the processes that run have theirs already.
 */
export async function hold(client: ContainerdClient, id: string): Promise<void> {
  const spec = (await client.container(id))?.spec ?? undefined;
  if (spec !== undefined && beneath(spec) === undefined)
    await client.updateContainer({ id, spec: heldSpec(spec) }, ['spec']);
}

export async function release(client: ContainerdClient, id: string): Promise<void> {
  const held = (await client.container(id))?.spec ?? undefined;
  const spec = held === undefined ? undefined : beneath(held);
  if (spec !== undefined) await client.updateContainer({ id, spec }, ['spec']);
}

export function isHeld({ spec }: Container): boolean {
  return spec !== null && spec !== undefined && beneath(spec) !== undefined;
}

/** The container's own configuration, held or not. */
export function specOf({ id, spec }: Pick<Container, 'id' | 'spec'>): Any {
  if (spec !== null && spec !== undefined) return beneath(spec) ?? spec;
  throw new UmsError('UMS_E_SPECIFICATION', {
    message: `${id} cannot be moved: its record has no OCI configuration`,
    fault: 'user',
    mend: 'Only containers that were made to run can be moved.',
  });
}

/** What was there before it was held; undefined where it is not. */
function beneath({ type_url, value }: Any): Any | undefined {
  const text = Buffer.from(value).toString('utf8');
  if (!text.includes(HELD)) return undefined;
  const { [HELD]: own } = looseSchema.parse(JSON.parse(text));
  return own === undefined ? undefined : { type_url, value: Buffer.from(own, 'base64') };
}

export function heldSpec({ type_url, value }: Any): Any {
  const config = looseSchema.parse(JSON.parse(Buffer.from(value).toString('utf8')));
  const createRuntime = [{ path: HOOK }, ...(config.hooks?.createRuntime ?? [])];
  const own = Buffer.from(value).toString('base64');
  const held = { ...config, hooks: { ...config.hooks, createRuntime }, [HELD]: own };
  return { type_url, value: Buffer.from(JSON.stringify(held), 'utf8') };
}

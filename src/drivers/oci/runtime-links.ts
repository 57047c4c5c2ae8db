import { mkdir, rm, symlink } from 'node:fs/promises';
import { join } from 'node:path';
import { entriesOf, exists } from './files.ts';
import type { RestoreArea } from './restore-area.ts';

/** Where engine-runtime.sh looks for the containers that it is to restore: links to their restore areas, by id. */
export const RUNTIME_LINKS = '/run/ums-runtime';

export async function linkRuntime(area: RestoreArea, id: string): Promise<void> {
  await unlinkRuntime(id);
  await mkdir(RUNTIME_LINKS, { recursive: true, mode: 0o755 });
  await symlink(area.directory(id), join(RUNTIME_LINKS, id));
}

/** From now on the container's runtime is nothing but runc. */
export async function unlinkRuntime(id: string): Promise<void> {
  await rm(join(RUNTIME_LINKS, id), { force: true });
}

/** Links whose restore is over, left by an agent that was killed. */
export async function sweepRuntimeLinks(): Promise<void> {
  for (const id of await entriesOf(RUNTIME_LINKS))
    if (!(await exists(join(RUNTIME_LINKS, id, 'id')))) await unlinkRuntime(id);
}

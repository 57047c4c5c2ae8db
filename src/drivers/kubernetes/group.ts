import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { AfterCheckpoint, CheckpointRequest, ServiceState } from '../contract.ts';
import { isFrozen, processesOf, setFrozen, waitUntilUntraced } from '../oci/cgroup.ts';
import type { RuntimeContainer } from '../oci/container.ts';
import { afterDump, dumpFrozen, prepareDump } from '../oci/dump.ts';
import { closeForeign } from '../oci/files-image.ts';
import { entriesOf } from '../oci/files.ts';
import type { RestoreArea } from '../oci/restore-area.ts';
import { freezerSeen } from '../oci/seen.ts';
import { keeperOfSystemV } from './shared.ts';

/**
 * The containers of a pod, in the order of its manifest, as one service. They stop and go on together; each is dumped and
 * restored by itself, with a directory of images of its own.
 */

/** What is not true of one of them is not true of the pod: the state that is furthest behind speaks for all. */
const BEHIND: readonly ServiceState[] = ['absent', 'stopped', 'created', 'restored', 'running', 'frozen'];

export function stateOfAll(states: readonly ServiceState[]): ServiceState {
  return BEHIND.find((state) => states.includes(state)) ?? 'absent';
}

export async function processesIn(container: RuntimeContainer): Promise<number[]> {
  const freezer = await freezerSeen(container);
  return freezer === undefined ? [] : await processesOf(freezer);
}

/** Stops all of them, or lets all go on, by one write each, right after one another. False when not all followed. */
export async function setAllFrozen(
  containers: readonly RuntimeContainer[],
  frozen: boolean,
  limit_ms: number,
): Promise<boolean> {
  const freezers = await Promise.all(containers.map(freezerSeen));
  const known = freezers.filter((freezer) => freezer !== undefined);
  if (known.length === 0 || known.length < freezers.length) return false;
  const followed = await Promise.allSettled(known.map((freezer) => setFrozen(freezer, frozen, limit_ms)));
  return followed.every((one) => one.status === 'fulfilled' && one.value);
}

/** Lets go on what a freeze has stopped, as soon as no CRIU holds any of them; what a restore has made stays as it is. */
export async function thawAll(
  area: RestoreArea,
  containers: readonly RuntimeContainer[],
  limits: { untraced_ms: number; thaw_ms: number },
): Promise<void> {
  const stopped = [];
  for (const container of containers) {
    const freezer = await freezerSeen(container);
    if (freezer === undefined || !(await isFrozen(freezer)) || (await area.exists(container.id))) continue;
    await waitUntilUntraced(await processesOf(freezer), limits.untraced_ms);
    stopped.push(freezer);
  }
  await Promise.all(stopped.map((freezer) => setFrozen(freezer, false, limits.thaw_ms)));
}

/** The part of a request that is one container's: the only one has the directories for itself. */
export async function partOf<T extends { imagesDir: string; workDir: string }>(
  request: T,
  at: number,
  count: number,
): Promise<T> {
  if (count === 1) return request;
  const [imagesDir, workDir] = [join(request.imagesDir, String(at)), join(request.workDir, String(at))];
  await mkdir(imagesDir, { recursive: true, mode: 0o700 });
  await mkdir(workDir, { recursive: true, mode: 0o700 });
  return { ...request, imagesDir, workDir };
}

export async function prepareAll(containers: readonly RuntimeContainer[], request: CheckpointRequest): Promise<void> {
  for (const [at, container] of containers.entries()) {
    const part = await partOf(request, at, containers.length);
    await prepareDump(asOneOf(container, containers.length), part, await processesIn(container));
  }
}

/** One after the other, because each CRIU looks at the network and the System V objects that all of them have in common. */
export async function dumpAll(containers: readonly RuntimeContainer[], request: CheckpointRequest): Promise<void> {
  const groups = await Promise.all(containers.map(processesIn));
  const keeper = keeperOfSystemV(groups);
  const directories: string[] = [];
  for (const [at, container] of containers.entries()) {
    const part = await partOf(request, at, containers.length);
    await dumpFrozen(asOneOf(container, containers.length), part, groups[at] ?? []);
    if (at !== keeper) await dropSystemV(part.imagesDir);
    directories.push(part.imagesDir);
  }
  if (containers.length > 1) await closeForeign(directories);
}

function asOneOf(container: RuntimeContainer, count: number): RuntimeContainer {
  return count === 1 ? container : { ...container, localConnections: true };
}

/** Each dump has all System V objects of the pod, which can be made only once. CRIU takes an absent image for an empty one. */
async function dropSystemV(imagesDir: string): Promise<void> {
  const images = (await entriesOf(imagesDir)).filter((name) => /^ipcns-(?:shm|msg|sem)-\d+\.img$/.test(name));
  for (const name of images) await rm(join(imagesDir, name));
}

export function afterAll(ids: readonly string[]): AfterCheckpoint {
  const each = ids.map(afterDump);
  const ended = Promise.all(each.map((one) => one.ended)).then(() => undefined);
  const holds = Promise.all(each.map((one) => one.holds)).then(() => undefined);
  // A failure is heard by whoever asks for it, and until then it is nobody's.
  for (const promise of [ended, holds]) promise.catch(() => undefined);
  return { ended, holds };
}

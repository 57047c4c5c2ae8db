import { lstat, mkdir, open, readFile, rename, rm, rmdir, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { UmsError } from '#src/telemetry/errors.ts';
import type { CreatedService, Finding } from '../contract.ts';
import { isMissing } from '../oci/cgroup.ts';
import { entriesOf, exists, undoCopies } from '../oci/files.ts';
import { bindFindings, findingOf } from '../oci/findings.ts';
import type { CreateRecords } from '../oci/records.ts';
import { findProgram, RUNC_ROOT } from '../oci/runtime.ts';
import type { Specification } from '../specification.ts';
import { logPath, networkPath, parseConfig, rootfsOf, treesOf } from './describe.ts';
import type { CreateRecord, RuncHandle } from './schema.ts';

/** Lies in a bundle that a migration is making, and names it; gone when the migration is settled. */
const MARK = '.ums-migration';

/** Whether runc has a container of that id: it goes by this directory itself (libcontainer's Create). */
function isKnown(id: string): Promise<boolean> {
  return exists(join(RUNC_ROOT, id));
}

function bundleOf(specification: Specification): { path: string; configText: string } {
  if (specification.bundle !== undefined) return specification.bundle;
  throw new UmsError('UMS_E_SPECIFICATION', { message: `${specification.name} has no bundle`, fault: 'source' });
}

/** What stands against making the bundle here. Creates nothing. */
export async function canCreate(specification: Specification): Promise<Finding[]> {
  if ((await findProgram('runc')) === undefined) {
    return [
      findingOf(
        'error',
        'engine.missing',
        'runc is not installed here',
        'The service is a runc container.',
        'apt install runc',
      ),
    ];
  }
  const { path, configText } = bundleOf(specification);
  const config = parseConfig(configText, path);
  const findings: Finding[] = [];
  if (await isKnown(specification.name)) {
    findings.push(
      findingOf(
        'error',
        'name.taken',
        `A runc container ${specification.name} exists here`,
        'The service keeps its id.',
        `runc delete ${specification.name}, if nobody needs it`,
      ),
    );
  }
  for (const directory of new Set([path, rootfsOf(config, path)])) {
    if (await exists(directory)) {
      findings.push(
        findingOf(
          'error',
          'bundle.taken',
          `${directory} exists here`,
          'The bundle keeps its path, and nothing is overwritten.',
          'Move it away',
        ),
      );
    }
  }
  for (const mount of specification.mounts) if (mount.kind === 'bind') findings.push(...(await bindFindings(mount)));
  const network = networkPath(config);
  if (network !== undefined && !(await exists(network))) {
    findings.push(
      findingOf(
        'error',
        'network.missing',
        `The network namespace ${network} does not exist here`,
        'The service joins it by this path.',
        `Make it first, for instance with ip netns add`,
      ),
    );
  }
  return findings;
}

/** Makes the bundle whole beside its place and moves it there in one step, so that a crash leaves it or nothing. */
export async function createBundle(
  records: CreateRecords<CreateRecord>,
  specification: Specification,
  key: string,
): Promise<CreatedService> {
  const done = await findBundle(records, specification, key);
  if (done !== undefined) return done;
  const { path, configText } = bundleOf(specification);
  const config = parseConfig(configText, path);
  const rootfs = rootfsOf(config, path);
  const record = await plan(specification, path, rootfs);
  await records.write(key, record);
  const draft = draftPath(path, key);
  try {
    await mkdir(draft, { recursive: true, mode: 0o700 });
    await writeDurably(join(draft, 'config.json'), configText);
    await writeFile(join(draft, MARK), key, { mode: 0o600 });
    if (rootfs.startsWith(`${path}/`)) await mkdir(join(draft, rootfs.slice(path.length + 1)), { recursive: true });
    else await mkdir(rootfs, { recursive: true });
    for (const directory of record.copiedDirectories) await mkdir(directory, { recursive: true });
    await rename(draft, path);
  } catch (error) {
    await undoBundle(records, key, record);
    if (error instanceof Error && 'code' in error && (error.code === 'ENOTEMPTY' || error.code === 'EEXIST')) {
      throw taken(path);
    }
    throw error;
  }
  const created = await findBundle(records, specification, key);
  if (created === undefined) throw taken(path);
  return created;
}

function draftPath(bundle: string, key: string): string {
  return join(dirname(bundle), `.${key}.ums-draft`);
}

async function writeDurably(path: string, text: string): Promise<void> {
  const file = await open(path, 'w', 0o644);
  try {
    await file.writeFile(text);
    await file.sync();
  } finally {
    await file.close();
  }
}

async function plan(specification: Specification, bundle: string, rootfs: string): Promise<CreateRecord> {
  if (await isKnown(specification.name)) throw taken(specification.name);
  for (const path of [bundle, rootfs]) if (await exists(path)) throw taken(path);
  const copiedDirectories: string[] = [];
  const madeDirectories: string[] = [];
  for (const mount of specification.mounts) {
    if (mount.kind !== 'bind' || mount.transfer !== 'copy') continue;
    copiedDirectories.push(mount.source);
    if (!(await exists(mount.source))) madeDirectories.push(mount.source);
    else if ((await entriesOf(mount.source)).length > 0) throw taken(mount.source);
  }
  const madeParents = [...(await missingAbove(bundle)), ...(await missingAbove(rootfs))].filter(
    (path) => path !== bundle && !path.startsWith(`${bundle}/`),
  );
  return { v: 1, id: specification.name, bundle, rootfs, madeParents, copiedDirectories, madeDirectories };
}

async function missingAbove(path: string): Promise<string[]> {
  const missing: string[] = [];
  for (let at = dirname(path); at !== '/' && !(await exists(at)); at = dirname(at)) missing.unshift(at);
  return missing;
}

function taken(what: string): UmsError {
  return new UmsError('UMS_E_NAME_TAKEN', {
    message: `${what} exists already`,
    fault: 'destination',
    state: 'It was left as it is.',
    mend: 'Move it away and try again.',
  });
}

/** Exactly the bundle that bears this migration's mark; what an unfinished `create` left is taken back. */
export async function findBundle(
  records: CreateRecords<CreateRecord>,
  specification: Specification,
  key: string,
): Promise<CreatedService | undefined> {
  const record = await records.read(key);
  if (record === undefined) return undefined;
  if ((await markOf(record.bundle)) !== key) {
    await undoBundle(records, key, record);
    return undefined;
  }
  const { path, configText } = bundleOf(specification);
  const handle: RuncHandle = { v: 1, engine: 'runc', id: record.id, bundle: record.bundle, key };
  const copied = new Set(record.copiedDirectories);
  return {
    handle: JSON.stringify(handle),
    id: record.id,
    trees: treesOf(parseConfig(configText, path), path, (mount) => mount.kind === 'bind' && copied.has(mount.source)),
  };
}

async function markOf(bundle: string): Promise<string | undefined> {
  try {
    return await readFile(join(bundle, MARK), 'utf8');
  } catch (error) {
    if (isMissing(error)) return undefined;
    throw error;
  }
}

export async function isMarked(bundle: string, key: string): Promise<boolean> {
  return (await markOf(bundle)) === key;
}

export async function unmark(bundle: string): Promise<void> {
  await rm(join(bundle, MARK), { force: true });
}

/** Removes what a `create` made, and only that. */
export async function undoBundle(
  records: CreateRecords<CreateRecord>,
  key: string,
  record: CreateRecord,
): Promise<void> {
  await rm(draftPath(record.bundle, key), { recursive: true, force: true });
  if ((await markOf(record.bundle)) === key) {
    await rm(record.rootfs, { recursive: true, force: true });
    await rm(record.bundle, { recursive: true, force: true });
  } else if (!record.rootfs.startsWith(`${record.bundle}/`)) {
    // Only its own empty directory: content comes after the mark is in place.
    await removeIfEmpty(record.rootfs);
  }
  await undoCopies(record.copiedDirectories, record.madeDirectories);
  for (const path of record.madeParents.toReversed()) await removeIfEmpty(path);
  await records.remove(key);
}

/** Removes the source's bundle after it moved: its files, then its directory unless something else lies in it. */
export async function removeBundle(bundle: string): Promise<void> {
  let configText: string;
  try {
    configText = await readFile(join(bundle, 'config.json'), 'utf8');
  } catch (error) {
    if (isMissing(error)) return;
    throw error;
  }
  const rootfs = rootfsOf(parseConfig(configText, bundle), bundle);
  // A mount that somebody made for the bundle stays theirs, with what is in it.
  if (!(await isMountPoint(rootfs))) await rm(rootfs, { recursive: true, force: true });
  await rm(logPath(bundle), { force: true });
  await rm(join(bundle, MARK), { force: true });
  await rm(join(bundle, 'config.json'), { force: true });
  await removeIfEmpty(bundle);
}

export async function isMountPoint(path: string): Promise<boolean> {
  const mounts = await readFile('/proc/self/mounts', 'utf8');
  const escaped = path.replaceAll(
    /[ \t\n\\]/g,
    (character) => `\\${character.charCodeAt(0).toString(8).padStart(3, '0')}`,
  );
  return mounts.split('\n').some((line) => line.split(' ')[1] === escaped);
}

async function removeIfEmpty(path: string): Promise<void> {
  try {
    if ((await lstat(path)).isDirectory()) await rmdir(path);
  } catch (error) {
    if (isMissing(error)) return;
    if (error instanceof Error && 'code' in error && (error.code === 'ENOTEMPTY' || error.code === 'EEXIST')) return;
    throw error;
  }
}

import { constants } from 'node:fs';
import { chmod, type FileHandle, lchown, mkdir, open, rename, rm } from 'node:fs/promises';
import { createServer } from 'node:net';
import { UmsError } from '#src/telemetry/errors.ts';
import type { SocketEntry } from './header.ts';
import { type BytePath, nameOf, parentOf, toBytes, toText } from './paths.ts';

/**
 * Makes the inode of a unix socket, which tar cannot. Nobody listens on it until the service that owns it is restored;
 * what matters is that the name exists with its owner and mode. The way there is walked component by component without
 * following symbolic links, so it stays in the tree, and the socket is bound under a short name and then renamed, since
 * an address may have only 107 bytes.
 */
export async function makeSocket(root: string, socket: SocketEntry, key: string): Promise<void> {
  const parent = await openParent(root, socket.path);
  try {
    const here = `/proc/self/fd/${parent.fd}`;
    const temporary = `${here}/.ums-${key}`;
    await rm(temporary, { force: true });
    await bind(temporary);
    await lchown(temporary, socket.uid, socket.gid);
    // After the owner, as a change of owner clears setuid and setgid. Nobody else can have replaced the name meanwhile.
    await chmod(temporary, socket.mode);
    await rename(temporary, Buffer.concat([toBytes(`${here}/`), toBytes(nameOf(socket.path))]));
  } catch (error) {
    throw failure(socket.path, error);
  } finally {
    await parent.close();
  }
}

/** Binding leaves the inode; closing the server removes the name it was bound to unless it is gone by then. */
async function bind(path: string): Promise<void> {
  const server = createServer();
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(path, resolve);
  });
  const held = `${path}.held`;
  await rename(path, held);
  await new Promise<void>((resolve, reject) => {
    server.close((error) => (error === undefined ? resolve() : reject(error)));
  });
  await rename(held, path);
}

const DIRECTORY = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW;

/** Opens the directory that holds `path`, making what is missing (tar sets its owner, mode and times afterwards). */
async function openParent(root: string, path: BytePath): Promise<FileHandle> {
  let current = await open(root, constants.O_RDONLY | constants.O_DIRECTORY);
  const parent = parentOf(path);
  for (const part of parent === '' ? [] : parent.split('/')) {
    const next = Buffer.concat([toBytes(`/proc/self/fd/${current.fd}/`), toBytes(part)]);
    try {
      current = await replace(current, await openOrMake(next));
    } catch (error) {
      await current.close();
      throw failure(path, error);
    }
  }
  return current;
}

async function replace(current: FileHandle, next: FileHandle): Promise<FileHandle> {
  await current.close();
  return next;
}

async function openOrMake(path: Buffer): Promise<FileHandle> {
  try {
    return await open(path, DIRECTORY);
  } catch (error) {
    if (!(error instanceof Error && 'code' in error && error.code === 'ENOENT')) throw error;
    await mkdir(path, 0o700);
    return open(path, DIRECTORY);
  }
}

function failure(path: BytePath, error: unknown): UmsError {
  const reason = error instanceof Error ? error.message : String(error);
  const isFull = error instanceof Error && 'code' in error && (error.code === 'ENOSPC' || error.code === 'EDQUOT');
  return new UmsError(isFull ? 'UMS_E_NO_ROOM' : 'UMS_E_TRANSFER', {
    message: `cannot make the unix socket ${toText(path)}: ${reason}`,
    fault: 'destination',
    mend: isFull ? 'Free disk space there.' : 'Look at the directory of that name at the destination.',
    cause: error,
  });
}

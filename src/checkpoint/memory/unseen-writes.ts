import { readFile, readdir, readlink } from 'node:fs/promises';
import { isGone } from './proc.ts';

const O_DIRECT = 0o40000;
/** Programs with more open files are not searched to the end. */
const FILES_MAX = 16_384;
const RINGS_AND_DEVICES = /^anon_inode:\[?io_uring|^\/dev\/(infiniband|vfio|uio|xdma)|^\/\[aio\]/;

/**
 * Whether a device may be writing into a process's pages at some later time than it was allowed to: files open for
 * direct input, io_uring, and devices that programs drive themselves. Page tables, and so all marks, know nothing of that.
 */
export async function mayBeWrittenUnseen(pid: number): Promise<boolean> {
  try {
    const files = await readdir(`/proc/${pid}/fd`);
    if (files.length > FILES_MAX) return true;
    for (const file of files) {
      if (await isDirect(pid, file)) return true;
    }
    return (await readFile(`/proc/${pid}/maps`, 'latin1')).includes('/[aio]');
  } catch (error) {
    if (isGone(error)) return false;
    throw error;
  }
}

async function isDirect(pid: number, file: string): Promise<boolean> {
  try {
    const target = await readlink(`/proc/${pid}/fd/${file}`);
    if (RINGS_AND_DEVICES.test(target)) return true;
    if (!target.startsWith('/')) return false;
    const flags = /^flags:\s+([0-7]+)/m.exec(await readFile(`/proc/${pid}/fdinfo/${file}`, 'latin1'))?.[1];
    return (Number.parseInt(flags ?? '0', 8) & O_DIRECT) !== 0;
  } catch (error) {
    // Closed meanwhile.
    if (isGone(error)) return false;
    throw error;
  }
}

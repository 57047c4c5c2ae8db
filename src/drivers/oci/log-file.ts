import { copyFile, open, readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { isMissing } from './cgroup.ts';

/** A file of an engine with what a container has said, and its name among the images: it travels and is checked as they are. */
export interface LogFile {
  path: string;
  image: string;
  /** Bytes of it that travel; what is older stays at the source. */
  limit_bytes: number;
  /**
   * The engine notes the size of its log when it starts, and shows no more than that and what it has added itself. A start
   * that is prepared comes before the log, so that many empty lines keep its place.
   */
  reserves?: true;
}

/** The log's name among the images where it has one line a line, with its time and stream: Podman's k8s-file, and the kubelet's. */
export const LINES_IMAGE = 'lines-log.img';

const NEWLINE = 0x0a;

/** Puts the end of the log beside the images. */
export async function saveLog(log: LogFile, imagesDir: string): Promise<void> {
  const { path, limit_bytes } = log;
  let size: number;
  try {
    size = (await stat(path)).size;
  } catch (error) {
    if (isMissing(error)) return;
    throw error;
  }
  const target = join(imagesDir, log.image);
  if (size <= limit_bytes) {
    await copyFile(path, target);
    return;
  }
  const source = await open(path, 'r');
  try {
    const bytes = Buffer.alloc(limit_bytes);
    const { bytesRead } = await source.read(bytes, 0, limit_bytes, size - limit_bytes);
    await writeFile(target, fromLine(bytes.subarray(0, bytesRead)), { mode: 0o600 });
  } finally {
    await source.close();
  }
}

/** Before the engine starts the container: the log gets its size. */
export async function reserveLog(log: LogFile): Promise<void> {
  if (log.reserves === true) await writeFile(log.path, Buffer.alloc(log.limit_bytes, NEWLINE), { mode: 0o640 });
}

/** What came with the images becomes the log; its owner and mode stay those that the engine gave it. */
export async function placeLog(log: LogFile, imagesDir: string, reserved: boolean): Promise<void> {
  try {
    if (reserved && log.reserves === true) await fillReserved(log, await readFile(join(imagesDir, log.image)));
    else await copyFile(join(imagesDir, log.image), log.path);
  } catch (error) {
    if (!isMissing(error)) throw error;
  }
}

/** At the end of its place, so that its last lines are the file's. */
async function fillReserved({ path, limit_bytes }: LogFile, content: Buffer): Promise<void> {
  const end = content.length <= limit_bytes ? content : fromLine(content.subarray(-limit_bytes));
  const file = await open(path, 'r+');
  try {
    await file.write(end, 0, end.length, limit_bytes - end.length);
  } finally {
    await file.close();
  }
}

/** From the first whole line on. */
function fromLine(bytes: Buffer): Buffer {
  return bytes.subarray(bytes.indexOf(NEWLINE) + 1);
}

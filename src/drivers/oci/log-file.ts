import { copyFile, open, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { isMissing } from './cgroup.ts';

/** Bytes of the source's log that travel with the images; what is older stays at the source. */
const LOG_LIMIT_BYTES = 16 * 1024 * 1024;

/** A file of an engine with what a container has said, and its name among the images: it travels and is checked as they are. */
export interface LogFile {
  path: string;
  image: string;
}

/** Puts the end of the log beside the images. */
export async function saveLog(log: LogFile, imagesDir: string): Promise<void> {
  const { path } = log;
  let size: number;
  try {
    size = (await stat(path)).size;
  } catch (error) {
    if (isMissing(error)) return;
    throw error;
  }
  const target = join(imagesDir, log.image);
  if (size <= LOG_LIMIT_BYTES) {
    await copyFile(path, target);
    return;
  }
  const source = await open(path, 'r');
  try {
    const bytes = Buffer.alloc(LOG_LIMIT_BYTES);
    const { bytesRead } = await source.read(bytes, 0, LOG_LIMIT_BYTES, size - LOG_LIMIT_BYTES);
    const end = bytes.subarray(0, bytesRead);
    const sink = await open(target, 'w', 0o600);
    try {
      // From the first whole line on.
      await sink.writeFile(end.subarray(end.indexOf(0x0a) + 1));
    } finally {
      await sink.close();
    }
  } finally {
    await source.close();
  }
}

/** What came with the images becomes the log; its owner and mode stay those that the engine gave it. */
export async function placeLog(log: LogFile, imagesDir: string): Promise<void> {
  try {
    await copyFile(join(imagesDir, log.image), log.path);
  } catch (error) {
    if (!isMissing(error)) throw error;
  }
}

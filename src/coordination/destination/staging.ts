import { statSync } from 'node:fs';
import { readdir, rm } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { z } from 'zod';
import { UmsError } from '#src/telemetry/errors.ts';
import { imageNames, verifyImages } from '#src/transfer/pages/images.ts';

const pagesSchema = z.array(z.object({ name: z.string(), size: z.int() }));
const imagesSchema = z.array(z.object({ name: z.string(), size: z.int(), sha256: z.string() }));
const PAGE_FILE = /^(pages|pagemap)-[a-z0-9-]+\.img$/;

/** Whether the images that were sent as files include memory pages. */
export function hasPages(images: unknown): boolean {
  return imagesSchema.parse(images).some(isOfPages);
}

function isOfPages({ name }: { name: string }): boolean {
  return basename(name).startsWith('pages-');
}

/** Names and sizes of the files that the page server wrote; TLS and the page server vouch for their content. */
export function pageManifest(directory: string): z.infer<typeof pagesSchema> {
  const names = imageNames(directory).filter((name) => PAGE_FILE.test(basename(name)));
  return names.sort().map((name) => ({ name, size: statSync(join(directory, name)).size }));
}

/** Compares the staging directory with what was received, right before it is restored from. */
export async function verifyStaging(directory: string, images: unknown, pages: unknown): Promise<void> {
  const sent = imagesSchema.parse(images).filter(isOfPages);
  const expected = [...pagesSchema.parse(pages), ...sent];
  const found = pageManifest(directory);
  for (const file of expected) {
    const size = found.find((candidate) => candidate.name === file.name)?.size;
    if (size !== file.size) {
      throw new UmsError('UMS_E_IMAGE_CORRUPT', {
        message: `A checkpoint image is truncated or altered: ${file.name} has ${size ?? 'no'} bytes instead of ${file.size}.`,
        fault: 'destination',
        state: 'Nothing was restored from it.',
        mend: 'Check the memory of the destination and try again.',
      });
    }
  }
  // Memory was checked as it arrived; hashing it once more would keep the service waiting.
  const small = imagesSchema.parse(images).filter((image) => !isOfPages(image));
  await verifyImages(directory, small);
}

/** Removes what a directory holds and keeps the directory, which others may have open. */
export async function emptyDirectory(directory: string): Promise<void> {
  for (const name of await readdir(directory)) await rm(join(directory, name), { recursive: true, force: true });
}

/** A full staging directory is no defect: it is told as what it is. */
export function asNoRoom(error: unknown): never {
  if (!(error instanceof Error && 'code' in error && error.code === 'ENOSPC')) throw error;
  throw new UmsError('UMS_E_NO_ROOM', {
    message: 'The memory for staging at the destination is full.',
    fault: 'destination',
    mend: 'Free memory at the destination, end other migrations to it, or choose another system.',
    cause: error,
  });
}

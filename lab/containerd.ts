import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { pipeline } from 'node:stream/promises';
import type { Daemon } from './daemon.ts';
import type { Host } from './host.ts';

/** containerd on a test host: Debian's own, as Debian configures it. */
export const CONTAINERD: Daemon = {
  title: 'containerd',
  log: 'containerd.log',
  program: 'containerd',
  question: ['ctr', 'version'],
};

const IMPORT_LIMIT_MS = 120_000;

/**
 * Imports a tree (an archive on the host) as an image of one layer. containerd takes no bare trees, so the archive gets
 * what makes an image of it, in the form of `docker save`; on every host the same bytes, and so the same digests.
 */
export async function importIntoContainerd(
  host: Host,
  source: { tree: string; image: string; path: string; namespace: string },
): Promise<void> {
  const { tree, image, path, namespace } = source;
  const sum = createHash('sha256');
  await pipeline(createReadStream(host.path(tree)), sum);
  const config = JSON.stringify({
    architecture: process.arch === 'x64' ? 'amd64' : process.arch,
    os: 'linux',
    created: '1970-01-01T00:00:00Z',
    config: { Env: [`PATH=${path}`], Cmd: ['sh'] },
    rootfs: { type: 'layers', diff_ids: [`sha256:${sum.digest('hex')}`] },
  });
  const manifest = JSON.stringify([{ Config: 'config.json', RepoTags: [image], Layers: ['layer.tar'] }]);
  const { stdout } = await host.exec('mktemp', ['-d', '/tmp/image-XXXXXX']);
  const directory = stdout.trim();
  try {
    host.writeFile(`${directory}/config.json`, config);
    host.writeFile(`${directory}/manifest.json`, manifest);
    await host.exec('ln', ['-s', tree, `${directory}/layer.tar`]);
    await host.exec('tar', [
      '-chf',
      `${directory}/image.tar`,
      '-C',
      directory,
      'manifest.json',
      'config.json',
      'layer.tar',
    ]);
    await host.exec('ctr', ['-n', namespace, 'images', 'import', '--local', `${directory}/image.tar`], {
      timeout_ms: IMPORT_LIMIT_MS,
    });
  } finally {
    await host.exec('rm', ['-rf', directory]);
  }
}

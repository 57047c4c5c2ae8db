import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { run } from '#src/telemetry/exec.ts';
import { diffId, type ImageParts, packArchive, unpackArchive, withLayer } from './archive.ts';

let directory: string;
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'ums-archive-test-'));
});
afterEach(() => rm(directory, { recursive: true, force: true }));

async function layer(name: string, text: string): Promise<string> {
  const tree = join(directory, `${name}-tree`);
  await mkdir(tree);
  await writeFile(join(tree, name), text);
  const tar = join(directory, `${name}.tar`);
  await run('tar', ['-C', tree, '-cf', tar, '.']);
  return tar;
}

async function image(): Promise<ImageParts> {
  const lowest = await layer('one', 'first');
  return {
    names: ['localhost/thing:1'],
    config: {
      architecture: 'amd64',
      os: 'linux',
      config: { Cmd: ['/bin/thing'], Env: ['A=1'], 'x-kept': { as: 'it is' } },
      rootfs: { type: 'layers', diff_ids: [await diffId(lowest)] },
    },
    layers: [lowest],
  };
}

async function unpacked(archive: string): Promise<ImageParts> {
  return await unpackArchive(archive, await mkdtemp(join(directory, 'unpacked-')));
}

test('what is packed is unpacked as it was, fields that ums does not know included', async () => {
  const made = await withLayer(await image(), await layer('two', 'second'), 'a test');
  const archive = join(directory, 'image.tar');
  await packArchive(made, archive);
  const found = await unpacked(archive);
  expect(found.names).toEqual(made.names);
  expect(found.config).toEqual(made.config);
  expect(found.config.rootfs.diff_ids).toEqual(await Promise.all(found.layers.map(diffId)));
});

test('the same image is the same archive to the byte', async () => {
  const made = await image();
  await packArchive(made, join(directory, 'a.tar'));
  await packArchive(made, join(directory, 'b.tar'));
  expect(await readFile(join(directory, 'a.tar'))).toEqual(await readFile(join(directory, 'b.tar')));
});

test.each([
  ['no archive', async () => writeFile(join(directory, 'bad.tar'), 'no tar')],
  [
    'an archive of something else',
    async () => {
      await layer('bad', 'only a file');
    },
  ],
  [
    'a name that leads out of it',
    async () => {
      const tree = join(directory, 'bad-tree');
      await mkdir(tree);
      await writeFile(join(tree, 'manifest.json'), JSON.stringify([{ Config: '../../etc/passwd', Layers: [] }]));
      await run('tar', ['-C', tree, '-cf', join(directory, 'bad.tar'), '.']);
    },
  ],
])('%s is refused', async (_, make) => {
  await make();
  await expect(unpacked(join(directory, 'bad.tar'))).rejects.toMatchObject({ code: 'UMS_E_USAGE' });
});

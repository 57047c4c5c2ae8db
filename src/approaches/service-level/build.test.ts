import { expect, test } from 'vitest';
import { INIT_COMMAND } from '#src/drivers/init/layout.ts';
import { migratableOf } from './build.ts';

const image = (container: object) => ({
  names: ['localhost/cache:7'],
  config: {
    os: 'linux',
    architecture: 'amd64',
    config: { Entrypoint: ['/run.sh'], Cmd: ['serve'], ...container },
    rootfs: { type: 'layers' as const, diff_ids: [] },
  },
});
const request = { name: 'localhost/team/moving:7', files: ['/srv/./data/'] };

test('an image keeps what it was, and moves its volumes and the directories that were named', () => {
  expect(migratableOf(image({ Volumes: { '/data': {} }, User: 'root' }), request)).toMatchObject({
    name: 'moving',
    names: ['localhost/cache:7'],
    entrypoint: ['/run.sh'],
    command: ['serve'],
    workingDir: '/',
    files: ['/data', '/srv/data'],
  });
});

test.each([
  ['its programs are not root', { User: '1000:1000' }, /run as user 1000:1000/],
  ['it is one already', { Entrypoint: [...INIT_COMMAND] }, /already/],
])('an image is refused when %s', (_, container, words) => {
  expect(() => migratableOf(image(container), request)).toThrow(words);
});

import { expect, test } from 'vitest';
import { mountsBeneath } from './trees.ts';

const MOUNTINFO = [
  '20 1 8:1 / / rw - ext4 /dev/sda rw',
  '21 20 8:1 /etc /lab/one/a/etc rw - ext4 /dev/sda rw',
  '22 20 0:5 / /lab/one/a rw - tmpfs tmpfs rw',
  '23 20 0:6 / /lab/one-more rw - tmpfs tmpfs rw',
  '24 20 0:7 / /lab/one/with\\040blank rw - tmpfs tmpfs rw',
].join('\n');

test('mounts at and beneath a directory are found, the latest first, and not those of its neighbours', () => {
  expect(mountsBeneath('/lab/one', MOUNTINFO)).toEqual(['/lab/one/with blank', '/lab/one/a', '/lab/one/a/etc']);
  expect(mountsBeneath('/lab/none', MOUNTINFO)).toEqual([]);
});

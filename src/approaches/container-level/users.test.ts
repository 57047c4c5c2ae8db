import { expect, it } from 'vitest';
import { accountOf } from './users.ts';

const PASSWD = 'root:x:0:0:root:/root:/bin/sh\n# a comment\napp:x:1000:1001:App:/home/app:/bin/sh\n';
const GROUP = 'root:x:0:\napps:x:1001:\nwww:x:33:app,other\nlog:x:4:other\n';

it('finds users and groups by name and by number in the image’s own files', () => {
  expect(accountOf('', [], PASSWD, GROUP)).toEqual({ uid: 0, gid: 0, additionalGids: [], home: '/root' });
  expect(accountOf('app', [], PASSWD, GROUP)).toEqual({
    uid: 1000,
    gid: 1001,
    additionalGids: [33],
    home: '/home/app',
  });
  expect(accountOf('1000', ['log'], PASSWD, GROUP)).toMatchObject({ uid: 1000, gid: 1001, additionalGids: [33, 4] });
  expect(accountOf('app:www', [], PASSWD, GROUP)).toMatchObject({ uid: 1000, gid: 33, additionalGids: [] });
  expect(accountOf('7:8', ['9'], '', '')).toEqual({ uid: 7, gid: 8, additionalGids: [9], home: '/' });
});

it('says what an image does not have', () => {
  expect(() => accountOf('nobody', [], PASSWD, GROUP)).toThrow(/no user nobody/);
  expect(() => accountOf('app:none', [], PASSWD, GROUP)).toThrow(/no group none/);
});

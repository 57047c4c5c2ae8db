import { UmsError } from '#src/telemetry/errors.ts';

/** Who a program runs as: numbers, found by name in the image's own files. */
export interface Account {
  uid: number;
  gid: number;
  additionalGids: number[];
  home: string;
}

/** `user` is '', NAME, UID, NAME:GROUP or UID:GID; the texts are the image's /etc/passwd and /etc/group. */
export function accountOf(user: string, groups: readonly string[], passwd: string, group: string): Account {
  const [who = '', ofGroup] = user === '' ? ['0'] : user.split(':');
  const users = rows(passwd);
  const byNumber = /^\d+$/.test(who);
  const entry = users.find((row) => row[byNumber ? 2 : 0] === who);
  if (entry === undefined && !byNumber) throw unknown('user', who, '/etc/passwd');
  const uid = byNumber ? Number(who) : Number(entry?.[2]);
  const name = entry?.[0];
  const all = rows(group);
  const member = all.filter((row) => name !== undefined && (row[3] ?? '').split(',').includes(name));
  const gid = ofGroup === undefined ? Number(entry?.[3] ?? 0) : groupNumber(ofGroup, all);
  const own = ofGroup === undefined ? member.map((row) => Number(row[2])) : [];
  const additional = new Set([...own, ...groups.map((each) => groupNumber(each, all))]);
  additional.delete(gid);
  return { uid, gid, additionalGids: [...additional], home: entry?.[5] ?? '/' };
}

function groupNumber(name: string, groups: readonly string[][]): number {
  if (/^\d+$/.test(name)) return Number(name);
  const entry = groups.find((row) => row[0] === name);
  if (entry === undefined) throw unknown('group', name, '/etc/group');
  return Number(entry[2]);
}

function rows(text: string): string[][] {
  return text.split('\n').flatMap((line) => (/^[^#:]+:/.test(line) ? [line.split(':')] : []));
}

function unknown(kind: string, name: string, file: string): UmsError {
  return new UmsError('UMS_E_USAGE', {
    message: `The image has no ${kind} ${name} in ${file}`,
    fault: 'user',
    state: 'The service was not started.',
    mend: 'Give the number instead.',
  });
}

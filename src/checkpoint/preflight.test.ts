import { describe, expect, it } from 'vitest';
import { hasCapability, inodesOf, judgeProcess, type ProcessView } from './preflight.ts';

const view: ProcessView = {
  pid: 7,
  descriptors: [
    '/dev/null',
    'pipe:[12]',
    'socket:[99]',
    'anon_inode:[eventpoll]',
    '/memfd:x (deleted)',
    'anon_inode:inotify',
  ],
  maps: '7f00-7f01 rw-p 00000000 00:00 0 [heap]\n7f02-7f03 rw-s 00000000 00:01 5 /dev/shm/x',
  status: 'State:\tS (sleeping)\nTracerPid:\t0\nUid:\t0\t0\t0\t0\n',
  knownSockets: new Set(['99']),
  refusedSockets: new Map(),
  namespaces: { pid: 'pid:[1]', user: 'user:[1]', net: 'net:[2]' },
  firstNamespaces: { pid: 'pid:[1]', user: 'user:[1]', net: 'net:[1]' },
  sharesIpc: false,
  mayReadLimits: true,
};
const ids = (part: Partial<ProcessView>) =>
  judgeProcess({ ...view, ...part }).map((one) => `${one.severity} ${one.id}`);

describe('what CRIU refuses, seen from outside', () => {
  it('is nothing for ordinary descriptors', () => {
    expect(ids({})).toEqual([]);
  });
  it('is io_uring as descriptor and as memory, and other anonymous inodes', () => {
    expect(ids({ descriptors: ['anon_inode:[io_uring]'] })).toEqual(['error descriptor.unsupported']);
    expect(ids({ maps: '7f00-7f01 rw-s 00000000 00:0f 1 anon_inode:[io_uring]' })).toEqual([
      'error descriptor.unsupported',
    ]);
    expect(ids({ descriptors: ['anon_inode:[userfaultfd]', 'anon_inode:bpf-prog'] })).toHaveLength(2);
  });
  it('is a device that it does not know', () => {
    expect(ids({ descriptors: ['/dev/nvidia0', '/dev/pts/3', '/dev/shm/a'] })).toEqual(['error descriptor.device']);
    expect(ids({ maps: '7f00-7f01 rw-s 0 00:05 9 /dev/dri/card0' })).toEqual(['error mapping.device']);
  });
  it('is a socket of a kind that it does not know', () => {
    expect(ids({ refusedSockets: new Map([['99', 'an ICMP socket']]) })).toEqual(['error descriptor.socket']);
    expect(ids({ knownSockets: new Set() })).toEqual(['info descriptor.socket.unknown']);
  });
  it('is a traced process, a nested pid namespace, another user without the capability', () => {
    expect(ids({ status: 'TracerPid:\t5\n' })).toEqual(['error process.traced']);
    expect(ids({ namespaces: { ...view.namespaces, pid: 'pid:[9]' } })).toEqual(['error process.namespace']);
    expect(ids({ status: 'Uid:\t1000\t1000\t1000\t1000\n', mayReadLimits: false })).toEqual(['error criu.capability']);
    expect(ids({ status: 'Uid:\t1000\t1000\t1000\t1000\n' })).toEqual([]);
  });
  it('is System V shared memory of a namespace that is not dumped', () => {
    const maps = '7f00-7f01 rw-s 00000000 00:01 5 /SYSV6b736d31 (deleted)';
    expect(ids({ maps })).toEqual([]);
    expect(ids({ maps, sharesIpc: true })).toEqual(['error mapping.sysv']);
  });
});

describe('tables of the kernel', () => {
  it('give inodes by column', () => {
    const text =
      '  sl  local rem st tx rx tr tm->when retrnsmt   uid  timeout inode\n   0: 0100007F:1 00000000:0000 0A 0:0 00:0 0 0 0 4242 1\n';
    expect(inodesOf(text, 9)).toEqual(['4242']);
    expect(inodesOf('', 9)).toEqual([]);
  });
  it('give capabilities by bit', () => {
    expect(hasCapability('CapEff:\t000001ffffffffff\n', 24)).toBe(true);
    expect(hasCapability('CapEff:\t000001fffeffffff\n', 24)).toBe(false);
  });
});

import { describe, expect, it } from 'vitest';
import { mergeSettings, parseSettings, runAs, signalName } from './settings.ts';

const IMAGE = {
  Entrypoint: ['/entry'],
  Cmd: ['serve', '--fast'],
  Env: ['PATH=/opt/bin:/bin', 'COLOUR=red', 'SIZE=1'],
  WorkingDir: '/srv',
  User: 'app:www',
  StopSignal: 'SIGQUIT',
  Healthcheck: { Test: ['CMD-SHELL', 'curl -f localhost'], Timeout: 3e9 },
};

describe('what a service is run as', () => {
  it('is what the image says, where nothing else was asked for', () => {
    expect(runAs(IMAGE, {})).toEqual({
      args: ['/entry', 'serve', '--fast'],
      env: ['PATH=/opt/bin:/bin', 'COLOUR=red', 'SIZE=1'],
      workingDir: '/srv',
      user: 'app:www',
      groups: [],
      stopSignal: 'QUIT',
      health: { test: ['/bin/sh', '-c', 'curl -f localhost'], timeout_ms: 3000 },
    });
  });

  it('keeps the entry point for another command, and drops the command for another entry point', () => {
    expect(runAs(IMAGE, { command: ['other'] }).args).toEqual(['/entry', 'other']);
    expect(runAs(IMAGE, { entrypoint: ['/mine'] }).args).toEqual(['/mine']);
    expect(runAs(IMAGE, { entrypoint: ['/mine'], command: ['a'] }).args).toEqual(['/mine', 'a']);
    expect(() => runAs({}, {})).toThrow(/what program/);
  });

  it('has a PATH also where the image has no environment, and takes variables one by one', () => {
    expect(runAs({ Cmd: ['x'] }, {}).env).toEqual([
      'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
    ]);
    expect(runAs(IMAGE, { env: ['COLOUR=blue', 'NEW=a=b'] }).env).toEqual([
      'PATH=/opt/bin:/bin',
      'COLOUR=blue',
      'SIZE=1',
      'NEW=a=b',
    ]);
  });

  it('has no check where it is switched off', () => {
    expect(runAs(IMAGE, { healthCheck: { test: ['NONE'], timeout_ms: 0 } }).health).toBeUndefined();
    expect(runAs(IMAGE, { healthCheck: { test: ['CMD', 'ok', 'now'], timeout_ms: 0 } }).health).toEqual({
      test: ['ok', 'now'],
      timeout_ms: 30_000,
    });
  });
});

describe('settings', () => {
  it('of the command line win over those of a file, and lists of options add up', () => {
    const merged = mergeSettings(
      { env: ['A=1', 'B=1'], user: 'one', capabilities: { add: ['NET_ADMIN'], drop: [] } },
      { env: ['B=2'], user: 'two', capabilities: { add: [], drop: ['MKNOD'] } },
    );
    expect(merged).toEqual({
      env: ['A=1', 'B=2'],
      user: 'two',
      capabilities: { add: ['NET_ADMIN'], drop: ['MKNOD'] },
    });
    expect(mergeSettings({}, {})).toEqual({});
  });

  it('may be a whole Specification, of which only what concerns a capsule counts', () => {
    const text = JSON.stringify({ version: 1, engine: 'podman', command: ['run'], ports: [], workingDir: '/' });
    expect(parseSettings(text, 'x')).toEqual({ command: ['run'], workingDir: '/' });
    expect(() => parseSettings('{"command":"run"}', 'x')).toThrow(/x does not say/);
    expect(() => parseSettings('{', 'x')).toThrow(/not JSON/);
  });

  it('name signals as images do', () => {
    expect(['SIGTERM', 'int', '15', 'SIGRTMIN+3'].map(signalName)).toEqual(['TERM', 'INT', '15', 'RTMIN+3']);
    expect(() => signalName('a b')).toThrow(/no signal/);
  });
});

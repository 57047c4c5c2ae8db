import { execFileSync } from 'node:child_process';
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { RestoreArea, type RestoreSettings } from './restore-area.ts';

/** The wrapper with a runtime that only writes down how it was called. */
const ID = 'a'.repeat(64);
let directory: string;
let area: RestoreArea;
let calls: string;

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), 'ums-wrapper-'));
  area = new RestoreArea(directory);
  calls = join(directory, 'calls');
  const runc = join(directory, 'runc');
  writeFileSync(runc, `#!/bin/sh\nprintf '%s\\n' "$@" "config=\${CRIU_CONFIG_FILE:-}" >'${calls}'\n`);
  chmodSync(runc, 0o755);
  await area.prepare(settings());
});

function settings(): RestoreSettings {
  return {
    id: ID,
    runc: join(directory, 'runc'),
    imagesDir: '/images',
    workDir: '/work',
    ownNetwork: false,
    lazy: false,
    criu: '/usr/sbin/criu',
  };
}

afterEach(() => rmSync(directory, { recursive: true }));

function call(...args: string[]): string[] {
  execFileSync(area.wrapper(ID), args);
  return readFileSync(calls, 'utf8').trim().split('\n');
}

function bundle(cgroupsPath: string | undefined): string {
  const path = join(directory, 'bundle');
  mkdirSync(path);
  writeFileSync(join(path, 'config.json'), JSON.stringify({ linux: cgroupsPath === undefined ? {} : { cgroupsPath } }));
  return path;
}
const criuConf = (): string => readFileSync(join(area.directory(ID), 'criu.conf'), 'utf8');

describe('the runtime wrapper', () => {
  it('turns the create of its container into a restore, and keeps every other word', () => {
    const at = bundle('/libpod_parent/libpod-x');
    const before = ['--log-format=json', '--log', '/l og'];
    const after = ['--bundle', at, '--pid-file', '/p', ID];
    const restore = ['restore', '--detach', '--image-path', '/images', '--work-path', '/work', '--file-locks'];
    expect(call(...before, 'create', ...after)).toEqual(
      before.concat(restore, after, [`config=${join(area.directory(ID), 'criu.conf')}`]),
    );
    expect(criuConf()).toMatch(/^cgroup-root :\/libpod_parent\/libpod-x$/m);
    expect(criuConf()).toMatch(/^action-script .*\/hook$/m);
  });
  it("knows systemd's form of a control group, and runc's default", () => {
    const at = bundle('machine-a.slice:libpod:x');
    call('create', '--bundle', at, ID);
    expect(criuConf()).toMatch(/^cgroup-root :\/machine\.slice\/machine-a\.slice\/libpod-x\.scope$/m);
    rmSync(at, { recursive: true });
    call('create', '--bundle', bundle(undefined), ID);
    expect(criuConf()).toMatch(new RegExp(`^cgroup-root :/${ID}$`, 'm'));
  });
  it('is not in the way of other containers and other commands', () => {
    expect(call('create', '--bundle', '/b', 'other')).toEqual(['create', '--bundle', '/b', 'other', 'config=']);
    expect(call('kill', ID)).toEqual(['kill', ID, 'config=']);
  });
  it('leaves a network namespace to the hook that furnishes it', async () => {
    await area.prepare({ ...settings(), hookedNetwork: true });
    const words = call('create', '--bundle', bundle(undefined), ID);
    expect(words.slice(words.indexOf('--file-locks'), -3)).toEqual([
      '--file-locks',
      '--empty-ns',
      'network',
      '--bundle',
    ]);
  });
  it('has connections restored where it is told to, and closed elsewhere', async () => {
    const at = bundle(undefined);
    expect(call('create', '--bundle', at, ID)).not.toContain('--tcp-established');
    expect(criuConf()).toMatch(/^tcp-close$/m);
    await area.prepare({ ...settings(), localConnections: true });
    expect(call('create', '--bundle', at, ID)).toContain('--tcp-established');
    expect(criuConf()).not.toMatch(/tcp-close/);
  });
  it('keeps a container frozen that its engine creates and starts in one step', async () => {
    await area.prepare({ ...settings(), staysFrozen: true });
    execFileSync(area.wrapper(ID), ['start', ID]);
    expect(() => readFileSync(calls)).toThrow(/ENOENT/);
  });
  it('leaves an empty override behind, until the container is gone', async () => {
    await area.settle(ID);
    expect(await area.exists(ID)).toBe(false);
    expect(readFileSync(area.override(ID), 'utf8')).toMatch(/^# /);
    await area.sweep(new Set([ID]));
    expect(readFileSync(area.override(ID), 'utf8')).toMatch(/^# /);
    await area.sweep(new Set());
    expect(() => readFileSync(area.override(ID))).toThrow(/ENOENT/);
  });
});

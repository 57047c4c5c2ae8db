import { closeSync, mkdirSync, openSync } from 'node:fs';
import { join } from 'node:path';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { UmsError } from '#src/telemetry/errors.ts';
import { makeCgroup, readOrEmpty } from './cgroup.ts';
import type { Host } from './host.ts';
import { PATIENCE } from './patience.ts';

/** Docker on a test host: Debian's own, with the one setting that ums needs of it. */
const READY_LIMIT_MS = 60_000 * PATIENCE;
const POLL_MS = 100;
/** Where a host sees the checkout. */
const RUNTIME = '/opt/ums/app/src/drivers/oci/engine-runtime.sh';
const SETTINGS = {
  runtimes: { ums: { path: RUNTIME } },
  'storage-driver': 'overlay2',
  // The test hosts' control groups have no controllers to delegate, and no systemd that would.
  'exec-opts': ['native.cgroupdriver=cgroupfs'],
};

/** Starts dockerd, if none answers yet. It ends with its host. */
export async function startDocker(host: Host): Promise<void> {
  if (await answers(host)) return;
  await host.exec('mkdir', ['-p', '/etc/docker']);
  host.writeFile('/etc/docker/daemon.json', JSON.stringify(SETTINGS, undefined, 2));
  makeCgroup(join(host.cgroup, 'engine'));
  const logPath = join(host.directory, 'log', 'docker.log');
  mkdirSync(join(host.directory, 'log'), { recursive: true });
  const log = openSync(logPath, 'a');
  const [enter, args] = host.command('dockerd', [], { detach: true, group: 'engine' });
  const child = spawn(enter, args, { stdio: ['ignore', log, log] });
  closeSync(log);
  await once(child, 'exit');
  const limit = Date.now() + READY_LIMIT_MS;
  while (!(await answers(host))) {
    if (Date.now() > limit) {
      throw new UmsError('UMS_E_LAB', {
        message: `Docker does not answer on test host ${host.name}`,
        fault: 'ums',
        mend: `Read what it says: ./ums lab exec ${host.name} -- docker info`,
        detail: readOrEmpty(logPath).slice(-4000),
      });
    }
    await sleep(POLL_MS);
  }
}

async function answers(host: Host): Promise<boolean> {
  const { exitCode } = await host.exec('docker', ['version', '--format', '{{.Server.Version}}'], {
    okExitCodes: [0, 1],
    timeout_ms: READY_LIMIT_MS,
  });
  return exitCode === 0;
}

import type { Daemon } from './daemon.ts';

/** Where a host sees the checkout. */
const RUNTIME = '/opt/ums/app/src/drivers/oci/engine-runtime.sh';
const SETTINGS = {
  runtimes: { ums: { path: RUNTIME } },
  'storage-driver': 'overlay2',
  // The test hosts' control groups have no controllers to delegate, and no systemd that would.
  'exec-opts': ['native.cgroupdriver=cgroupfs'],
};

/** Docker on a test host: Debian's own, with the one setting that ums needs of it. */
export const DOCKER: Daemon = {
  title: 'Docker',
  log: 'docker.log',
  program: 'dockerd',
  settle: async (host) => {
    await host.exec('mkdir', ['-p', '/etc/docker']);
    host.writeFile('/etc/docker/daemon.json', JSON.stringify(SETTINGS, undefined, 2));
  },
  question: ['docker', 'version', '--format', '{{.Server.Version}}'],
};

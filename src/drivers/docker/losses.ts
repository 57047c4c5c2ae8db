import { UmsError } from '#src/telemetry/errors.ts';
import { keptBy } from '../oci/kept-by.ts';
import { nameOf } from './describe.ts';
import { RUNTIME } from './create-body.ts';
import type { Inspect, Volume } from './schema.ts';

/** Runtimes that are runc under whatever name: Docker's own, the stand-in's, and containerd's name for the first. */
const RUNC_NAMES = new Set(['', 'runc', RUNTIME, 'io.containerd.runc.v2']);

/** Things of a container that its copy elsewhere will not have, in words for the user. */
export function lossesOf(inspect: Inspect, volumes: ReadonlyMap<string, Volume>): string[] {
  const host = inspect.HostConfig;
  const losses: string[] = [];
  const endpoints = Object.values(inspect.NetworkSettings.Networks);
  const lost: [boolean, string][] = [
    [host.BlkioWeight > 0, 'its block I/O weight'],
    [host.DeviceCgroupRules.length > 0, 'its device rules'],
    [host.Links.length > 0 || endpoints.some(({ Links }) => Links.length > 0), 'its links to other containers'],
    [host.OomKillDisable, 'that it is never killed for want of memory'],
    [Object.keys(host.StorageOpt).length > 0, 'its storage options'],
    [host.PublishAllPorts, 'that all exposed ports are published, at ports that Docker chooses'],
    [inspect.Config.StdinOnce, 'that its input closes when whoever is attached leaves'],
    [endpoints.some(({ IPAMConfig: ipam }) => (ipam?.IPv4Address ?? '') !== ''), 'its fixed address'],
    [
      [...volumes.values()].some(({ Labels }) => 'com.docker.volume.anonymous' in Labels),
      'the names of its anonymous volumes; their content moves',
    ],
  ];
  for (const [is, what] of lost) if (is) losses.push(what);
  if (!['none', 'host'].includes(host.NetworkMode)) {
    losses.push("its address on Docker's network: it gets a new one, and open connections are closed");
  }
  if (host.LogConfig.Type !== 'json-file' && host.LogConfig.Type !== 'none') {
    losses.push(`earlier log lines stay in the source's ${host.LogConfig.Type} log`);
  }
  losses.push(`its runtime is called ${RUNTIME} there, which is runc but for the moment of the restore`);
  losses.push('its id and creation time: the destination gives it new ones');
  return losses;
}

/** Throws for what cannot be moved at all, with the reason. `security` are the daemon's security options. */
export function refuseUnmovable(inspect: Inspect, security: readonly string[]): void {
  const reason = keptBy(inspect.Config.Labels) ?? unmovable(inspect) ?? ofDaemon(security);
  if (reason === undefined) return;
  throw new UmsError('UMS_E_SPECIFICATION', {
    message: `${nameOf(inspect)} cannot be moved: ${reason.why}`,
    fault: 'user',
    state: 'Nothing was changed.',
    mend: reason.mend,
  });
}

function ofDaemon(security: readonly string[]): { why: string; mend: string } | undefined {
  const mapped = security
    .map((option) => option.split(',')[0])
    .find((name) => name === 'name=userns' || name === 'name=rootless');
  if (mapped === undefined) return undefined;
  return {
    why: `this Docker gives its containers a user namespace (${mapped.slice('name='.length)})`,
    mend: 'Run it under a Docker of root without userns-remap.',
  };
}

function unmovable(inspect: Inspect): { why: string; mend: string } | undefined {
  const host = inspect.HostConfig;
  const shared = [host.NetworkMode, host.PidMode, host.IpcMode].find((mode) => mode.startsWith('container:'));
  if (shared !== undefined) {
    return { why: `it shares a namespace with another container (${shared})`, mend: 'Give it one of its own.' };
  }
  if (!RUNC_NAMES.has(host.Runtime)) {
    return {
      why: `it runs under ${host.Runtime}, and only runc can be dumped and restored here`,
      mend: 'Create it with `docker run --runtime runc`.',
    };
  }
  if (host.PidMode === 'host') {
    return {
      why: 'it has no process id namespace of its own',
      mend: 'Create it without `--pid host`: process ids cannot be kept on a host that has other processes.',
    };
  }
  if (host.IpcMode === 'shareable') {
    return { why: 'others may use its /dev/shm (--ipc shareable)', mend: 'Create it with `--ipc private`.' };
  }
  if (host.Mounts.some((mount) => (mount.VolumeOptions?.Subpath ?? '') !== '')) {
    return { why: 'it mounts a part of a volume (volume-subpath)', mend: 'Mount the whole of it.' };
  }
  if (host.DeviceRequests.length > 0) {
    return {
      why: 'it was given devices by a driver of theirs (--gpus)',
      mend: 'Such devices have a state that CRIU cannot dump.',
    };
  }
  if (inspect.GraphDriver.Name !== 'overlay2' && inspect.GraphDriver.Name !== 'overlayfs') {
    return {
      why: `it is stored by ${inspect.GraphDriver.Name}, not overlay2`,
      mend: 'Use the overlay2 storage driver.',
    };
  }
  if (inspect.GraphDriver.Data['UpperDir'] === undefined) {
    return {
      why: "its files are kept by containerd's image store, where their place cannot be seen",
      mend: 'Turn off "containerd-snapshotter" in the features of daemon.json.',
    };
  }
  return undefined;
}

import { UmsError } from '#src/telemetry/errors.ts';
import { keptBy } from '../oci/kept-by.ts';
import type { Inspect, Volume } from './schema.ts';

/** Options of `podman create` that `podman inspect` does not tell and the destination therefore does not get. */
const UNTOLD_OPTIONS: Record<string, string> = {
  '--ip': 'the fixed IPv4 address',
  '--ip6': 'the fixed IPv6 address',
  '--mac-address': 'the fixed MAC address',
  '--secret': 'secrets (the running processes keep what they have read)',
  '--device-cgroup-rule': 'device cgroup rules',
  '--gpus': 'GPU devices',
  '--requires': 'the containers that it requires to be started first',
  '--blkio-weight': 'the block I/O weight',
  '--blkio-weight-device': 'block I/O weights',
  '--device-read-bps': 'device rate limits',
  '--device-read-iops': 'device rate limits',
  '--device-write-bps': 'device rate limits',
  '--device-write-iops': 'device rate limits',
  '--cgroup-conf': 'additional control group settings',
  '--chrootdirs': 'the chroot directories',
  '--conmon-pidfile': 'the file with the process id of conmon',
  '--pidfile': 'the file with the process id',
  '--cidfile': 'the file with the container id',
  '--health-startup-cmd': 'the start-up health check',
  '--health-log-destination': 'where the health check log goes',
  '--hosts-file': 'the base of its /etc/hosts',
  '--hostuser': 'host users',
  '--passwd-entry': 'the entry in /etc/passwd (the file itself is kept)',
  '--group-entry': 'the entry in /etc/group (the file itself is kept)',
  '--personality': 'the execution domain for a fresh start',
  '--rdt-class': 'the resource director class',
  '--sdnotify': 'how it notifies systemd',
  '--systemd': 'the systemd mode',
  '--no-hostname': 'that /etc/hostname comes from the image',
  '--read-only-tmpfs': 'whether a read-only root gets writable temporary directories',
  '--uidmap': 'user mappings',
  '--gidmap': 'group mappings',
};

/** Things of a container that its copy elsewhere will not have, in words for the user. */
export function lossesOf(inspect: Inspect, volumes: ReadonlyMap<string, Volume>): string[] {
  const losses: string[] = [];
  const command = inspect.Config.CreateCommand;
  const imageAt = command.lastIndexOf(inspect.ImageName);
  const flags = new Set(
    command.slice(0, imageAt < 0 ? command.length : imageAt).map((word) => word.split('=')[0] ?? word),
  );
  const untold = Object.entries(UNTOLD_OPTIONS).filter(([flag]) => flags.has(flag));
  for (const [flag, what] of untold) losses.push(`${what} (${flag})`);

  const address = inspect.NetworkSettings.IPAddress;
  const host = inspect.HostConfig;
  if (host.NetworkMode === 'bridge') {
    losses.push(
      `its address on the engine's own network${address === '' ? '' : ` (${address})`}: it gets a new one, and open connections are closed`,
    );
  }
  if (host.LogConfig.Type === 'journald' || host.LogConfig.Type === 'passthrough') {
    losses.push(`earlier log lines stay in the source's ${host.LogConfig.Type} log`);
  }
  if (inspect.Config.Timeout !== null && inspect.Config.Timeout !== undefined && inspect.Config.Timeout > 0) {
    losses.push('its run limit (--timeout) counts anew');
  }
  if (volumes.size > 0 && [...volumes.values()].some((volume) => volume.Anonymous)) {
    losses.push('anonymous volumes get new names; their content moves');
  }
  losses.push('its id and creation time: the destination gives it new ones');
  return losses;
}

/** Throws for what cannot be moved at all, with the reason. */
export function refuseUnmovable(inspect: Inspect): void {
  const reason = keptBy(inspect.Config.Labels) ?? unmovable(inspect);
  if (reason === undefined) return;
  throw new UmsError('UMS_E_SPECIFICATION', {
    message: `${inspect.Name} cannot be moved: ${reason.why}`,
    fault: 'user',
    state: 'Nothing was changed.',
    mend: reason.mend,
  });
}

function unmovable(inspect: Inspect): { why: string; mend: string } | undefined {
  const host = inspect.HostConfig;
  const other = [host.NetworkMode, host.PidMode, host.IpcMode, host.UTSMode, host.UsernsMode, host.CgroupMode].find(
    (mode) => mode.startsWith('container:') || mode.startsWith('ns:'),
  );
  if (inspect.Pod !== '' || inspect.IsInfra) {
    return { why: 'it is part of a pod, and pods cannot be moved yet', mend: 'Run it as a container of its own.' };
  }
  if (other !== undefined) {
    return { why: `it shares a namespace with something else (${other})`, mend: 'Give it a namespace of its own.' };
  }
  if (!['bridge', 'host', 'none'].includes(host.NetworkMode)) {
    return { why: `its network mode is ${host.NetworkMode}`, mend: 'Use a bridge network, host or none.' };
  }
  if (inspect.OCIRuntime !== 'runc' && !inspect.OCIRuntime.endsWith('/runc')) {
    return {
      why: `it runs under ${inspect.OCIRuntime}, and only runc can be dumped and restored here`,
      mend: 'Create it with `podman --runtime runc`.',
    };
  }
  if (host.PidMode === 'host') {
    return {
      why: 'it has no process id namespace of its own',
      mend: 'Create it without `--pid host`: process ids cannot be kept on a host that has other processes.',
    };
  }
  if (host.UsernsMode !== '' && host.UsernsMode !== 'host') {
    return { why: `it has a user namespace (${host.UsernsMode})`, mend: 'Create it without `--userns`.' };
  }
  if (host.Cgroups !== 'default' && host.Cgroups !== 'enabled') {
    return { why: `its control groups are ${host.Cgroups}`, mend: 'Create it without `--cgroups`.' };
  }
  if (inspect.Rootfs !== '' || inspect.GraphDriver.Name !== 'overlay') {
    return {
      why: inspect.Rootfs === '' ? `it is stored by ${inspect.GraphDriver.Name}, not overlay` : 'it has no image',
      mend: 'Create it from an image, with the overlay storage driver.',
    };
  }
  return undefined;
}

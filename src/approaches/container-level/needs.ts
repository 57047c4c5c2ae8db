/**
 * What a capsule needs of its platform, each with what fails without it. It was found by leaving one out at a time, under
 * Podman and under Docker; docs/container-level.md shows the same table (a test compares them).
 */
export interface Need {
  capability: string;
  /** 'start': the service does not start; 'move': it runs, and cannot be moved; 'some': some cannot, or not in every way. */
  for: 'start' | 'move' | 'some';
  without: string;
}

export const NEEDS: readonly Need[] = [
  { capability: 'SYS_ADMIN', for: 'start', without: 'there are no mounts, namespaces and control groups of its own' },
  { capability: 'NET_ADMIN', for: 'move', without: 'CRIU cannot restore the buffers of a socket' },
  { capability: 'SYS_TIME', for: 'move', without: 'CRIU cannot restore a clock where it was' },
  { capability: 'SYS_PTRACE', for: 'some', without: 'there is no userfaultfd, so only cold is possible' },
  { capability: 'DAC_READ_SEARCH', for: 'some', without: 'a program that watches files with inotify cannot be dumped' },
];

/** In the order in which they are given to an engine. */
export const CAPABILITIES: readonly string[] = NEEDS.map((need) => need.capability);
/** In the words of `--security-opt`. */
export const SECURITY_OPTIONS: readonly string[] = ['seccomp=unconfined', 'apparmor=unconfined'];

/** How the whole is granted, by platform. */
export const GRANTS: readonly { platform: string; how: string }[] = [
  {
    platform: 'Podman and Docker',
    how: [
      ...CAPABILITIES.map((name) => `--cap-add ${name}`),
      ...SECURITY_OPTIONS.map((each) => `--security-opt ${each}`),
    ].join(' '),
  },
  {
    platform: 'Kubernetes',
    how: `securityContext: {runAsUser: 0, capabilities: {add: [${CAPABILITIES.join(', ')}]}, seccompProfile: {type: Unconfined}, appArmorProfile: {type: Unconfined}}`,
  },
];

export interface Lack {
  what: string;
  for: Need['for'];
  without: string;
}

export interface Seen {
  capabilities: ReadonlySet<string>;
  /** `Seccomp:` of /proc/self/status: 0 when there is no filter. */
  seccomp: number;
  /** /proc/self/attr/current, '' without a security module. */
  profile: string;
}

export function lacks(seen: Seen): Lack[] {
  const found: Lack[] = NEEDS.filter((need) => !seen.capabilities.has(need.capability)).map((need) => ({
    what: `CAP_${need.capability}`,
    for: need.for,
    without: need.without,
  }));
  if (seen.seccomp !== 0) {
    found.push({
      what: 'seccomp=unconfined',
      for: 'start',
      without: 'runc may not make a session keyring, nor CRIU suspend the filter that every process then has',
    });
  }
  const profile = seen.profile.trim();
  if (profile !== '' && !/^(?:unconfined|.*\(unconfined\)|.*\(complain\)|kernel)$/.test(profile)) {
    found.push({ what: 'apparmor=unconfined', for: 'start', without: `the profile ${profile} may forbid mounts` });
  }
  return found;
}

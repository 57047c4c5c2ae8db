import { readFileSync } from 'node:fs';
import type { Finding } from '../contract.ts';

/** Capabilities in the order of their numbers (linux/capability.h). */
const NAMES = [
  'CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE',
  'NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN',
  'SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE',
  'MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE',
].flatMap((row) => row.split(' '));

type CapabilitySet = 'CapBnd' | 'CapEff';

/** One of a process's sets, by names, from what /proc/PID/status says of it. */
export function capabilitiesIn(status: string, set: CapabilitySet): string[] {
  const mask = BigInt(`0x${new RegExp(`^${set}:\\s*([0-9a-f]+)$`, 'm').exec(status)?.[1] ?? '0'}`);
  return NAMES.filter((_, bit) => ((mask >> BigInt(bit)) & 1n) === 1n);
}

/** What a process and those that it makes may do at most: of the first process it is what its container grants. */
export function boundOf(pid: number): string[] {
  return capabilitiesIn(readFileSync(`/proc/${pid}/status`, 'utf8'), 'CapBnd');
}

/**
 * A process is restored with the capabilities that it had, and only with those: what its new container grants beyond them is
 * dropped, what it does not grant cannot be given.
 */
export function grantFindings(service: readonly string[], here: readonly string[]): Finding[] {
  const missing = service.filter((name) => !here.includes(name));
  if (missing.length === 0) return [];
  return [
    {
      severity: 'error',
      id: 'capabilities.missing',
      what: `The destination's container lacks ${missing.join(', ')}, which the service has.`,
      why: 'Processes are restored with the capabilities that they had.',
      mend: 'Grant both containers the same: engines differ in what they grant by themselves (docs/service-level.md).',
    },
  ];
}

/** Supplementary groups of a process, as they stand in its status. */
export function groupsOf(pid: number): string[] {
  return groupsIn(readFileSync(`/proc/${pid}/status`, 'utf8'));
}

export function groupsIn(status: string): string[] {
  const text = /^Groups:[ \t]*(.*)$/m.exec(status)?.[1] ?? '';
  return text.split(' ').filter((group) => group !== '');
}

const named = (groups: readonly string[]): string => (groups.length === 0 ? 'none' : groups.join(', '));

/** CRIU makes the processes with the groups of the init, and would change them only where it must and may. */
export function groupFindings(service: readonly string[], here: readonly string[]): Finding[] {
  if (service.toSorted().join(' ') === here.toSorted().join(' ')) return [];
  return [
    {
      severity: 'error',
      id: 'groups.differ',
      what: `The service has other supplementary groups (${named(service)}) than the destination's container (${named(here)}).`,
      why: 'Processes are restored with the groups that the container has.',
      mend: 'Start both containers with the same groups, and grant both SETGID, with which the init gives up the one that Docker adds.',
    },
  ];
}

const PTRACE = 'SYS_PTRACE';
/** For choosing process ids; and for bounding sets, which CRIU restores by dropping from them. */
const NEEDED = ['CHECKPOINT_RESTORE', 'SETPCAP'];

/**
 * What a container lacks for giving its service away or for receiving one, as a process in it sees it: /proc/self/status
 * and Yama's ptrace_scope (undefined without Yama).
 */
export function lackOf(status: string, ptraceScope: string | undefined): { problem: string; mend: string } | undefined {
  const effective = capabilitiesIn(status, 'CapEff');
  const missing = NEEDED.filter((name) => !effective.includes(name));
  if (missing.length > 0) {
    return {
      problem: `the container lacks ${missing.map((name) => `CAP_${name}`).join(' and ')}`,
      mend: `Start it with ${missing.map((name) => `--cap-add ${name}`).join(' ')} (Kubernetes: securityContext.capabilities.add).`,
    };
  }
  if (!/^Seccomp:\s*0$/m.test(status)) {
    return {
      problem: 'the container has a seccomp filter, which CRIU could suspend only with CAP_SYS_ADMIN',
      mend: 'Start it with --security-opt seccomp=unconfined (Kubernetes: seccompProfile.type Unconfined).',
    };
  }
  if (ptraceScope === undefined || ptraceScope.trim() === '0' || effective.includes(PTRACE)) return undefined;
  return {
    problem: "this host's kernel lets processes trace only their children (kernel.yama.ptrace_scope is not 0)",
    mend: `Start it with --cap-add ${PTRACE} too, or have the host's administrator set kernel.yama.ptrace_scope to 0.`,
  };
}

import { readFile, statfs } from 'node:fs/promises';
import { arch, release } from 'node:os';
import { z } from 'zod';
import type { Finding } from '#src/drivers/contract.ts';
import { versionAtLeast } from './criu.ts';
import { probeCriu } from './probe.ts';

/** What decides whether a checkpoint of one host can be restored on another. Crosses the trust boundary, so bounded. */
export const hostFingerprintSchema = z.object({
  arch: z.string().max(32),
  kernel: z.string().max(256),
  cpuModel: z.string().max(256),
  /** Flags of /proc/cpuinfo: instructions that a process may have found at its start and gone on to use. */
  cpuFlags: z.array(z.string().max(64)).max(1024),
  /** '' when there is no CRIU. */
  criuVersion: z.string().max(64),
  /** A small program could really be dumped and restored here. */
  criuWorks: z.boolean(),
  criuProblem: z.string().max(2048).optional(),
  criuFeatures: z.record(z.string().max(64), z.boolean()),
  memoryAvailable_bytes: z.int().min(0),
  diskAvailable_bytes: z.int().min(0),
  stagingAvailable_bytes: z.int().min(0),
});
export type HostFingerprint = z.infer<typeof hostFingerprintSchema>;

/**
 * Flags that the kernel or a hypervisor sets for itself; no program executes an instruction because of them, so their
 * absence at the destination harms nobody.
 */
const KERNEL_ONLY = new Set(
  (
    'hypervisor constant_tsc nonstop_tsc tsc_known_freq tsc_reliable arch_perfmon aperfmperf pni dtherm ' +
    'ida arat pln pts hwp epb pti ssbd ibrs ibpb stibp ibrs_enhanced tpr_shadow vnmi flexpriority ept ' +
    'vpid ept_ad vmx svm npt lbrv nrip_save dtes64 cpuid_fault invpcid_single md_clear flush_l1d ' +
    'arch_capabilities spec_ctrl intel_stibp mba cqm cqm_llc cqm_occup_llc cqm_mbm_total cqm_mbm_local ' +
    'rdt_a cat_l3 cdp_l3 nopl xtopology cpuid rep_good acc_power dts acpi ht tm tm2 pbe est monitor smx ' +
    'xtpr pdcm'
  ).split(' '),
);

export function parseCpuInfo(text: string): { model: string; flags: string[] } {
  const model = /^(?:model name|CPU part)\s*:\s*(.+)$/m.exec(text)?.[1] ?? 'unknown';
  const flags = /^(?:flags|Features)\s*:\s*(.+)$/m.exec(text)?.[1] ?? '';
  return { model: model.trim(), flags: flags.trim().split(/\s+/).sort() };
}

export function parseMemoryAvailable(text: string): number {
  return Number(/^MemAvailable:\s+(\d+) kB$/m.exec(text)?.[1] ?? 0) * 1024;
}

async function available_bytes(path: string): Promise<number> {
  const info = await statfs(path);
  return info.bavail * info.bsize;
}

export async function fingerprintHost(paths: { diskDir: string; stagingDir: string }): Promise<HostFingerprint> {
  const { model, flags } = parseCpuInfo(await readFile('/proc/cpuinfo', 'utf8'));
  const probe = await probeCriu({ stateDir: paths.diskDir });
  return {
    arch: arch(),
    kernel: release(),
    cpuModel: model.slice(0, 256),
    cpuFlags: flags.slice(0, 1024),
    criuVersion: probe.version,
    criuWorks: probe.works,
    ...(probe.problem === undefined ? {} : { criuProblem: probe.problem.slice(0, 2048) }),
    criuFeatures: probe.features,
    memoryAvailable_bytes: parseMemoryAvailable(await readFile('/proc/meminfo', 'utf8')),
    diskAvailable_bytes: await available_bytes(paths.diskDir),
    stagingAvailable_bytes: await available_bytes(paths.stagingDir),
  };
}

/** Whether a process frozen on `source` can run on `destination`: CPU, kernel and CRIU. */
export function compareHosts(source: HostFingerprint, destination: HostFingerprint): Finding[] {
  const findings: Finding[] = [];
  if (source.arch !== destination.arch) {
    findings.push({
      severity: 'error',
      id: 'cpu.arch',
      what: `The source is ${source.arch}, the destination ${destination.arch}.`,
      why: 'A running process is made of instructions of one architecture.',
      mend: 'Choose a destination of the same architecture.',
    });
  }
  const missing = source.cpuFlags.filter((flag) => !KERNEL_ONLY.has(flag) && !destination.cpuFlags.includes(flag));
  if (missing.length > 0 && source.arch === destination.arch) {
    findings.push({
      severity: 'error',
      id: 'cpu.flags',
      what: `The destination's CPU (${destination.cpuModel}) lacks ${missing.slice(0, 12).join(', ')}${missing.length > 12 ? ` and ${missing.length - 12} more` : ''}.`,
      why: 'The service may have seen at its start that it can use these instructions; it would die of the first one.',
      mend: 'Choose a destination whose CPU has them.',
    });
  }
  findings.push(...compareCriu(source, destination), ...compareKernels(source, destination));
  return findings;
}

function compareCriu(source: HostFingerprint, destination: HostFingerprint): Finding[] {
  for (const [side, host] of [
    ['source', source],
    ['destination', destination],
  ] as const) {
    if (host.criuVersion !== '' && !host.criuWorks) {
      return [
        {
          severity: 'error',
          id: 'criu.broken',
          what: `CRIU ${host.criuVersion} does not work at the ${side}: ${host.criuProblem ?? 'its trial failed'}`,
          why: 'A small program was dumped and restored there as a trial.',
          mend: `Install CRIU 4.2 or newer on the ${side} (ums doctor says how).`,
        },
      ];
    }
    if (host.criuVersion !== '') continue;
    return [
      {
        severity: 'error',
        id: 'criu.missing',
        what: `The ${side} has no CRIU that starts.`,
        why: 'CRIU dumps and restores the processes.',
        mend: `Install CRIU 4.2 or newer on the ${side} (ums doctor says how).`,
      },
    ];
  }
  if (versionAtLeast(destination.criuVersion, source.criuVersion)) return [];
  return [
    {
      severity: 'error',
      id: 'criu.older',
      what: `CRIU is ${source.criuVersion} at the source and ${destination.criuVersion}, older, at the destination.`,
      why: 'CRIU reads images of older versions, not of newer ones.',
      mend: `Install CRIU ${source.criuVersion} or newer at the destination.`,
    },
  ];
}

function compareKernels(source: HostFingerprint, destination: HostFingerprint): Finding[] {
  if (versionAtLeast(destination.kernel, source.kernel)) return [];
  return [
    {
      severity: 'warning',
      id: 'kernel.older',
      what: `The kernel is ${source.kernel} at the source and ${destination.kernel}, older, at the destination.`,
      why: 'A service that uses something only the newer kernel has cannot be restored.',
      mend: 'If the restore fails, the service goes on at the source; use the same kernel on both then.',
    },
  ];
}

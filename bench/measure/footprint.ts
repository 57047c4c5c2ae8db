import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { agentPids } from '#lab/agents.ts';
import type { Lab } from '#lab/lab.ts';
import { median } from './statistics.ts';

/** What a lab's hosts hold on to; a leak shows as growth from one round trip to the next. */
export interface Footprint {
  processes: number;
  mounts: number;
  interfaces: number;
  /** Open descriptors of the agents. */
  descriptors: number;
  staging_files: number;
  /** Resident memory of the agents: told, not judged. */
  agent_memory_bytes: number;
}

export const LEAKS = ['processes', 'mounts', 'interfaces', 'descriptors', 'staging_files'] as const;

export function footprint(lab: Lab): Footprint {
  const sum: Footprint = {
    processes: 0,
    mounts: 0,
    interfaces: 0,
    descriptors: 0,
    staging_files: 0,
    agent_memory_bytes: 0,
  };
  for (const host of lab.hosts) {
    const pid = host.pid;
    if (pid === undefined) continue;
    sum.processes += host.processes().length;
    sum.mounts += lines(`/proc/${pid}/mountinfo`);
    sum.interfaces += lines(`/proc/${pid}/net/dev`) - 2;
    sum.staging_files += entries(host.path('/run/ums/staging'));
    for (const agent of agentPids(host)) {
      sum.descriptors += readdirSync(`/proc/${agent}/fd`).length;
      sum.agent_memory_bytes +=
        Number(/^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${agent}/status`, 'utf8'))?.[1] ?? 0) * 1024;
    }
  }
  return sum;
}

function lines(path: string): number {
  return readFileSync(path, 'utf8').trimEnd().split('\n').length;
}

function entries(directory: string): number {
  try {
    return readdirSync(directory, { recursive: true, withFileTypes: true }).filter(
      (entry) => join(entry.parentPath, entry.name) !== directory,
    ).length;
  } catch {
    // No migration yet, or none under way: there is no such directory.
    return 0;
  }
}

/** From the median of the first three values to that of the last three: one odd reading is not growth. */
export function growth(values: readonly number[]): number {
  return median(values.slice(-3)) - median(values.slice(0, 3));
}

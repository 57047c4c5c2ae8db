import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';

/** What the fog paper measured with, and what it found: bench/data/papers.json. */
const linkSchema = z.object({ rate_mbit_s: z.number(), rtt_ms: z.number() });
const paperSchema = z.object({
  source: z.string(),
  machine: z.string(),
  state_mb: z.number(),
  request_interval_s: z.number(),
  links: z.record(z.string(), linkSchema),
  dirty_rate_kb_s: z.record(z.string(), z.number()),
  configurations: z.record(z.string(), z.object({ link: z.string(), dirty: z.string() })),
  repetitions: z.int(),
});

export const CONFIGURATIONS = ['A', 'B', 'C', 'D'] as const;
export type ConfigurationName = (typeof CONFIGURATIONS)[number];

export interface Configuration {
  name: ConfigurationName;
  link: string;
  rate: string;
  /** One way. */
  delay_ms: number;
  rtt_ms: number;
  dirty_kb_s: number;
}

export interface Paper {
  source: string;
  machine: string;
  state_mib: number;
  request_interval_s: number;
  repetitions: number;
  configurations: Configuration[];
}

const MIB = 1024 * 1024;

export function readPaper(): Paper {
  const path = join(import.meta.dirname, '..', 'data', 'papers.json');
  const { fog } = z.object({ fog: paperSchema }).parse(JSON.parse(readFileSync(path, 'utf8')));
  return {
    source: fog.source,
    machine: fog.machine,
    // The workload holds whole MiB: 75 MB become 72 MiB, which is 75.5 MB.
    state_mib: Math.ceil((fog.state_mb * 1e6) / MIB),
    request_interval_s: fog.request_interval_s,
    repetitions: fog.repetitions,
    configurations: CONFIGURATIONS.map((name) => {
      const { link: linkName, dirty } = present(fog.configurations, name);
      const link = present(fog.links, linkName);
      return {
        name,
        link: linkName,
        rate: `${link.rate_mbit_s}mbit`,
        delay_ms: link.rtt_ms / 2,
        rtt_ms: link.rtt_ms,
        dirty_kb_s: present(fog.dirty_rate_kb_s, dirty),
      };
    }),
  };
}

function present<Value>(record: Record<string, Value>, name: string): Value {
  const value = record[name];
  if (value === undefined) throw new Error(`papers.json does not know ${name}`);
  return value;
}

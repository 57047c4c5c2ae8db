import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { type Approach, APPROACHES } from '../matrix/plan.ts';

/** What the paper on UMS measured with its prototype: bench/data/papers.json. Seconds. */
const byApproach = z.record(z.enum(APPROACHES), z.number());
const umsSchema = z.object({
  source: z.string(),
  machine: z.string(),
  link: z.object({ rate_mbit_s: z.number() }),
  total_time_s: z.object({ memhog_128_mib: byApproach, memhog_1024_mib: byApproach, processes_8: byApproach }),
  downtime_s: z.object({ yolov3_tiny: byApproach }),
  /** From each of its systems to Kubernetes; null where it could not be done. */
  table_1_total_time_s: z.record(z.enum(APPROACHES), z.record(z.string(), z.number().nullable())),
});

export interface Figures {
  source: string;
  machine: string;
  rate: string;
  /** By approach, and by the system that the service came from. */
  table1: Record<Approach, Record<string, number | null>>;
  /** By what was varied: MiB of memory, processes. */
  memhog: Record<number, Record<Approach, number>>;
  processes: Record<number, Record<Approach, number>>;
  growing: Record<Approach, number>;
}

export function readFigures(): Figures {
  const path = join(import.meta.dirname, '..', 'data', 'papers.json');
  const { ums } = z.object({ ums: umsSchema }).parse(JSON.parse(readFileSync(path, 'utf8')));
  return {
    source: ums.source,
    machine: ums.machine,
    rate: `${ums.link.rate_mbit_s}mbit`,
    table1: ums.table_1_total_time_s,
    memhog: { 128: ums.total_time_s.memhog_128_mib, 1024: ums.total_time_s.memhog_1024_mib },
    processes: { 8: ums.total_time_s.processes_8 },
    growing: ums.downtime_s.yolov3_tiny,
  };
}

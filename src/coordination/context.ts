import { z } from 'zod';
import type { HostFingerprint } from '#src/checkpoint/fingerprint.ts';
import type { Driver, EngineFingerprint, EngineName, Tree } from '#src/drivers/contract.ts';
import { type Specification, specificationSchema } from '#src/drivers/specification.ts';
import type { Logger } from '#src/telemetry/log.ts';
import type { Breakpoints } from './breakpoints.ts';
import type { Journal, Row } from './journal.ts';
import type { PeerPort, TrafficPort } from './ports.ts';

/** What every step of the saga may use; the agent wires it once. */
export interface SagaContext {
  systemName: string;
  /** At which other systems reach this one. */
  peerAddress: string;
  journal: Journal;
  driver: (engine: EngineName) => Driver;
  engines: () => Promise<EngineFingerprint[]>;
  peers: PeerPort;
  traffic: TrafficPort;
  fingerprint: () => Promise<HostFingerprint>;
  /** Directory in memory under which each migration has `<id>/images` and `<id>/work`. */
  stagingRoot: string;
  /** Pages of services that left, for when they come back; a limit of 0 keeps none. */
  pageCaches: { root: string; limit_bytes: number };
  breakpoints: Breakpoints;
  log: Logger;
}

/** Notes in the agent's log when something was done while the service stood still: each part of a downtime can be found. */
export function timed<T>(context: SagaContext, id: string, what: string, work: Promise<T>): Promise<T> {
  const began_ms = performance.now();
  return work.finally(() => {
    const elapsed_ms = Math.round((performance.now() - began_ms) * 10) / 10;
    context.log.debug({ migration: id, what, began_ms: Math.round(began_ms * 10) / 10, elapsed_ms }, 'while frozen');
  });
}

export function specificationOf(row: Row): Specification {
  return specificationSchema.parse(JSON.parse(row.specification));
}

const treesSchema = z.array(
  z.object({
    id: z.string(),
    path: z.string(),
    kind: z.enum(['plain', 'overlay-upper']),
    confined: z.boolean().default(true),
  }),
);

/** The directories that move with the service, as they lie on this side. */
export function treesOf(row: Row): Tree[] {
  return treesSchema.parse(row.data['trees'] ?? []);
}

/** Reports bytes of one copy at most four times a second, and the last count always. */
export function progressReporter(
  context: SagaContext,
  id: string,
  what: string,
  total_bytes: number | null,
): { add: (bytes: number) => void; end: () => void } {
  const started = performance.now();
  let bytes = 0;
  let reported = started;
  const report = () => {
    const elapsed_s = Math.max((performance.now() - started) / 1000, 0.001);
    context.journal.emit(id, {
      event: 'progress',
      state: context.journal.get(id).state,
      what,
      bytes,
      total_bytes,
      rate_bytes_s: bytes / elapsed_s,
    });
  };
  return {
    add: (count) => {
      bytes += count;
      if (performance.now() - reported < 250) return;
      reported = performance.now();
      report();
    },
    end: () => {
      if (bytes > 0) report();
    },
  };
}

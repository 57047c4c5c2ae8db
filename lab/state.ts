import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { z } from 'zod';
import { UmsError } from '#src/telemetry/errors.ts';

/**
 * What a lab remembers between commands: what was asked for. What runs is never remembered but looked up (cgroups,
 * /proc), so that a crash cannot make the two disagree.
 */
export const linkSchema = z.object({
  /** Bits per second from and to each host; null is as fast as the machine can. */
  rate_bps: z.int().positive().nullable(),
  /** One-way delay between any two hosts. */
  delay_ms: z.number().min(0).max(10_000),
  /** Probability in percent that a frame is lost. */
  loss_percent: z.number().min(0).max(100),
});
export type Link = z.infer<typeof linkSchema>;
export const PERFECT_LINK: Link = { rate_bps: null, delay_ms: 0, loss_percent: 0 };

export const hostStateSchema = z.object({ name: z.string(), number: z.int().min(1).max(253) });

export const labStateSchema = z.object({
  version: z.literal(1),
  name: z.string(),
  created_at: z.number(),
  root: z.object({ base: z.string(), work: z.string(), tools: z.string() }),
  node: z.string(),
  hosts: z.array(hostStateSchema),
  link: linkSchema,
  cuts: z.array(z.object({ from: z.string(), to: z.string() })),
});
export type LabState = z.infer<typeof labStateSchema>;

export function readState(path: string): LabState | undefined {
  if (!existsSync(path)) return undefined;
  const parsed = labStateSchema.safeParse(parseJson(readFileSync(path, 'utf8')));
  if (parsed.success) return parsed.data;
  throw new UmsError('UMS_E_LAB', {
    message: `${path} is not the state of a lab that this version knows`,
    fault: 'user',
    mend: 'Take the lab down and up again: ./ums lab down && ./ums lab up',
  });
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

export function writeState(path: string, state: LabState): void {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(`${path}.new`, `${JSON.stringify(state, null, 2)}\n`);
  renameSync(`${path}.new`, path);
}

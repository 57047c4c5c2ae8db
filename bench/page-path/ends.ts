import { readFileSync } from 'node:fs';
import { z } from 'zod';

/** What the bench and the two processes of it tell each other. */
export const settingsSchema = z.object({
  tls: z.boolean(),
  compressible: z.boolean(),
  compression: z.enum(['auto', 'none', 'lz4', 'zstd']),
  dedupe: z.boolean(),
  connections: z.int().min(1).max(32),
  pages: z.int().min(1),
  directory: z.string(),
});
export type Settings = z.infer<typeof settingsSchema>;

export const NAMES = { source: 'bench-source', destination: 'bench-destination' } as const;

export const costSchema = z.object({
  cpu_s: z.number(),
  system_s: z.number(),
  peak_rss_bytes: z.number(),
  elapsed_s: z.number(),
});
export type Cost = z.infer<typeof costSchema>;

/** Where the destination listens: a port of its own, or a token to pair with. */
export const addressSchema = z.object({ port: z.int().optional(), token: z.string().optional() });

export const doneSchema = z.object({ cost: costSchema, figures: z.record(z.string(), z.number()) });

export const messageSchema = z.union([
  z.object({ warm: z.literal(true) }),
  z.object({ address: addressSchema }),
  z.object({ done: doneSchema }),
  z.object({ failed: z.string() }),
]);
export type Message = z.infer<typeof messageSchema>;

/** Moved before anything is measured: a process that has just begun would be charged for the compilation of its code. */
export const WARM_PAGES = 65_536;

export function tell(message: Message): void {
  process.send?.(message);
}

/** What this process spends from now on. */
export class CostMeter {
  readonly #cpu = process.cpuUsage();
  readonly #began = performance.now();

  read(): Cost {
    const { user, system } = process.cpuUsage(this.#cpu);
    const peak = /^VmHWM:\s+(\d+) kB/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1];
    return {
      cpu_s: (user + system) / 1e6,
      system_s: system / 1e6,
      peak_rss_bytes: Number(peak) * 1024,
      elapsed_s: (performance.now() - this.#began) / 1000,
    };
  }
}

/** Runs one end; whatever it fails with is told to the bench. */
export async function runEnd(work: (settings: Settings) => Promise<void>): Promise<void> {
  try {
    await work(settingsSchema.parse(JSON.parse(process.argv[2] ?? '{}')));
  } catch (error) {
    tell({ failed: error instanceof Error ? `${error.message}\n${error.stack ?? ''}` : String(error) });
    process.exitCode = 1;
  }
  process.disconnect?.();
}

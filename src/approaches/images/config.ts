import { z } from 'zod';

/** What an image says of how its program is run: the part of the configuration that OCI and Docker have in common. */
const word = z.string().max(128 * 1024);
const words = z.array(word).max(4096);
const names = z.record(z.string().max(4096), z.unknown());

export const healthcheckSchema = z.object({
  /** ['CMD', …], ['CMD-SHELL', line] or ['NONE']. */
  Test: words.nullish(),
  /** Nanoseconds, as Docker counts. */
  Timeout: z.number().min(0).nullish(),
});

export const imageConfigSchema = z.object({
  Entrypoint: words.nullish(),
  Cmd: words.nullish(),
  Env: words.nullish(),
  WorkingDir: word.nullish(),
  User: z.string().max(256).nullish(),
  StopSignal: z.string().max(32).nullish(),
  Labels: z.record(z.string().max(4096), word).nullish(),
  ExposedPorts: names.nullish(),
  Volumes: names.nullish(),
  Healthcheck: healthcheckSchema.nullish(),
});
export type ImageConfig = z.infer<typeof imageConfigSchema>;

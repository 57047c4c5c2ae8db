import { z } from 'zod';

/** Engines written in Go answer null where a list or a map is empty. */
export const nullableList = <T extends z.ZodType>(item: T) =>
  z
    .array(item)
    .nullish()
    .transform((list) => list ?? []);
export const nullableRecord = <T extends z.ZodType>(value: T) =>
  z
    .record(z.string(), value)
    .nullish()
    .transform((record) => record ?? {});

/**
 * The memory of running processes: what is mapped and present, its content, and which pages they write.
 *
 * Everything is read from outside, from /proc/PID/{maps,pagemap,mem}: nothing is loaded into a program and no page passes
 * through a pipe. A tracker says after each round which pages to read again; docs/design-decisions.md says why there are
 * three kinds of them.
 */
export { FrozenMemory } from './frozen-memory.ts';
export { mappings } from './mappings.ts';
export type { DirtyTracker, FinalPages, Mapping, RoundPages, TrackerKind } from './model.ts';
export { openTracker, type TrackerOptions } from './open-tracker.ts';
export { ProcessMemory } from './process-memory.ts';

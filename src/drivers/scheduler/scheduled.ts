import type { EngineFingerprint, EngineName } from '../contract.ts';
import type { Inspect } from '../docker/schema.ts';
import type { EngineCommands } from '../oci/service-errors.ts';
import type { Specification } from '../specification.ts';

/**
 * A service of a scheduler as it is at this moment: what all of them tell alike. Each scheduler adds what it needs to change
 * the service.
 */
export interface Scheduled {
  /** The scheduler's own, which stays the same whatever becomes of the service's instances. */
  id: string;
  name: string;
  image: string;
  created_at: string;
  state: 'running' | 'stopped';
  /** The container, in Docker on this host, that is or was its instance here. */
  inspect: Inspect | undefined;
}

/** What people read. */
export interface SchedulerWords {
  /** `Swarm`. */
  name: string;
  /** Of what a service is made that runs: `task`. */
  instance: string;
  commands: EngineCommands;
  /** Tells what has become of its instances. */
  look: (name: string) => string;
  /** Why none of its containers is dumped or restored, and what moves instead. */
  why: string;
  mend: string;
}

/** What the driver must be told of one scheduler; all else is the same for them. `Handle` is what the journal keeps. */
export interface Scheduler<Seen extends Scheduled, Handle extends { name: string }> {
  readonly engine: EngineName;
  readonly words: SchedulerWords;
  /** False where a container goes as soon as it has ended: then a stopped service has none to be described by. */
  readonly keepsContainers: boolean;
  /** Between two looks at a service that is starting or ending. */
  readonly look_ms: number;

  fingerprint(): Promise<EngineFingerprint>;
  /** Those with an instance on this host, and those without any that belong here. None where there is no such scheduler. */
  list(): Promise<Seen[]>;
  find(handle: Handle): Promise<Seen | undefined>;
  writeHandle(seen: Seen): string;
  readHandle(text: string): Handle;
  /** Throws, with the reason, for a service of which it could not be said what moves. */
  refuse(seen: Seen): Promise<void>;
  /** Without what the scheduler puts into every container. */
  withoutMarks(specification: Specification): Specification;
  /** Asks for one instance, where it is not asked for already. Refused when somebody else changed the service meanwhile. */
  begin(seen: Seen): Promise<void>;
  /** Asks for no instance: the service is kept, and none is made by itself. */
  end(seen: Seen): Promise<void>;
  remove(seen: Seen): Promise<void>;
  /** In the scheduler's own words, why it does not run. */
  trouble(seen: Seen): string;
}

import { approachOf } from './approach.ts';
import { APPROACH, capsuleOf } from './nested/source.ts';
import type { Found } from './preflight.ts';
import type { MigrateOptions } from './schema.ts';

export interface ChosenWay {
  /** From capsule to capsule, by the agents within. */
  nested: boolean;
  /** One sentence for the user. */
  why: string;
}

/**
 * Which approach a migration takes, from what the service is. One that was asked for and is not possible is refused by the
 * pre-flight, with what would make it possible.
 */
export function wayOf(found: Found, options: Pick<MigrateOptions, 'approach'>): ChosenWay {
  const { name, engine } = found.description.specification;
  const capsule = capsuleOf(found) !== undefined;
  if (options.approach !== 'auto') {
    const why = `${options.approach}, because --approach says so.`;
    return { nested: capsule && options.approach === APPROACH, why };
  }
  if (capsule) {
    return { nested: true, why: `${APPROACH}, because ${name} is a capsule: the agents within move its service.` };
  }
  if (approachOf(engine) === 'service-level') {
    return { nested: false, why: `service-level, because ${name} is asked for in its own container.` };
  }
  return { nested: false, why: `orchestrator-level, because ${name} is an ordinary container of ${engine}.` };
}

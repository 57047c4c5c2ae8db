import type { Finding } from '#src/drivers/contract.ts';
import type { Specification } from '#src/drivers/specification.ts';
import type { Hello } from './messages.ts';
import type { MigrateOptions } from './schema.ts';

/** What is asked of the way a service takes, and what is known about it before anything is touched. */
export interface Way {
  specification: Pick<Specification, 'name' | 'engine'>;
  options: Pick<MigrateOptions, 'approach' | 'engine'>;
  destination: Pick<Hello, 'name' | 'engines'>;
}

/**
 * Why a service cannot take the way that it was asked to take, in words that a person can act on. Nothing is found where
 * it can: what else stands in the way is for the rest of the pre-flight.
 */
export function wayFindings({ specification, options, destination }: Way): Finding[] {
  const { name, engine } = specification;
  const wanted = options.engine ?? engine;
  const theirs = destination.engines.find((each) => each.engine === wanted);
  if (wanted !== engine && theirs?.available !== true) {
    return [
      {
        severity: 'error',
        id: 'engine.missing',
        what: `${destination.name} has no usable ${wanted}.`,
        why: theirs?.problem ?? 'Its agent has no driver for it.',
        mend: theirs?.mend ?? `Choose another engine: ${usable(destination)}.`,
      },
    ];
  }
  if (options.approach === 'service-level') return [serviceLevel(name)];
  if (options.approach === 'container-level') return [notInCapsule(name)];
  return wanted === engine ? [] : [unlike(name, engine, wanted, destination.name)];
}

function usable({ engines }: Way['destination']): string {
  const names = engines.filter((each) => each.available).map((each) => each.engine);
  return names.length === 0 ? 'it has none' : names.join(', ');
}

function unlike(name: string, engine: string, wanted: string, destination: string): Finding {
  return {
    severity: 'error',
    id: 'approach.orchestrator-level',
    what: `${name} is a container of ${engine}: orchestrator-level, it cannot become one of ${wanted} at ${destination}.`,
    why: 'An engine must have made what it shall manage, and what one of them knows of a container is not what another knows.',
    mend: `Choose --engine ${engine}, or run it in a capsule (ums capsule wrap), whose service moves between unlike engines.`,
  };
}

function notInCapsule(name: string): Finding {
  return {
    severity: 'error',
    id: 'approach.container-level',
    what: `${name} does not run in a capsule, so there is no service within it that could be moved.`,
    why: 'Container-level moves what runs within an outer container that carries ums, runc and CRIU.',
    mend: 'Run it in one: ums capsule wrap turns a run line, a compose file or a Pod manifest into its capsuled form.',
  };
}

function serviceLevel(name: string): Finding {
  return {
    severity: 'error',
    id: 'approach.service-level',
    what: `${name} cannot be moved at service-level.`,
    why: 'This version of ums has nothing that would dump a service from within its own container.',
    mend: 'Leave --approach out, or run it in a capsule (ums capsule wrap) and say --approach container-level.',
  };
}

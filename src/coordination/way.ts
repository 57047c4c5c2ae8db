import type { Finding } from '#src/drivers/contract.ts';
import type { Specification } from '#src/drivers/specification.ts';
import { approachOf } from './approach.ts';
import type { Approach, MigrateOptions } from './schema.ts';

/**
 * Why a service cannot take the approach that it was asked to take, in words that a person can act on. Capsules take
 * theirs elsewhere (nested/source.ts), and what one engine cannot take over from another the drivers' translation says.
 */
export function wayFindings(
  { name, engine }: Pick<Specification, 'name' | 'engine'>,
  { approach }: Pick<MigrateOptions, 'approach'>,
): Finding[] {
  if (approachOf(engine) === 'service-level') {
    return approach === 'auto' || approach === 'service-level' ? [] : [onlyByItself(name, approach)];
  }
  if (approach === 'service-level') return [notByItself(name)];
  return approach === 'container-level' ? [notInCapsule(name)] : [];
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

function notByItself(name: string): Finding {
  return {
    severity: 'error',
    id: 'approach.service-level',
    what: `${name} cannot be moved at service-level from here.`,
    why: 'Service-level moves are the matter of the agent within a container whose image carries what moves it.',
    mend: 'Make such an image with ums image build migratable, and ask the agent in its container (docs/service-level.md).',
  };
}

function onlyByItself(name: string, approach: Approach): Finding {
  return {
    severity: 'error',
    id: `approach.${approach}`,
    what: `${name} can be moved by the agent in its own container only at service-level.`,
    why: 'That agent has no authority over the engine that runs the container.',
    mend: "Leave --approach out, or ask the agent of the container's host.",
  };
}

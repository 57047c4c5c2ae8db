import type { Finding } from '#src/drivers/contract.ts';
import type { Specification } from '#src/drivers/specification.ts';
import type { MigrateOptions } from './schema.ts';

/**
 * Why a service cannot take the approach that it was asked to take, in words that a person can act on. Capsules take
 * theirs elsewhere (nested/source.ts), and what one engine cannot take over from another the drivers' translation says.
 */
export function wayFindings(
  { name }: Pick<Specification, 'name'>,
  { approach }: Pick<MigrateOptions, 'approach'>,
): Finding[] {
  if (approach === 'service-level') return [serviceLevel(name)];
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

function serviceLevel(name: string): Finding {
  return {
    severity: 'error',
    id: 'approach.service-level',
    what: `${name} cannot be moved at service-level.`,
    why: 'This version of ums has nothing that would dump a service from within its own container.',
    mend: 'Leave --approach out, or run it in a capsule (ums capsule wrap) and say --approach container-level.',
  };
}

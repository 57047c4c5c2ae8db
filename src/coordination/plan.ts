import { versionAtLeast } from '#src/checkpoint/criu.ts';
import type { HostFingerprint } from '#src/checkpoint/fingerprint.ts';
import type { Specification } from '#src/drivers/specification.ts';
import type { Choice, TrackerKind } from '#src/decision/index.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { type Plan, planSchema, type Sizes } from './messages.ts';
import type { Row } from './journal.ts';
import type { MigrateOptions, Technique } from './schema.ts';

/**
 * Up to this much memory a frozen dump is sent as CRIU's own images: they are there before a lazy restore would have
 * been set up, and nothing remains to be filled afterwards.
 */
export const IMAGES_MAX_BYTES = 16 * 1024 * 1024;

/** What a host needs so that a service can be dumped without its memory, or restored before its memory is there. */
const LAZY_FEATURES = ['uffd', 'uffd-noncoop'] as const;

/** Why memory cannot travel on the page path between two hosts; undefined when it can. */
export function whyNotLazy(source: HostFingerprint, destination: HostFingerprint): string | undefined {
  for (const [side, host] of [
    ['source', source],
    ['destination', destination],
  ] as const) {
    const missing = LAZY_FEATURES.filter((feature) => host.criuFeatures[feature] !== true);
    if (missing.length > 0) return `CRIU at the ${side} says that ${missing.join(' and ')} do not work there`;
  }
  return undefined;
}

/** Why the memory of this service cannot travel on the page path between any hosts. */
export function whyNotApart({ containers }: Pick<Specification, 'containers'>): string | undefined {
  if (containers === undefined) return undefined;
  return `it has ${containers} containers, and the memory of several moves only while they stand still`;
}

/** How written pages will be found, as far as the host's fingerprint tells; the tracker's own probe decides. */
export function likelyTracker(host: HostFingerprint): TrackerKind {
  if (versionAtLeast(host.kernel, '6.7') && host.criuFeatures['uffd'] === true) return 'written';
  return host.criuFeatures['mem_dirty_track'] === true ? 'soft-dirty' : 'hash';
}

/** A technique, and why it is that one. */
export type Wanted = Pick<Plan, 'technique' | 'why'>;

/** The technique that the user asked for; undefined when the agent shall choose. */
export function askedFor({ technique }: MigrateOptions): Wanted | undefined {
  return technique === 'auto' ? undefined : { technique, why: `${technique}, because --technique says so.` };
}

/** The technique that the agent chooses; where none is possible, cold says why. */
export function chosenFor({ technique, why }: Choice): Wanted {
  return { technique: technique ?? 'cold', why };
}

/** Settles how the memory travels, before anything is touched. Throws UMS_E_TECHNIQUE when what is wanted cannot be. */
export function makePlan({ technique, why }: Wanted, sizes: Sizes, notLazy: string | undefined): Plan {
  if (notLazy !== undefined && technique !== 'cold') throw cannot(technique, notLazy);
  const small = technique === 'cold' && sizes.state_bytes <= IMAGES_MAX_BYTES;
  return { technique, path: notLazy !== undefined || small ? 'images' : 'pages', why };
}

export function planOf(row: Row): Plan {
  return planSchema.parse(row.data['plan']);
}

/** Whether memory is copied in rounds while the service still runs. */
export function hasRounds(technique: Technique): boolean {
  return technique === 'pre-copy' || technique === 'hybrid';
}

/** Whether the service may run at the destination before all of its memory is there. */
export function runsEarly(technique: Technique): boolean {
  return technique === 'post-copy' || technique === 'hybrid';
}

function cannot(technique: Technique, why: string): UmsError {
  return new UmsError('UMS_E_TECHNIQUE', {
    message: `${technique} is not possible here: ${why}.`,
    fault: 'user',
    state: 'Nothing was touched.',
    mend: 'Use --technique cold, or a kernel with userfaultfd on both hosts (ums doctor says what is missing).',
  });
}

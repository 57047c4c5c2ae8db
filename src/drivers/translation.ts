import { UmsError } from '#src/telemetry/errors.ts';
import type { EngineName } from './contract.ts';
import { podmanOfPod, podOfPodman } from './kubernetes/translation.ts';
import type { Specification } from './specification.ts';

/** A service as another engine would describe it, and what it does not have there. */
export interface Translated {
  specification: Specification;
  losses: string[];
}

type Translation = (specification: Specification) => Translated;

/** From one engine to another, where both can run the same processes: a new pair needs one line here. */
const TRANSLATIONS: Partial<Record<EngineName, Partial<Record<EngineName, Translation>>>> = {
  kubernetes: { podman: podmanOfPod },
  podman: { kubernetes: podOfPodman },
};

/** What the destination is told of it. Throws with the reason when the engine there has no words for it. */
export function translate(specification: Specification, engine: EngineName | undefined): Translated {
  const from = specification.engine;
  if (engine === undefined || engine === from) return { specification, losses: [] };
  const translation = TRANSLATIONS[from]?.[engine];
  if (translation !== undefined) return translation(specification);
  const pairs = Object.entries(TRANSLATIONS).flatMap(([one, to]) =>
    Object.keys(to ?? {}).map((other) => `${one} to ${other}`),
  );
  throw new UmsError('UMS_E_SPECIFICATION', {
    message: `${specification.name} is a service of ${from}, and ums cannot make one of ${engine} of it`,
    fault: 'user',
    state: 'Nothing was changed.',
    mend: `It can from ${pairs.join(' and ')}. In a capsule it can move to any engine (docs/container-level.md).`,
  });
}

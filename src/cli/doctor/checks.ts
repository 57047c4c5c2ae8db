/** One thing that the doctor looked at. */
export interface Check {
  /** Stable, like `criu.starts`. */
  id: string;
  group: 'base' | 'criu' | 'kernel' | 'rights' | 'engines' | 'files' | 'techniques';
  what: string;
  status: 'ok' | 'missing' | 'warning' | 'info';
  /** What was seen. */
  seen: string;
  /** How to get it; empty when it is there. */
  mend: string;
}

export function ok(group: Check['group'], id: string, what: string, seen: string): Check {
  return { id, group, what, status: 'ok', seen, mend: '' };
}

export function missing(group: Check['group'], id: string, what: string, seen: string, mend: string): Check {
  return { id, group, what, status: 'missing', seen, mend };
}

export function warning(group: Check['group'], id: string, what: string, seen: string, mend: string): Check {
  return { id, group, what, status: 'warning', seen, mend };
}

/** What each technique stands on. A technique is there when none of these checks is missing. */
export const TECHNIQUES = [
  {
    name: 'cold',
    what: 'cold (memory travels while the service is frozen)',
    needs: [
      'base.linux',
      'criu.there',
      'criu.works',
      'rights.admin',
      'kernel.cgroup2',
      'kernel.overlay',
      'engines.any',
    ],
    planned: false,
  },
  {
    name: 'pre-copy',
    what: 'pre-copy (memory travels before the freeze)',
    needs: ['criu.works', 'criu.feature.pagemap_scan'],
    planned: true,
  },
  {
    name: 'post-copy',
    what: 'post-copy (memory travels after the hand-over)',
    needs: ['criu.works', 'criu.feature.uffd', 'criu.feature.uffd-noncoop', 'kernel.pipes'],
    planned: true,
  },
  {
    name: 'hybrid',
    what: 'hybrid (before and after)',
    needs: ['criu.works', 'criu.feature.uffd', 'criu.feature.uffd-noncoop', 'kernel.pipes'],
    planned: true,
  },
] as const;

/** What the techniques lack, derived from the other checks. */
export function techniqueChecks(checks: readonly Check[]): Check[] {
  const byId = new Map(checks.map((check) => [check.id, check]));
  return TECHNIQUES.map(({ name, what, needs, planned }) => {
    const lacking = needs.filter((id) => byId.get(id)?.status !== 'ok');
    const later = planned ? ' (this version of ums does not use it yet)' : '';
    if (lacking.length === 0)
      return ok('techniques', `techniques.${name}`, what, `everything it needs is here${later}`);
    const seen = `lacks ${lacking.join(', ')}${later}`;
    if (planned) return warning('techniques', `techniques.${name}`, what, seen, '');
    return missing('techniques', `techniques.${name}`, what, seen, 'Mend what is marked above.');
  });
}

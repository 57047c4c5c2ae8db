import type { Journal } from './journal.ts';
import type { MigrationState, Role } from './states.ts';

export type BreakpointPosition = 'before' | 'after';

export interface BreakpointPlace {
  role: Role;
  state: MigrationState;
  point: BreakpointPosition;
  /** Only migrations of the service of this name halt. */
  service?: string | undefined;
}

/**
 * Fault injection: a migration that reaches a breakpoint says so in its events and halts there, so that a test can kill
 * or cut off an agent at an exact place. Without fault injection switched on at the agent's start, none can be set.
 */
export class Breakpoints {
  readonly enabled: boolean;
  readonly #set = new Set<string>();
  readonly #halted = new Map<string, (() => void)[]>();

  constructor(enabled: boolean) {
    this.enabled = enabled;
  }

  set(place: BreakpointPlace): void {
    this.#set.add(key(place));
  }

  /** Takes one breakpoint away and lets go whoever halts there. */
  clear(place: BreakpointPlace): void {
    const cleared = key(place);
    this.#set.delete(cleared);
    for (const release of this.#halted.get(cleared) ?? []) release();
    this.#halted.delete(cleared);
  }

  clearAll(): void {
    this.#set.clear();
    for (const releases of this.#halted.values()) for (const release of releases) release();
    this.#halted.clear();
  }

  /** Returns at once, or, at a breakpoint, when it is cleared. */
  async reach(
    journal: Journal,
    id: string,
    role: Role,
    state: MigrationState,
    point: BreakpointPosition,
  ): Promise<void> {
    if (!this.enabled || this.#set.size === 0) return;
    const { service } = journal.get(id);
    const here = [key({ role, state, point, service }), key({ role, state, point })].find((one) => this.#set.has(one));
    if (here === undefined) return;
    journal.emit(id, { event: 'breakpoint', state, point });
    await new Promise<void>((resolve) => this.#halted.set(here, [...(this.#halted.get(here) ?? []), resolve]));
  }
}

function key(place: BreakpointPlace): string {
  return `${place.role} ${place.state} ${place.point} ${place.service ?? ''}`;
}

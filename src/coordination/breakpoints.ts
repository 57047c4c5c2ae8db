import type { Journal } from './journal.ts';
import type { MigrationState, Role } from './states.ts';

export type BreakpointPosition = 'before' | 'after';

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

  set(role: Role, state: MigrationState, point: BreakpointPosition): void {
    this.#set.add(key(role, state, point));
  }

  /** Takes one breakpoint away and lets go whoever halts there. */
  clear(role: Role, state: MigrationState, point: BreakpointPosition): void {
    const cleared = key(role, state, point);
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
    const here = key(role, state, point);
    if (!this.enabled || !this.#set.has(here)) return;
    journal.emit(id, { event: 'breakpoint', state, point });
    await new Promise<void>((resolve) => this.#halted.set(here, [...(this.#halted.get(here) ?? []), resolve]));
  }
}

function key(role: Role, state: MigrationState, point: BreakpointPosition): string {
  return `${role} ${state} ${point}`;
}

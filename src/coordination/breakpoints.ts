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

  constructor(enabled: boolean) {
    this.enabled = enabled;
  }

  set(role: Role, state: MigrationState, point: BreakpointPosition): void {
    this.#set.add(`${role} ${state} ${point}`);
  }

  clear(): void {
    this.#set.clear();
    for (const release of this.#halted.splice(0)) release();
  }

  readonly #halted: (() => void)[] = [];

  /** Returns at once, or, at a breakpoint, when it is cleared. */
  async reach(
    journal: Journal,
    id: string,
    role: Role,
    state: MigrationState,
    point: BreakpointPosition,
  ): Promise<void> {
    if (!this.enabled || !this.#set.has(`${role} ${state} ${point}`)) return;
    journal.emit(id, { event: 'breakpoint', state, point });
    await new Promise<void>((resolve) => this.#halted.push(resolve));
  }
}

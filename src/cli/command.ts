import type { Command } from 'commander';
import { type ErrorParts, UmsError } from '#src/telemetry/errors.ts';
import { AgentClient } from './client.ts';
import { resolveContext } from './contexts.ts';
import { suggestion } from './suggest.ts';
import { type Io, makeStyle, type Style, wantsColor } from './terminal.ts';

export interface GlobalOptions {
  context?: string;
  json?: boolean;
  color?: boolean;
  quiet?: boolean;
}

/** What every command gets: how to speak to the reader, and the agent. */
export class Cli {
  readonly io: Io;
  readonly json: boolean;
  readonly quiet: boolean;
  readonly style: Style;
  readonly #contextName: string | undefined;

  constructor(io: Io, globals: GlobalOptions) {
    this.io = io;
    this.json = globals.json === true;
    this.quiet = globals.quiet === true;
    this.style = makeStyle(!this.json && wantsColor(io, globals.color !== false));
    this.#contextName = globals.context ?? io.env['UMS_CONTEXT'];
  }

  /** Text for people: nothing with --json. */
  say(text: string): void {
    if (!this.json) this.io.out(text.endsWith('\n') ? text : `${text}\n`);
  }

  /** Text for people that --quiet leaves out. */
  remark(text: string): void {
    if (!this.quiet) this.say(text);
  }

  /** One JSON value on a line: only with --json. */
  emit(value: unknown): void {
    if (this.json) this.io.out(`${JSON.stringify(value)}\n`);
  }

  /** Shows a value once: as JSON, or the way `render` writes it for people. */
  show(value: unknown, render: () => string): void {
    if (this.json) this.emit(value);
    else this.say(render());
  }

  async withAgent<T>(use: (client: AgentClient) => Promise<T>): Promise<T> {
    const client = new AgentClient(await resolveContext(this.#contextName, this.io.env));
    try {
      return await use(client);
    } finally {
      await client.close();
    }
  }
}

/** What a command does with its arguments and options; it returns the exit status. */
export type Action<Args extends unknown[]> = (cli: Cli, ...args: Args) => Promise<number>;

/** Gives an action its Cli and keeps the exit status it returns. The result is the handler that the command has now. */
export interface Runner {
  action<Args extends unknown[]>(command: Command, act: Action<Args>): (...args: Args) => Promise<void>;
}

export function usage(message: string, parts: Partial<ErrorParts> = {}): UmsError {
  return new UmsError('UMS_E_USAGE', { message, fault: 'user', state: 'Nothing was changed.', ...parts });
}

function extended(error: UmsError, hint: string): UmsError {
  if (hint === '') return error;
  const mend = error.mend === '' || /[.!?]$/.test(error.mend) ? error.mend : `${error.mend}.`;
  return new UmsError(error.code, {
    ...error.toReport(),
    mend: `${mend} ${hint}`.trim(),
    cause: error,
  });
}

/** Adds the nearest names to "unknown service" and "unknown system"; the first error stays when those cannot be asked. */
export async function withSuggestions<T>(
  client: AgentClient,
  wanted: { service?: string; system?: string },
  ask: () => Promise<T>,
): Promise<T> {
  try {
    return await ask();
  } catch (thrown) {
    if (!(thrown instanceof UmsError)) throw thrown;
    throw await suggest(client, wanted, thrown);
  }
}

/** The same error, with the nearest names of what it does not know. */
export async function suggest(
  client: AgentClient,
  wanted: { service?: string; system?: string },
  error: UmsError,
): Promise<UmsError> {
  try {
    if (error.code === 'UMS_E_SERVICE_UNKNOWN' && wanted.service !== undefined) {
      const names = (await client.services()).map((service) => service.name);
      return extended(error, suggestion(wanted.service, names, 'Services here'));
    }
    if (error.code === 'UMS_E_SYSTEM_UNKNOWN' && wanted.system !== undefined) {
      const names = (await client.systems()).map((system) => system.name);
      return extended(error, suggestion(wanted.system, names, 'Paired systems'));
    }
    return error;
  } catch {
    // A suggestion is a courtesy: the error that was asked about is the one to show.
    return error;
  }
}

import { UmsError } from '#src/telemetry/errors.ts';
import type { Driver, ServiceState, ServiceSummary } from '../contract.ts';

/** Matches that are named in a message. */
const NAMED_MAX = 5;

/** The commands with which a person lists an engine's containers, gets one to run, and makes a name free. */
export interface EngineCommands {
  list: string;
  /** A sentence without its end, since not everybody starts things by a command. */
  run: (name: string) => string;
  free: (name: string) => string;
}

function commandsOf(command: string): EngineCommands {
  return {
    list: `${command} ps --all`,
    run: (name) => `Start it (${command} start ${name})`,
    free: (name) => `${command} rename ${name} OTHER`,
  };
}

/** A lazy request to a driver that declares that it takes none. */
export function refuseLazy(
  { engine, whyNotLazy }: Pick<Driver, 'engine' | 'whyNotLazy'>,
  request: { lazy?: true },
): void {
  if (request.lazy !== true) return;
  throw new UmsError('UMS_E_TECHNIQUE', {
    message: `A service of ${engine} is not dumped or restored lazily: ${whyNotLazy ?? 'its driver cannot'}`,
    fault: 'ums',
    state: 'Nothing was changed.',
    mend: 'Use --technique cold.',
  });
}

/** What is wrong with a service, in the words of an engine whose commands a person knows. */
export class ServiceErrors {
  readonly #engine: string;
  readonly #commands: EngineCommands;

  /** The name of the engine's command will do where its subcommands are Docker's. */
  constructor(engine: string, commands: string | EngineCommands) {
    this.#engine = engine;
    this.#commands = typeof commands === 'string' ? commandsOf(commands) : commands;
  }

  ambiguous(reference: string, matches: readonly ServiceSummary[]): UmsError {
    return new UmsError('UMS_E_SERVICE_AMBIGUOUS', {
      message: `${reference} fits ${matches.length} ${this.#engine} containers`,
      fault: 'user',
      mend: `Use more of the id or the name: ${matches
        .slice(0, NAMED_MAX)
        .map((match) => match.name)
        .join(', ')}`,
    });
  }

  unknown(reference: string): UmsError {
    return new UmsError('UMS_E_SERVICE_UNKNOWN', {
      message: `${this.#engine} has no container ${reference}`,
      fault: 'user',
      mend: 'See `ums ls` for what runs here.',
    });
  }

  gone(name: string): UmsError {
    return new UmsError('UMS_E_SERVICE_GONE', {
      message: `${name} is no longer there`,
      fault: 'service',
      mend: `Somebody removed it; \`${this.#commands.list}\` shows what is there.`,
    });
  }

  notRunning(name: string, state: ServiceState): UmsError {
    return new UmsError(state === 'stopped' ? 'UMS_E_SERVICE_GONE' : 'UMS_E_SERVICE_NOT_RUNNING', {
      message: `${name} is ${state}, so this cannot be done with it`,
      fault: 'service',
      mend: `${this.#commands.run(name)} and try again.`,
    });
  }

  nameTaken(name: string): UmsError {
    return new UmsError('UMS_E_NAME_TAKEN', {
      message: `A container named ${name} exists already`,
      fault: 'destination',
      state: 'It was left as it is.',
      mend: `Rename or remove it (${this.#commands.free(name)}) and try again.`,
    });
  }

  /** The one service that a name, an id or an id's unambiguous beginning means. */
  find(reference: string, services: readonly ServiceSummary[]): ServiceSummary {
    const matches = services.filter(
      (service) => reference !== '' && (service.name === reference || service.id.startsWith(reference)),
    );
    const exact = matches.find((service) => service.name === reference || service.id === reference);
    if (exact === undefined && matches.length > 1) throw this.ambiguous(reference, matches);
    const found = exact ?? matches[0];
    if (found === undefined) throw this.unknown(reference);
    return found;
  }
}

import { cpus, freemem, release, totalmem } from 'node:os';
import { errorEvent, renderError } from '#src/cli/render-error.ts';
import { makeStyle, type Style } from '#src/cli/terminal.ts';
import { toUmsError } from '#src/telemetry/errors.ts';

/** One figure that was asked for: `ok` says whether it is within its limit. */
export interface BenchCheck {
  name: string;
  value: number;
  limit: number;
  ok: boolean;
}

export function atMost(name: string, value: number, limit: number): BenchCheck {
  return { name, value, limit, ok: value <= limit };
}

export function below(name: string, value: number, limit: number): BenchCheck {
  return { name, value, limit, ok: value < limit };
}

export function atLeast(name: string, value: number, limit: number): BenchCheck {
  return { name, value, limit, ok: value >= limit };
}

/** How a bench or the demo speaks: text for people, or one JSON object a line with the result last. */
export class Reporter {
  readonly json: boolean;
  readonly style: Style;
  readonly #began = performance.now();

  constructor(json: boolean) {
    this.json = json;
    const color = !json && process.stdout.isTTY && (process.env['NO_COLOR'] ?? '') === '';
    this.style = makeStyle(color);
  }

  get elapsed_ms(): number {
    return performance.now() - this.#began;
  }

  say(text: string): void {
    if (!this.json) process.stdout.write(`${text}\n`);
  }

  event(event: string, fields: Record<string, unknown> = {}): void {
    if (this.json) process.stdout.write(`${JSON.stringify({ event, at: Date.now(), ...fields })}\n`);
  }

  /** Shows what went wrong. With --json a result still comes last. */
  failure(thrown: unknown): number {
    const error = toUmsError(thrown);
    if (this.json) {
      process.stdout.write(`${JSON.stringify(errorEvent(error))}\n`);
      process.stdout.write(
        `${JSON.stringify({ event: 'result', status: 'failed', checks: [], error: error.toReport() })}\n`,
      );
    } else {
      process.stderr.write(`\n${renderError(error, this.style, 80)}`);
    }
    return error.exitStatus;
  }
}

export function machine(): Record<string, unknown> {
  return {
    kernel: release(),
    processor: cpus()[0]?.model ?? 'unknown',
    processors: cpus().length,
    memory_bytes: totalmem(),
    free_memory_bytes: freemem(),
    node: process.version,
  };
}

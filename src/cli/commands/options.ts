import { InvalidArgumentError } from 'commander';
import { parseDuration } from '../format.ts';

/** Parsers of option values; commander shows their message beside the option's name. */
export function duration(text: string): number {
  const value = parseDuration(text);
  if (value === undefined) throw new InvalidArgumentError('It must be like 500ms, 30s, 10m or 2h.');
  return value;
}

export function port(text: string): number {
  const value = /^\d{1,5}$/.test(text) ? Number(text) : 0;
  if (value < 1 || value > 65_535) throw new InvalidArgumentError('It must be a port from 1 to 65535.');
  return value;
}

export interface Endpoint {
  address: string;
  port: number;
}

/** "0.0.0.0:6379", "[::]:80" or ":8080" (every address). */
export function endpoint(text: string): Endpoint {
  const match = /^(?:\[([^\]]+)\]|([^:]*)):(\d{1,5})$/.exec(text);
  if (match === null) throw new InvalidArgumentError('It must be ADDRESS:PORT, for example 0.0.0.0:6379.');
  const address = match[1] ?? match[2] ?? '';
  return { address: address === '' ? '0.0.0.0' : address, port: port(match[3] ?? '') };
}

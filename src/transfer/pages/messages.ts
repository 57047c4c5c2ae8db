import { z } from 'zod';
import { errorReportSchema, UmsError } from '#src/telemetry/errors.ts';
import { decodeRanges, encodeRanges } from './frames.ts';
import { type PageRange, pagesFailed, type SpaceName, spaceNameSchema } from './model.ts';

/** What frames other than pages carry as meta. */

const GREETING_BYTES = 36;
const epochSchema = z.int().min(1);

export interface Greeting {
  /** 32 hexadecimal digits. */
  readonly session: string;
  /** Larger for each connection of the same index. */
  readonly epoch: number;
  readonly index: number;
  readonly wantsCache: boolean;
}

export function encodeGreeting(greeting: Greeting): Buffer {
  const out = Buffer.alloc(GREETING_BYTES);
  out.write(greeting.session, 0, 16, 'hex');
  out.writeDoubleLE(greeting.epoch, 16);
  out.writeUInt32LE(greeting.index, 24);
  out.writeUInt32LE(greeting.wantsCache ? 1 : 0, 28);
  return out;
}

export function decodeGreeting(meta: Buffer): Greeting {
  const epoch = meta.length === GREETING_BYTES ? epochSchema.safeParse(meta.readDoubleLE(16)) : undefined;
  if (epoch === undefined || !epoch.success) throw pagesFailed('the greeting of a connection is malformed');
  return {
    session: meta.toString('hex', 0, 16),
    epoch: epoch.data,
    index: meta.readUInt32LE(24),
    wantsCache: meta.readUInt32LE(28) === 1,
  };
}

/** A demand names its space: it may come before the sender has given the space a number. */
export function encodeDemand(name: SpaceName, ranges: readonly PageRange[]): Buffer {
  const text = Buffer.from(name, 'utf8');
  const prefix = Buffer.alloc(2 + text.length);
  prefix.writeUInt16LE(text.length, 0);
  text.copy(prefix, 2);
  return encodeRanges(ranges, prefix);
}

export function decodeDemand(meta: Buffer): { name: SpaceName; ranges: PageRange[] } {
  const length = meta.length < 2 ? 0 : meta.readUInt16LE(0);
  const name = spaceNameSchema.safeParse(meta.toString('utf8', 2, Math.min(meta.length, 2 + length)));
  if (!name.success) throw pagesFailed('a demand names no set of pages');
  return { name: name.data, ranges: decodeRanges(meta.subarray(2 + length)) };
}

export function encodeFailure(error: UmsError): Buffer {
  return Buffer.from(JSON.stringify(error.toReport()));
}

export function decodeFailure(meta: Buffer): UmsError {
  try {
    return UmsError.fromReport(errorReportSchema.parse(JSON.parse(meta.toString('utf8'))));
  } catch {
    return pagesFailed('the destination gave up for a reason that cannot be read', 'destination');
  }
}

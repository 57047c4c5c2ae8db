import { z } from 'zod';
import { UmsError, toUmsError } from '#src/telemetry/errors.ts';
import { HashTracker } from './hash-tracker.ts';
import type { DirtyTracker, TrackerKind } from './model.ts';
import { SoftDirtyTracker } from './soft-dirty-tracker.ts';
import { WrittenHelper } from './written-helper.ts';
import { WrittenTracker } from './written-tracker.ts';
import { ZeroFrames } from './zero-frames.ts';

export interface TrackerOptions {
  /** Only this kind. The variable UMS_TRACKER does the same for tests. */
  readonly prefer?: TrackerKind;
  /** Stops the service for a moment, and lets it go on. */
  readonly pause: () => Promise<void>;
  readonly unpause: () => Promise<void>;
}

const kindSchema = z.enum(['written', 'soft-dirty', 'hash']).optional();

/** The best tracker that works here: `fallback` says why the better ones do not. */
export async function openTracker(options: TrackerOptions): Promise<DirtyTracker> {
  const forced = kindSchema.safeParse(process.env['UMS_TRACKER'] || options.prefer);
  if (!forced.success) throw new UmsError('UMS_E_USAGE', { message: 'No such way to track memory.', fault: 'user' });
  const reasons: string[] = [];
  for (const kind of forced.data === undefined ? (['written', 'soft-dirty'] as const) : [forced.data]) {
    if (kind === 'hash') break;
    const opened = kind === 'written' ? await openWritten() : await openSoftDirty(options, reasons);
    if (typeof opened !== 'string') return opened;
    reasons.push(`${kind}: ${opened}`);
  }
  if (forced.data !== undefined && forced.data !== 'hash') throw unavailable(reasons);
  return new HashTracker(reasons.join('; ') || undefined);
}

function unavailable(reasons: readonly string[]): UmsError {
  return new UmsError('UMS_E_PREREQUISITE', {
    message: `Memory cannot be tracked as asked here (${reasons.join('; ')}).`,
    fault: 'user',
    state: 'Nothing was changed.',
    mend: 'Leave the choice of the tracker to ums.',
  });
}

/** Or why it does not work; so with the next. */
async function openSoftDirty(options: TrackerOptions, reasons: readonly string[]): Promise<DirtyTracker | string> {
  const zeros = await ZeroFrames.open();
  if (typeof zeros === 'string') return zeros;
  return new SoftDirtyTracker(zeros, options, reasons.join('; ') || undefined);
}

async function openWritten(): Promise<DirtyTracker | string> {
  const helper = new WrittenHelper();
  try {
    const { payload } = await helper.ask('P');
    if (payload.length === 0) return new WrittenTracker(helper);
    await helper.end();
    return payload.toString('utf8').slice(0, 200);
  } catch (error) {
    await helper.end();
    return toUmsError(error).message;
  }
}

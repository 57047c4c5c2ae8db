import type { SagaContext } from '../context.ts';
import type { Row } from '../journal.ts';
import type { MovingMemory } from './moving-memory.ts';

const TELL_MS = 250;

/** Tells how far the memory is that travels after the freeze, for as long as `work` is at it. */
export async function followed<T>(context: SagaContext, row: Row, moving: MovingMemory, work: Promise<T>): Promise<T> {
  const tell = () => {
    const { bytes, total_bytes, elapsed_ms } = moving.arrived();
    const rate_bytes_s = (bytes * 1000) / Math.max(elapsed_ms, 1);
    const { state } = context.journal.get(row.id);
    context.journal.emit(row.id, { event: 'progress', state, what: 'memory', bytes, total_bytes, rate_bytes_s });
  };
  const telling = setInterval(tell, TELL_MS);
  try {
    return await work;
  } finally {
    clearInterval(telling);
  }
}

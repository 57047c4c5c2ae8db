import { run } from '#src/telemetry/exec.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { requireProgram } from '../oci/runtime.ts';

/**
 * The loopback interface of a pod whose containers arrive one after the other. A connection between two of them has an end
 * that is there already and one that is not yet, and the kernel answers a packet to the latter with a reset. So nothing is
 * delivered there until all are restored: a queue without room takes each packet, as a busy network may, and TCP sends
 * again what had been on its way.
 */
const LIMIT_MS = 10_000;
/** What tc says when there is no such queue. */
const NOT_THERE = 2;

/** Again is harmless. It goes with the pod, if it is not taken away before. */
export async function muteLoopback(namespace: string): Promise<void> {
  if (namespace === '') {
    throw new UmsError('UMS_E_RESTORE', {
      message: 'The pod has no network namespace of its own',
      fault: 'destination',
    });
  }
  await queue(namespace, ['replace', 'dev', 'lo', 'root', 'pfifo', 'limit', '0']);
}

/** `pid` is a process in the namespace. */
export async function unmuteLoopback(pid: number): Promise<void> {
  await queue(`/proc/${pid}/ns/net`, ['del', 'dev', 'lo', 'root'], [0, NOT_THERE]);
}

async function queue(namespace: string, words: string[], okExitCodes = [0]): Promise<void> {
  const [nsenter, tc] = await Promise.all([requireProgram('nsenter'), requireProgram('tc')]);
  await run(nsenter, [`--net=${namespace}`, tc, 'qdisc', ...words], { timeout_ms: LIMIT_MS, okExitCodes });
}

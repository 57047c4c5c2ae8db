/** Slabs that parts were given back of. More are in use only when connections are slow, and then there is no hurry. */
const SLABS_MAX = 4;
const given_bytes = new Map<ArrayBuffer, number>();

/**
 * Gives memory of a chunk that a socket read back at once; nobody may touch the chunk after that. Left to the garbage
 * collector, gigabytes of such buffers make it run through the whole heap again and again, which costs as much as all the
 * rest. Node reads much into a buffer of its own, and less (all that TLS brings) into slabs of 64 KiB that all connections
 * share: those go when every byte of them was given back, and so by nobody who could still need one.
 */
export function giveBack(chunk: Buffer): void {
  const { buffer } = chunk;
  if (!(buffer instanceof ArrayBuffer)) return;
  const given = (given_bytes.get(buffer) ?? 0) + chunk.byteLength;
  if (given < buffer.byteLength) remember(buffer, given);
  else {
    given_bytes.delete(buffer);
    buffer.transfer(0);
  }
}

function remember(buffer: ArrayBuffer, given: number): void {
  given_bytes.set(buffer, given);
  if (given_bytes.size <= SLABS_MAX) return;
  for (const oldest of given_bytes.keys()) {
    // What is left of it is the garbage collector's.
    given_bytes.delete(oldest);
    return;
  }
}

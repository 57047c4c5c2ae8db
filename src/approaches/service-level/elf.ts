import { UmsError } from '#src/telemetry/errors.ts';

const PT_INTERP = 3;
const HEADERS_MAX = 256;

/**
 * Makes a program name another loader, in its own copy. The place for the name cannot grow, so the new one may not be
 * longer than the old. Programs of the image keep the image's loader; a program of ours that used that one would need the
 * image's C library to be the same as ours. Undefined when the program names none: then it needs none.
 */
export function withLoader(program: Buffer, loader: string): Buffer | undefined {
  if (program.length < 64 || program.readUInt32BE(0) !== 0x7f454c46) throw unusable('it is no ELF program');
  if (program[4] !== 2 || program[5] !== 1) throw unusable('it is not a 64-bit little-endian program');
  const offset = Number(program.readBigUInt64LE(32));
  const size = program.readUInt16LE(54);
  const count = program.readUInt16LE(56);
  if (count > HEADERS_MAX || size < 56 || offset + size * count > program.length) throw unusable('its headers are odd');
  for (let at = offset; at < offset + size * count; at += size) {
    if (program.readUInt32LE(at) !== PT_INTERP) continue;
    const start = Number(program.readBigUInt64LE(at + 8));
    const length = Number(program.readBigUInt64LE(at + 32));
    if (start + length > program.length) throw unusable('its headers are odd');
    if (Buffer.byteLength(loader) >= length) throw unusable(`its place for a loader has only ${length} bytes`);
    const changed = Buffer.from(program);
    changed.fill(0, start, start + length);
    changed.write(loader, start);
    return changed;
  }
  return undefined;
}

function unusable(why: string): UmsError {
  return new UmsError('UMS_E_PREREQUISITE', {
    message: `A program cannot be put into an image: ${why}.`,
    fault: 'user',
  });
}

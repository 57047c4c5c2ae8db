/**
 * File names are bytes. Inside this folder a path is a "byte string": a JavaScript string with one character for each
 * byte (latin1), relative to its tree, without a leading "./"; the tree's own directory is ''. That keeps every name
 * that Linux allows, compares and hashes quickly, and costs one byte a character in V8.
 */
export type BytePath = string;

/** Linux's own limit on a path given to a system call, including the final NUL. */
export const PATH_LIMIT_BYTES = 4096;

export function toBytes(path: BytePath): Buffer {
  return Buffer.from(path, 'latin1');
}

export function fromBytes(bytes: Uint8Array): BytePath {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('latin1');
}

/** A path as the rest of the program writes it (UTF-8 text) as a byte string. */
export function fromText(path: string): BytePath {
  return Buffer.from(path, 'utf8').toString('latin1');
}

/** For messages: UTF-8 where it is, with control characters made visible. */
export function toText(path: BytePath): string {
  return JSON.stringify(toBytes(path).toString('utf8')).slice(1, -1);
}

export function join(parent: BytePath, name: BytePath): BytePath {
  return parent === '' ? name : `${parent}/${name}`;
}

export function parentOf(path: BytePath): BytePath {
  const slash = path.lastIndexOf('/');
  return slash < 0 ? '' : path.slice(0, slash);
}

export function nameOf(path: BytePath): BytePath {
  return path.slice(path.lastIndexOf('/') + 1);
}

/** Why a relative path from a peer cannot be accepted, or undefined when it can. */
export function pathProblem(path: BytePath): string | undefined {
  if (path === '') return 'is empty';
  if (path.length >= PATH_LIMIT_BYTES) return `is longer than ${PATH_LIMIT_BYTES - 1} bytes`;
  if (path.includes('\0')) return 'contains a NUL byte';
  if (path.startsWith('/')) return 'is absolute';
  for (const part of path.split('/')) {
    if (part === '' || part === '.' || part === '..') return `has the component "${part}"`;
    if (part.length > 255) return 'has a component longer than 255 bytes';
  }
  return undefined;
}

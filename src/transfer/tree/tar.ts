import { UmsError } from '#src/telemetry/errors.ts';
import type { ChildEnd } from './child.ts';

/**
 * Overlay attributes that tie an upper layer to the lower files and the host it was made on. Without them overlayfs
 * works the same, except that inode numbers may differ; with them it might take a stranger's file for the origin.
 * Kept are those that are part of what the layer says: opaque, redirect, metacopy (with its digest), whiteout, protattr.
 * `upper` and `nlink` belong to the index in the work directory, which does not move.
 */
const HOST_BOUND = ['origin', 'impure', 'nlink', 'upper', 'uuid'].flatMap((name) => [
  `trusted.overlay.${name}`,
  `user.overlay.${name}`,
]);

/**
 * SELinux labels are left to the destination: they name its policy and the categories its engine chose for the new
 * container. ACLs go through --acls, in numbers.
 */
const ATTRIBUTES = [
  '--acls',
  '--xattrs',
  '--xattrs-include=*',
  ...[...HOST_BOUND, 'security.selinux'].map((name) => `--xattrs-exclude=${name}`),
  '--numeric-owner',
  '--quoting-style=escape',
];

/** Half a MiB a read or write: the default of 10 KiB costs as much as the work itself. */
const BLOCKING = '--blocking-factor=1024';

/** Names come on standard input, NUL after each, taken as they are. */
export function packingArguments(root: string, options: { sparse: boolean }): string[] {
  return [
    '--create',
    '--file=-',
    BLOCKING,
    '--format=posix',
    // Access times do not move with a file, and ours are no business of anyone.
    '--pax-option=delete=atime,delete=ctime',
    '--atime-preserve=system',
    ...ATTRIBUTES,
    ...(options.sparse ? ['--sparse'] : []),
    // One file system is the walk's business; tar takes the names it gets and nothing else.
    '--no-recursion',
    `--directory=${root}`,
    '--null',
    '--verbatim-files-from',
    '--no-unquote',
    '--files-from=-',
  ];
}

/** Given to confine.sh, which adds --extract. */
export function unpackingArguments(): string[] {
  return [
    BLOCKING,
    '--read-full-records',
    '--same-owner',
    '--preserve-permissions',
    '--delay-directory-restore',
    '--warning=no-timestamp',
    ...ATTRIBUTES,
  ];
}

/** tar's last line says only that there were others. */
const SUMMARY = /^tar: (Exiting with failure status due to previous errors|Error is not recoverable: exiting now)$/;

/** What a program that goes on working may do to its files while they are read. */
const MOVING =
  /: (file changed as we read it|[Ff]ile removed before we read it|File shrank by [0-9]+ bytes?; padding with zeros|(?:Warning: )?(?:Cannot [a-z_]+|Read error at byte [0-9]+, while reading [0-9]+ bytes): (No such file or directory|Not a directory|Stale file handle|Too many levels of symbolic links))$/;

/** Names cannot imitate these lines: tar escapes line feeds in them, and the reason stands at the end. */
export function isHarmlessWhileLive(line: string): boolean {
  return SUMMARY.test(line) || MOVING.test(line);
}

export function isSummary(line: string): boolean {
  return SUMMARY.test(line);
}

/** tar says of a file system that fills up in the middle of a write only how much it could write. */
const NO_ROOM = /No space left on device|Disk quota exceeded|Wrote only [0-9]+ of [0-9]+ bytes/;

/** The error for a program of ours that did not do all it should, or undefined when it did. */
export function judge(
  end: ChildEnd,
  what: string,
  side: 'source' | 'destination',
  okCodes: readonly number[],
): UmsError | undefined {
  const detail = end.complaints.join('\n');
  const line = end.complaints.find((complaint) => NO_ROOM.test(complaint)) ?? end.complaints[0];
  if (line !== undefined && NO_ROOM.test(line)) {
    return new UmsError('UMS_E_NO_ROOM', {
      message: `${what} ran out of room: ${line}`,
      fault: side,
      mend: 'Free disk space there, raise the quota or move the service to another system.',
      detail,
    });
  }
  const isOk = end.code !== undefined && okCodes.includes(end.code);
  if (isOk && line === undefined) return undefined;
  const how =
    line ?? (end.signal === undefined ? `exit status ${String(end.code)}` : `it was ended by the signal ${end.signal}`);
  return new UmsError('UMS_E_TRANSFER', {
    message: `${what} failed: ${how}`,
    fault: side,
    mend: line?.includes('Operation not permitted')
      ? 'Look for an immutable or append-only file there (lsattr) and clear the flag (chattr -i -a).'
      : 'Look at the file named, then run the migration again.',
    detail,
  });
}

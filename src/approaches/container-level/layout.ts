/** Places inside a capsule. */
export const NODE = '/opt/ums/node/bin/node';
export const APP = '/opt/ums/app';
/** What Node has compiled of it. */
export const COMPILED = '/opt/ums/compiled';
/** The first process of a capsule; the program is `capsule-init.pl` beside this file. */
export const INIT = '/usr/local/sbin/capsule-init';
/** What outlives a restart of the capsule: the service's bundle, and that there was one. */
export const HOME = '/var/lib/ums-capsule';
/** The same in every capsule, so that a service finds its name and its path free wherever it comes to. */
export const SERVICE = 'service';
export const BUNDLE = `${HOME}/${SERVICE}`;
/** Output of the service is the capsule's: what its first process was given for it. */
export const OUTPUT = { out: '/proc/1/fd/1', err: '/proc/1/fd/2' } as const;
export const CAPSULE_IMAGE = 'ums-capsule:latest';

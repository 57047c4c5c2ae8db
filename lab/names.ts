import { homedir } from 'node:os';
import { join, resolve } from 'node:path';
import { UmsError } from '#src/telemetry/errors.ts';

/**
 * Every name that a lab leaves on the machine derives from the lab's and the host's, so that `lab down` finds all of it
 * without having been told, also after a crash that lost the state file.
 */
export const PORT_PREFIX = 'w-';
/** The place on the lab's network that is no host: where clients run. */
export const OUTSIDE = 'outside';
const INTERFACE_NAME_MAX = 15;
const HOSTS_MAX = 32;
const OUTSIDE_NUMBER = 254;

export const LAB_NAME = /^[a-z][a-z0-9-]{0,31}$/;
const HOST_NAME = new RegExp(`^[a-z][a-z0-9-]{0,${INTERFACE_NAME_MAX - PORT_PREFIX.length - 1}}$`);

export function checkLabName(name: string): string {
  if (LAB_NAME.test(name)) return name;
  throw new UmsError('UMS_E_USAGE', {
    message: `"${name}" cannot be the name of a lab`,
    fault: 'user',
    mend: 'Set UMS_LAB to lower-case letters, digits and dashes, beginning with a letter, 32 characters at most.',
  });
}

export function checkHostNames(names: readonly string[]): void {
  const bad = names.find((name) => !HOST_NAME.test(name) || name.endsWith('-') || name === OUTSIDE);
  if (bad !== undefined) {
    throw new UmsError('UMS_E_USAGE', {
      message: `"${bad}" cannot be the name of a test host`,
      fault: 'user',
      mend: 'Use lower-case letters, digits and dashes, beginning with a letter, 13 characters at most.',
    });
  }
  if (names.length > HOSTS_MAX) {
    throw new UmsError('UMS_E_USAGE', {
      message: `${names.length} test hosts are more than ${HOSTS_MAX}`,
      fault: 'user',
      mend: 'Ask for fewer hosts.',
    });
  }
}

/** Hosts are numbered from 1 in the order in which they joined the lab. */
export function hostAddress(number: number): string {
  return `10.77.0.${number}`;
}
export const OUTSIDE_ADDRESS = hostAddress(OUTSIDE_NUMBER);
export const NETWORK_PREFIX_LENGTH = 24;

export function hostMac(number: number): string {
  return `02:75:6d:73:00:${number.toString(16).padStart(2, '0')}`;
}
export const OUTSIDE_MAC = hostMac(OUTSIDE_NUMBER);

/** The end of a host's cable that is plugged into the wire. */
export function wirePort(host: string): string {
  return `${PORT_PREFIX}${host}`;
}

export interface LabPaths {
  /** Holds every lab. */
  base: string;
  root: string;
  state: string;
  lock: string;
  wire: string;
  /** Contexts for the command line: set UMS_CONFIG_DIR to this to speak to this lab's hosts. */
  config: string;
}

export function labPaths(lab: string, env: NodeJS.ProcessEnv = process.env): LabPaths {
  const base = resolve(env['UMS_LAB_DIR'] ?? '/var/lib/ums-lab');
  const root = join(base, lab);
  return {
    base,
    root,
    state: join(root, 'state.json'),
    lock: join(base, `.${lab}.lock`),
    wire: join(root, '.wire'),
    config: join(root, '.config'),
  };
}

export function cacheDir(env: NodeJS.ProcessEnv = process.env): string {
  return resolve(env['UMS_CACHE_DIR'] ?? '/var/cache/ums');
}

export function userConfigDir(env: NodeJS.ProcessEnv = process.env): string {
  return resolve(env['UMS_CONFIG_DIR'] ?? join(homedir(), '.config', 'ums'));
}

/** The lab's control group, beneath the root of the machine's version 2 hierarchy. */
export function cgroupName(lab: string): string {
  return `ums-lab-${lab}`;
}

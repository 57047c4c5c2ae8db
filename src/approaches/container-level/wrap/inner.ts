import { UmsError } from '#src/telemetry/errors.ts';

/** How the capsuled form shall be. */
export interface WrapOptions {
  /** Name of the capsule's image for the engine. */
  capsule: string;
  /** Path, on the host, of an archive of the service's image; without it the capsule pulls the image. */
  archive?: string;
  /** Where other systems reach the capsule; without it its agent's ports are not published. */
  peerAddress?: string;
  peerPort: number;
  pairingPort: number;
}

export interface Wrapped {
  text: string;
  /** What is different now, in words for the user. */
  notes: string[];
}

/** Where the archive of the image lies in the capsule, and volumes: below a directory that nothing of the capsule's uses. */
export const ARCHIVE = '/srv/image.tar';
export function volumeAt(destination: string): string {
  return `/srv/volumes${destination}`;
}

export function imageArguments(options: WrapOptions, image: string): string[] {
  return ['--image', options.archive === undefined ? image : ARCHIVE];
}

export function volumeArgument(destination: string, readOnly: boolean): string[] {
  return ['--volume', `${volumeAt(destination)}:${destination}${readOnly ? ':ro' : ''}`];
}

export function peerEnvironment(options: WrapOptions): Record<string, string> {
  if (options.peerAddress === undefined) return {};
  return {
    UMS_CAPSULE_PEER_ADDRESS: options.peerAddress,
    ...(options.peerPort === 7440 ? {} : { UMS_CAPSULE_PEER_PORT: String(options.peerPort) }),
    ...(options.pairingPort === 7441 ? {} : { UMS_CAPSULE_PAIRING_PORT: String(options.pairingPort) }),
  };
}

export function peerPorts(options: WrapOptions): string[] {
  return [options.peerPort, options.pairingPort].map((port) => `${port}:${port}`);
}

export function cannotWrap(what: string, why: string): UmsError {
  return new UmsError('UMS_E_SPECIFICATION', {
    message: `${what} cannot be wrapped: ${why}`,
    fault: 'user',
    state: 'Nothing was written.',
    mend: 'Take it out and wrap again.',
  });
}

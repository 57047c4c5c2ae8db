/**
 * Every error that `ums` shows to a person, by its stable code. `exit` is the exit status of the command that ends
 * with it (docs/errors.md lists them; a test compares the two both ways).
 *
 * Exit statuses: 1 internal, 2 usage, 3 not found, 4 refused before anything was touched, 5 failed and undone
 * (service runs at its source), 6 needs an operator, 7 cancelled, 8 peer or agent unreachable, 9 not authorised.
 */
export const ERROR_CODES = {
  UMS_E_INTERNAL: { exit: 1, summary: 'A defect in ums itself' },
  UMS_E_USAGE: { exit: 2, summary: 'The command or request is not well-formed' },
  UMS_E_AGENT_UNREACHABLE: { exit: 8, summary: 'No agent answers on the local socket' },
  UMS_E_SERVICE_UNKNOWN: { exit: 3, summary: 'No service of that name on this system' },
  UMS_E_SERVICE_AMBIGUOUS: { exit: 3, summary: 'The name fits several services' },
  UMS_E_SERVICE_BUSY: { exit: 4, summary: 'The service already takes part in a migration' },
  UMS_E_SERVICE_NOT_RUNNING: { exit: 4, summary: 'The service does not run, so it has no state to move' },
  UMS_E_SERVICE_GONE: { exit: 5, summary: 'The service exited or was removed while it was being moved' },
  UMS_E_SYSTEM_UNKNOWN: { exit: 3, summary: 'No paired system of that name' },
  UMS_E_MIGRATION_UNKNOWN: { exit: 3, summary: 'No migration of that id' },
  UMS_E_MIGRATION_STATE: { exit: 4, summary: 'The migration is not in a state in which this can be done' },
  UMS_E_PEER_UNREACHABLE: { exit: 8, summary: 'The other system does not answer' },
  UMS_E_PEER_UNPAIRED: { exit: 9, summary: 'The other system does not know this one' },
  UMS_E_PEER_EXPIRED: { exit: 9, summary: 'The certificate that the other system issued has expired' },
  UMS_E_PEER_REVOKED: { exit: 9, summary: 'The pairing has been revoked' },
  UMS_E_PEER_VERSION: { exit: 4, summary: 'The two agents speak no common protocol version' },
  UMS_E_PEER_MESSAGE: { exit: 5, summary: 'The other system sent a message that is malformed or over a limit' },
  UMS_E_PAIRING_TOKEN: { exit: 9, summary: 'The pairing token is wrong, used or expired' },
  UMS_E_PREFLIGHT: { exit: 4, summary: 'The pre-flight check found a reason not to migrate' },
  UMS_E_NO_ROOM: { exit: 4, summary: 'The destination has too little disk or memory' },
  UMS_E_NAME_TAKEN: { exit: 4, summary: 'The destination already has a container of that name' },
  UMS_E_PORT_TAKEN: { exit: 4, summary: 'A port that the service publishes is in use at the destination' },
  UMS_E_ENGINE: { exit: 5, summary: 'The container engine refused or failed' },
  UMS_E_ENGINE_MISSING: { exit: 4, summary: 'The engine that the service needs is not there' },
  UMS_E_SPECIFICATION: { exit: 4, summary: 'The service uses something that cannot be described or recreated' },
  UMS_E_DUMP: { exit: 5, summary: 'CRIU could not dump the service' },
  UMS_E_RESTORE: { exit: 5, summary: 'CRIU could not restore the service' },
  UMS_E_IMAGE_CORRUPT: { exit: 5, summary: 'A checkpoint image is truncated or altered' },
  UMS_E_TRANSFER: { exit: 5, summary: 'Copying data between the systems failed' },
  UMS_E_UNHEALTHY: { exit: 5, summary: 'The service did not run healthily at the destination' },
  UMS_E_CANCELLED: { exit: 7, summary: 'The migration was cancelled' },
  UMS_E_TIMEOUT: { exit: 5, summary: 'A step took longer than its limit' },
  UMS_E_IN_DOUBT: { exit: 6, summary: 'The peer was lost in the commit window; an operator must choose' },
  UMS_E_HOST_LOST: { exit: 5, summary: 'A host went down and took the memory of the service with it' },
  UMS_E_MEMORY_LOST: { exit: 6, summary: 'Memory that had not arrived can no longer reach the destination' },
  UMS_E_TECHNIQUE: { exit: 4, summary: 'The technique asked for cannot be used between these systems' },
  UMS_E_APPROACH: { exit: 4, summary: 'The approach asked for is not possible for this service' },
  UMS_E_STALLED: { exit: 5, summary: 'Copying could not catch up with what the service changes' },
  UMS_E_FRONTMAN: { exit: 4, summary: 'The Frontman cannot be set up as asked' },
  UMS_E_CHILD: { exit: 5, summary: 'A program that ums runs failed' },
  UMS_E_PREREQUISITE: { exit: 4, summary: 'Something that ums needs is missing on this machine' },
  UMS_E_LAB: { exit: 5, summary: 'The lab could not do what was asked' },
} as const satisfies Record<string, { exit: number; summary: string }>;

export type ErrorCode = keyof typeof ERROR_CODES;

export function isErrorCode(value: string): value is ErrorCode {
  return Object.hasOwn(ERROR_CODES, value);
}

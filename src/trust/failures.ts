import { toUmsError, UmsError } from '#src/telemetry/errors.ts';

export function truncated(from: string): UmsError {
  return new UmsError('UMS_E_TRANSFER', {
    message: `The data from ${from} ended in the middle`,
    fault: 'network',
    mend: `See the log of the agent on ${from}, and whether the network between the systems holds.`,
  });
}

export function silent(from: string, idle_ms: number): UmsError {
  return new UmsError('UMS_E_PEER_UNREACHABLE', {
    message: `${from} has been silent for ${idle_ms} ms`,
    fault: 'network',
    mend: `Check the network between the systems and that the agent on ${from} runs, then try again.`,
  });
}

export function malformed(from: string, what: string, detail?: string): UmsError {
  return new UmsError('UMS_E_PEER_MESSAGE', {
    message: `${from} sent ${what}`,
    fault: 'network',
    mend: 'Check that both systems run versions of ums that go together.',
    ...(detail === undefined ? {} : { detail }),
  });
}

export function unreachable(peer: string, cause: unknown): UmsError {
  const reason = cause instanceof Error ? cause.message : String(cause);
  return new UmsError('UMS_E_PEER_UNREACHABLE', {
    message: `${peer} cannot be reached: ${reason}`,
    fault: 'network',
    mend: `Check the network between the systems and that the agent on ${peer} runs, then try again.`,
    cause,
  });
}

export function unpaired(message: string): UmsError {
  return new UmsError('UMS_E_PEER_UNPAIRED', {
    message,
    fault: 'user',
    mend: 'Pair the two systems again: `ums pair invite` on one, `ums pair join TOKEN` on the other.',
  });
}

export function expired(message: string): UmsError {
  return new UmsError('UMS_E_PEER_EXPIRED', {
    message,
    fault: 'user',
    mend: 'Pair the two systems again: `ums pair invite` on one, `ums pair join TOKEN` on the other.',
  });
}

export function revoked(message: string): UmsError {
  return new UmsError('UMS_E_PEER_REVOKED', {
    message,
    fault: 'user',
    mend: 'If the systems shall work together again, pair them anew.',
  });
}

/** Socket and system-call errors mean that the peer cannot be reached; errors made on purpose keep their meaning. */
export function asConnectionFailure(peer: string, thrown: unknown): UmsError {
  if (thrown instanceof UmsError) return thrown;
  if (!(thrown instanceof Error && 'code' in thrown && typeof thrown.code === 'string')) return toUmsError(thrown);
  const { code } = thrown;
  if (code === 'CERT_HAS_EXPIRED') return expired(`The certificate that ${peer} shows has expired`);
  if (/^(CERT_|UNABLE_TO_|SELF_SIGNED_|DEPTH_ZERO_|ERR_TLS_CERT_|INVALID_CA)/.test(code)) {
    return unpaired(`What answers at the address of ${peer} does not have the certificate it had when it was paired`);
  }
  if (/BAD_RECORD_MAC|DECRYPT/.test(code)) {
    return new UmsError('UMS_E_TRANSFER', {
      message: `Data on the way between this system and ${peer} was altered`,
      fault: 'network',
      mend: 'Try again; if it happens again, something between the systems damages their connections.',
      cause: thrown,
    });
  }
  if (/ALERT_(CERTIFICATE|BAD_CERTIFICATE|UNKNOWN_CA)/.test(code)) {
    return unpaired(`${peer} does not accept the certificate of this system`);
  }
  if (code.startsWith('HPE_')) return malformed(peer, 'a response that is not HTTP as ums speaks it', thrown.message);
  if (code.startsWith('ERR_SSL_'))
    return malformed(peer, 'something other than TLS 1.3 as ums speaks it', thrown.message);
  return unreachable(peer, thrown);
}

import { z } from 'zod';
import { UmsError } from '#src/telemetry/errors.ts';
import { peerNameSchema } from './trust.ts';

export const PAIRING_PROTOCOL = 'ums-pairing/1';
export const PAIRING_MESSAGE_LIMIT_BYTES = 64 * 1024;
const TOKEN_LIMIT = 8192;

export const tokenSchema = z.object({
  v: z.literal(1),
  name: peerNameSchema,
  address: z.string().min(1).max(255),
  port: z.int().min(1).max(65_535),
  /** SHA-256 of the inviting system's authority, in hexadecimal. */
  fingerprint: z.string().regex(/^[0-9a-f]{64}$/),
  secret: z.string().regex(/^[A-Za-z0-9_-]{43}$/),
  expires_at: z.int(),
});
export type Token = z.infer<typeof tokenSchema>;

export function encodeToken(token: Token): string {
  return Buffer.from(JSON.stringify(token)).toString('base64url');
}

export function badToken(message: string): UmsError {
  return new UmsError('UMS_E_PAIRING_TOKEN', {
    message,
    fault: 'user',
    mend: 'Make a new token with `ums pair invite` on the other system and use it before it expires.',
  });
}

export function decodeToken(text: string): Token {
  if (text.length > TOKEN_LIMIT) throw badToken('That is too long for a pairing token');
  let value: unknown;
  try {
    value = JSON.parse(Buffer.from(text.trim(), 'base64url').toString('utf8'));
  } catch {
    throw badToken('That is not a pairing token');
  }
  const parsed = tokenSchema.safeParse(value);
  if (!parsed.success) throw badToken('That is not a pairing token, or a part of it is missing');
  if (parsed.data.expires_at <= Date.now()) throw badToken('The pairing token has expired');
  return parsed.data;
}

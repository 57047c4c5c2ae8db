import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { request } from 'node:https';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { connect, type TLSSocket } from 'node:tls';
import { z } from 'zod';
import { tlsOptions } from '#src/transfer/channel/connect.ts';
import { DATA_PROTOCOL, HTTP_PROTOCOL, TRAILER_LIMIT_BYTES } from '#src/transfer/channel/limits.ts';
import { errorReportSchema } from '#src/telemetry/errors.ts';
import { createLogger } from '#src/telemetry/log.ts';
import { join as joinInvitation } from '#src/trust/join.ts';
import { encodeLength, encodeMessage, receiveMessage } from '#src/trust/messages.ts';
import { ByteReader } from '#src/trust/reader.ts';
import { Trust } from '#src/trust/trust.ts';

/**
 * A peer that misbehaves, run in the lab's network: it has an identity of its own and may be paired like any system, but
 * speaks to the peer port as it likes. Prints one JSON line for each probe.
 *
 *   refusals-peer.ts DIRECTORY NAME join TOKEN
 *   refusals-peer.ts DIRECTORY NAME probe PEER MIGRATION PROBE…
 */
const LIMIT_MS = 15_000;
const OWN_ADDRESS = '10.77.0.254';
const MIB = 1024 * 1024;

export const answerSchema = z.object({
  probe: z.string(),
  /** HTTP's status; 0 on a data stream. */
  status: z.int(),
  error: errorReportSchema.nullable(),
});
export type ProbeAnswer = z.infer<typeof answerSchema>;
type Verdict = Omit<ProbeAnswer, 'probe'>;

interface Target {
  trust: Trust;
  peer: string;
  migration: string;
}

const refusalSchema = z.looseObject({ error: errorReportSchema.optional() });

/** With `claimed` the body is said to be so long and never comes: the answer must not wait for it. */
function post(target: Target, path: string, body: string, claimed?: number): Promise<Verdict> {
  const { trust, peer } = target;
  return new Promise((resolve, reject) => {
    const call = request({
      ...tlsOptions(trust, trust.livePeer(peer), HTTP_PROTOCOL),
      agent: false,
      checkServerIdentity: () => undefined,
      method: 'POST',
      path,
      timeout: LIMIT_MS,
      headers: { 'content-type': 'application/json', 'content-length': claimed ?? Buffer.byteLength(body) },
    });
    let answered = false;
    call.on('response', (response) => {
      answered = true;
      let text = '';
      response.setEncoding('utf8');
      response.on('data', (chunk: string) => (text += chunk));
      response.on('end', () => {
        const { error } = refusalSchema.parse(JSON.parse(text));
        resolve({ status: response.statusCode ?? 0, error: error ?? null });
        call.destroy();
      });
    });
    call.on('timeout', () => call.destroy(new Error('no answer')));
    call.on('error', (error) => {
      if (!answered) reject(error);
    });
    if (claimed === undefined) call.end(body);
    else call.flushHeaders();
  });
}

type Credentials = Pick<ReturnType<typeof tlsOptions>, 'key' | 'cert'>;

/** Sends bytes on a data connection and reads to the first message with an error, or to the end. */
async function stream(target: Target, bytes: Buffer, credentials?: Credentials): Promise<Verdict> {
  const { trust, peer } = target;
  const record = trust.peer(peer);
  if (record === undefined) throw new Error(`not paired with ${peer}`);
  const socket = connect({
    ...tlsOptions(trust, record, DATA_PROTOCOL),
    ...credentials,
    checkServerIdentity: () => undefined,
  });
  const timer = setTimeout(() => socket.destroy(new Error('no answer')), LIMIT_MS);
  try {
    await once(socket, 'secureConnect');
    const reader = new ByteReader(socket, { from: peer });
    socket.write(bytes);
    return await firstError(socket, reader);
  } finally {
    clearTimeout(timer);
    socket.destroy();
  }
}

/** An acceptance may come before the refusal; more than a few messages never do. */
const MESSAGES_MAX = 4;

async function firstError(socket: TLSSocket, reader: ByteReader): Promise<Verdict> {
  for (let message = 0; message < MESSAGES_MAX; message += 1) {
    const { error } = await receiveMessage(reader, TRAILER_LIMIT_BYTES, refusalSchema);
    if (error !== undefined) return { status: 0, error };
    if (socket.destroyed) break;
  }
  return { status: 0, error: null };
}

const header = (value: unknown): Buffer => encodeMessage(value, 64 * MIB);
const EMPTY_BODY = Buffer.concat([encodeLength(0), createHash('sha256').digest()]);
const UNKNOWN_MIGRATION = `m-${'0'.repeat(20)}`;

/** A body of which the digest at its end is not its own. */
function alteredBody(): Buffer {
  const bytes = Buffer.from('what was sent');
  return Buffer.concat([encodeLength(bytes.length), bytes, encodeLength(0), createHash('sha256').digest()]);
}

const PROBES: Record<string, (target: Target) => Promise<Verdict>> = {
  'not-json': (target) => post(target, '/peer/v1/hello', '{"protocol":'),
  'too-large': (target) => post(target, '/peer/v1/hello', '', 9 * MIB),
  'wrong-shape': (target) => post(target, '/peer/v1/migrations', '{"id":7}'),
  'no-such-path': (target) => post(target, '/peer/v1/reboot', '{}'),
  'malformed-id': (target) => post(target, '/peer/v1/migrations/..%2F..%2Fetc/commit', '{}'),
  'unknown-id': (target) => post(target, `/peer/v1/migrations/${UNKNOWN_MIGRATION}/commit`, '{}'),
  'others-migration': (target) => post(target, `/peer/v1/migrations/${target.migration}/give-up`, '{}'),
  'others-commit': (target) => post(target, `/peer/v1/migrations/${target.migration}/commit`, '{}'),
  'unknown-kind': (target) => stream(target, header({ kind: 'reboot' })),
  'header-too-large': (target) => stream(target, header({ kind: 'x'.repeat(MIB) })),
  'header-endless': (target) => stream(target, Buffer.concat([encodeLength(0x7fff_ffff), Buffer.alloc(MIB)])),
  'header-not-json': (target) => stream(target, Buffer.concat([encodeLength(4), Buffer.from('{{{{')])),
  'header-wrong-shape': (target) => stream(target, header({ kind: 'memory', migration: '../etc', index: -1 })),
  'others-trees': (target) => stream(target, header({ kind: 'trees', migration: target.migration })),
  'others-memory': (target) => stream(target, header({ kind: 'memory', migration: target.migration, index: 0 })),
  'others-images': (target) => stream(target, header({ kind: 'images', migration: target.migration })),
  'others-pages': (target) => stream(target, header({ kind: 'pages', migration: target.migration })),
  'others-criu-images': (target) =>
    stream(target, Buffer.concat([header({ kind: 'criu-images', migration: target.migration }), EMPTY_BODY])),
  'altered-body': (target) => stream(target, Buffer.concat([header({ kind: 'ums.ping' }), alteredBody()])),
  /** Its certificate is its own, which nobody here has issued. */
  unpaired: (target) => {
    const { key, cert } = target.trust.serverCredentials();
    return stream(target, header({ kind: 'reboot' }), { key, cert });
  },
};

async function main([directory = '', name = '', verb, ...args]: readonly string[]): Promise<void> {
  const db = new DatabaseSync(join(directory, 'stranger.db'));
  const log = createLogger('silent');
  const trust = await Trust.open({
    directory: join(directory, 'trust'),
    db,
    name,
    address: OWN_ADDRESS,
    port: 7440,
    log,
  });
  if (verb === 'join') {
    await joinInvitation(trust, args[0] ?? '');
    return;
  }
  const [peer = '', migration = '', ...probes] = args;
  for (const probe of probes) {
    const run = PROBES[probe];
    if (run === undefined) throw new Error(`no probe ${probe}`);
    const answer: ProbeAnswer = { probe, ...(await run({ trust, peer, migration })) };
    process.stdout.write(`${JSON.stringify(answer)}\n`);
  }
}

if (import.meta.main) await main(process.argv.slice(2));

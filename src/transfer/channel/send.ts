import { Readable } from 'node:stream';
import { UmsError } from '#src/telemetry/errors.ts';
import { asConnectionFailure, malformed } from '#src/trust/failures.ts';
import { receiveMessage } from '#src/trust/messages.ts';
import { answerSchema } from './answer.ts';
import type { DataConnection } from './connect.ts';
import { BodyWriter } from './frames.ts';
import { aliveInterval_ms, TRAILER_LIMIT_BYTES } from './limits.ts';

export interface SendOptions {
  readonly idle_ms: number;
  /** Called with the size of each piece that was taken from the body. */
  readonly onBytes?: ((bytes: number) => void) | undefined;
}

/** Sends a body over an accepted connection and waits for the receiver's word on it. */
export async function sendBody(
  connection: DataConnection,
  body: AsyncIterable<Uint8Array>,
  options: SendOptions,
): Promise<{ trailer: unknown; bytes: number }> {
  const { socket, reader, peer } = connection;
  const writer = new BodyWriter(socket, { peer, digest: true });
  const timer = setInterval(() => writer.tick(), aliveInterval_ms(options.idle_ms));
  const progress = { bytes: 0, sent: false, stopped: false };
  const pump = async (): Promise<void> => {
    for await (const chunk of body) {
      if (progress.stopped) return;
      progress.bytes += chunk.length;
      const room = writer.write(chunk);
      options.onBytes?.(chunk.length);
      if (room !== undefined) await room;
    }
    writer.end();
    progress.sent = true;
  };
  const answer = receiveMessage(reader, TRAILER_LIMIT_BYTES, answerSchema).then((message) => {
    if ('error' in message) throw UmsError.fromReport(message.error);
    if (!progress.sent) throw malformed(peer, 'its last word before the end of the stream');
    return message.trailer;
  });
  try {
    // A receiver that gives up says so early, and a source that never ends must not keep that from being heard.
    const trailer = await Promise.race([pump().then(() => answer), answer]);
    socket.end();
    return { trailer, bytes: progress.bytes };
  } catch (error) {
    progress.stopped = true;
    if (body instanceof Readable) body.destroy();
    // When the connection broke under the writer, what the receiver said last is the better reason.
    const failure = socket.destroyed ? await lastWord(answer, peer, error) : error;
    socket.destroy();
    throw failure;
  } finally {
    clearInterval(timer);
  }
}

async function lastWord(answer: Promise<unknown>, peer: string, thrown: unknown): Promise<unknown> {
  try {
    await answer;
    return asConnectionFailure(peer, thrown);
  } catch (error) {
    return asConnectionFailure(peer, error);
  }
}

import { once } from 'node:events';
import { createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { z } from 'zod';
import { openSystem } from '#src/transfer/channel/channel.fixture.ts';
import { PageReceiver } from '#src/transfer/pages/page-receiver.ts';
import { PageStore } from '#src/transfer/pages/store.ts';
import { CostMeter, NAMES, runEnd, tell } from './ends.ts';

const streamSchema = z.object({ kind: z.literal('bench.pages'), index: z.int() });

/** The end that receives, in a process of its own as an agent would be. */
await runEnd(async (settings) => {
  const store = await PageStore.open(join(settings.directory, 'store'));
  const receiver = PageReceiver.open(store);
  const stop = settings.tls ? await listenTls(receiver) : await listenPlain(receiver);
  await once(process, 'message');
  const meter = new CostMeter();
  tell({ warm: true });
  await receiver.sealed();
  const { final_pages, frames_refused } = receiver.status();
  const cost = meter.read();
  tell({ done: { cost, figures: { final_pages, frames_refused } } });
  await once(process, 'message');
  await receiver.close();
  store.close();
  await stop();
});

async function listenPlain(receiver: PageReceiver): Promise<() => Promise<void>> {
  const server = createServer({ noDelay: true }, (socket: Socket) => {
    // The first byte says which connection it is.
    socket.once('readable', () => {
      const index: unknown = socket.read(1);
      if (Buffer.isBuffer(index)) void receiver.attach(index.readUInt8(0), socket);
      else socket.destroy();
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  if (address === null || typeof address === 'string') throw new Error('no port');
  tell({ address: { port: address.port } });
  return async () => {
    server.close();
  };
}

async function listenTls(receiver: PageReceiver): Promise<() => Promise<void>> {
  const system = await openSystem(NAMES.destination);
  system.server.handleDuplex('bench.pages', streamSchema, ({ header }, stream) =>
    receiver.attach(header.index, stream),
  );
  const { token } = await system.invitations.invite({ ttl_s: 60 });
  tell({ address: { token } });
  return () => system.close();
}

import { once } from 'node:events';
import { connect } from 'node:net';
import type { Duplex } from 'node:stream';
import { z } from 'zod';
import { openSystem } from '#src/transfer/channel/channel.fixture.ts';
import { PageSender } from '#src/transfer/pages/sender.ts';
import { join } from '#src/trust/join.ts';
import { addressSchema, CostMeter, NAMES, runEnd, tell, WARM_PAGES } from './ends.ts';
import { SyntheticMemory } from './memory.ts';

const SPACE = 'process:1';
const WARM_SPACE = 'process:2';

/** The end that sends, in a process of its own as an agent would be. */
await runEnd(async (settings) => {
  const [message] = z
    .tuple([z.unknown()])
    .rest(z.unknown())
    .parse(await once(process, 'message'));
  const { port, token } = addressSchema.parse(message);
  const link = token === undefined ? plain(port ?? 0) : await tls(token);
  const memory = new SyntheticMemory(settings.pages, settings.compressible);
  const sender = await PageSender.start({
    open: link.open,
    connections: settings.connections,
    compression: settings.compression,
    dedupe: settings.dedupe ? 'auto' : 'off',
    reconnect_ms: 5000,
  });
  const warm = [{ first: 0, count: WARM_PAGES }];
  sender.addSpace(WARM_SPACE, new SyntheticMemory(WARM_PAGES, settings.compressible));
  await sender.send(WARM_SPACE, warm, 'final');
  tell({ warm: true });
  await once(process, 'message');
  const meter = new CostMeter();
  sender.addSpace(SPACE, memory);
  const ranges = [{ first: 0, count: settings.pages }];
  const report = await sender.send(SPACE, ranges, 'final');
  await sender.seal([
    { name: WARM_SPACE, ranges: warm },
    { name: SPACE, ranges },
  ]);
  const cost = meter.read();
  const { wire_bytes, reference_bytes, zero_bytes } = report;
  const { link_bytes_s, rtt_ms, compressibility, frames_resent } = sender.stats();
  const figures = { wire_bytes, reference_bytes, zero_bytes, link_bytes_s, rtt_ms, compressibility, frames_resent };
  tell({ done: { cost, figures } });
  await sender.close();
  await link.close();
});

interface Link {
  open: (index: number) => Promise<Duplex>;
  close: () => Promise<void>;
}

function plain(port: number): Link {
  return {
    open: async (index) => {
      const socket = connect({ host: '127.0.0.1', port, noDelay: true });
      await once(socket, 'connect');
      socket.write(Buffer.from([index]));
      return socket;
    },
    close: async () => undefined,
  };
}

async function tls(token: string): Promise<Link> {
  const system = await openSystem(NAMES.source);
  await join(system.trust, token);
  return {
    open: async (index) =>
      system.client.openDuplex(NAMES.destination, Object.assign({ kind: 'bench.pages' }, { index })),
    close: () => system.close(),
  };
}

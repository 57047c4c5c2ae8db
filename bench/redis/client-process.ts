import { createInterface } from 'node:readline';
import { countLost, digest, fill, identity } from './data.ts';
import { requestSchema, type Request } from './protocol.ts';
import { Writer } from './writer.ts';

/** A client of its own process: HOST PORT; requests on standard input, answers on standard output (protocol.ts). */
const [host = '', portText = ''] = process.argv.slice(2);
const port = Number(portText);
let writer: Writer | undefined;

async function answer(request: Request): Promise<object> {
  switch (request.do) {
    case 'fill':
      return fill(host, port, request.bytes);
    case 'digest':
      return { digest: await digest(host, port, request.keys) };
    case 'identity':
      return identity(host, port);
    case 'start':
      writer = new Writer(host, port, request.perSecond);
      writer.start();
      return {};
    case 'gap':
      return {
        ...(writer?.longestGap(request.from, request.to) ?? { gap_ms: 0, began_at: request.from }),
        median_ms: writer?.medianGap() ?? 0,
        reconnects: writer?.reconnects ?? 0,
      };
    case 'acknowledged':
      return { acknowledged: writer?.acknowledged ?? 0 };
    case 'lost': {
      const acknowledged = writer?.acknowledged ?? 0;
      return { acknowledged, lost: await countLost(host, port, acknowledged) };
    }
    case 'stop':
      await writer?.stop();
      return { acknowledged: writer?.acknowledged ?? 0 };
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  let said: object;
  try {
    said = { answer: await answer(requestSchema.parse(JSON.parse(line))) };
  } catch (thrown) {
    said = { failed: thrown instanceof Error ? thrown.message : String(thrown) };
  }
  process.stdout.write(`${JSON.stringify(said)}\n`);
}
process.exit(0);

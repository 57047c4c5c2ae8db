import { connect, createServer } from 'node:net';
import { expect, test } from 'vitest';
import { FakePeer, LineService, SERVICE, until } from './frontmen.fixture.ts';

test('a Frontman whose address is taken at the agent’s start listens as soon as it can', async () => {
  const alpha = await new FakePeer('alpha', new Map()).start();
  const service = new LineService([]);
  service.frozen = false;
  const squatter = createServer();
  try {
    await service.listen(0, '127.0.0.2');
    const port = service.port;
    alpha.address = '127.0.0.2';
    const listen = { address: '127.0.0.1', port };
    await alpha.frontmen.add({ service: 'x', listen, port, mode: 'tcp', holdLimit_ms: 1000 }, SERVICE);
    await alpha.frontmen.close();
    await new Promise<void>((resolve) => squatter.listen(port, '127.0.0.1', resolve));
    await alpha.restart();
    expect(alpha.frontmen.list()).toHaveLength(1);
    await new Promise<void>((resolve) => squatter.close(() => resolve()));
    let text = '';
    const attempt = (): void => {
      const socket = connect({ host: '127.0.0.1', port });
      socket.on('connect', () => socket.write('again\n'));
      socket.on('data', (chunk) => {
        text += chunk.toString();
        socket.destroy();
      });
      socket.on('error', () => setTimeout(attempt, 20));
    };
    attempt();
    await until(() => text === 'again\n', 'an answer through the Frontman');
  } finally {
    await alpha.close();
    await service.close();
    squatter.close();
  }
});

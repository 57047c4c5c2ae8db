import type { FastifyInstance, FastifyRequest } from 'fastify';
import { z } from 'zod';
import {
  criuImagesStreamSchema,
  commitRequestSchema,
  filledRequestSchema,
  imagesStreamSchema,
  imageStreamSchema,
  memoryStreamSchema,
  pagesStreamSchema,
  peerCheckRequestSchema,
  prepareRequestSchema,
  receivedRequestSchema,
  reserveRequestSchema,
  restoreRequestSchema,
  surrenderRequestSchema,
  treesStreamSchema,
} from '#src/coordination/messages.ts';
import { arrivedRequestSchema, receiveRequestSchema } from '#src/coordination/nested/messages.ts';
import { arrived, checkReceiving, dropReceiver, receive } from '#src/coordination/nested/receiving.ts';
import { checkHere } from '#src/coordination/preflight.ts';
import { migrationIdSchema } from '#src/coordination/schema.ts';
import { peerStreamHeaderSchema } from '#src/frontman/contract.ts';
import { peerOf } from '#src/transfer/channel/index.ts';
import type { PeerServer } from '#src/transfer/channel/index.ts';
import type { Agent } from './agent.ts';
import { parseInput } from './http.ts';

const idParams = z.object({ id: migrationIdSchema });

function id(request: FastifyRequest): string {
  return parseInput(idParams, request.params, 'UMS_E_PEER_MESSAGE').id;
}

function peerName(request: FastifyRequest): string {
  const peer = peerOf(request.raw.socket);
  if (peer === undefined) throw new Error('a request reached the peer API without an authenticated peer');
  return peer.name;
}

const receiving = (request: FastifyRequest) => parseInput(receiveRequestSchema, request.body, 'UMS_E_PEER_MESSAGE');

/** What other agents may ask of this one (docs/protocol.md). They are known by their certificate before a byte is parsed. */
export function registerPeerApi(app: FastifyInstance, agent: Agent): void {
  const { destination } = agent.coordinator;
  app.post('/peer/v1/hello', () => agent.hello());
  app.post('/peer/v1/check', async (request) => {
    const body = parseInput(peerCheckRequestSchema, request.body, 'UMS_E_PEER_MESSAGE');
    const result = await checkHere(agent.context, body.specification, body.fingerprint, body.sizes);
    return { findings: result.findings, needsImage: result.needsImage };
  });
  app.post('/peer/v1/capsules/check', async (request) => ({
    findings: await checkReceiving(agent.context, receiving(request)),
  }));
  app.post('/peer/v1/capsules/receive', (request) => receive(agent.context, receiving(request)));
  app.post('/peer/v1/capsules/arrived', (request) => {
    const { serviceUid, ...wanted } = parseInput(arrivedRequestSchema, request.body, 'UMS_E_PEER_MESSAGE');
    return arrived(agent.context, wanted, serviceUid);
  });
  app.post('/peer/v1/capsules/drop', async (request) => ({
    capsule: await dropReceiver(agent.context, receiving(request)),
  }));
  app.post('/peer/v1/migrations', (request) =>
    destination.reserve(peerName(request), parseInput(reserveRequestSchema, request.body, 'UMS_E_PEER_MESSAGE')),
  );
  app.post('/peer/v1/migrations/:id/create', (request) => destination.create(peerName(request), id(request)));
  app.post('/peer/v1/migrations/:id/prepare', (request) =>
    destination.prepare(
      peerName(request),
      id(request),
      parseInput(prepareRequestSchema, request.body ?? {}, 'UMS_E_PEER_MESSAGE').descriptors,
    ),
  );
  app.post('/peer/v1/migrations/:id/received', (request) =>
    destination.received(
      peerName(request),
      id(request),
      parseInput(receivedRequestSchema, request.body, 'UMS_E_PEER_MESSAGE'),
    ),
  );
  app.post('/peer/v1/migrations/:id/restore', (request) =>
    destination.restore(
      peerName(request),
      id(request),
      parseInput(restoreRequestSchema, request.body ?? {}, 'UMS_E_PEER_MESSAGE'),
    ),
  );
  app.post('/peer/v1/migrations/:id/commit', (request) =>
    destination.commit(
      peerName(request),
      id(request),
      parseInput(commitRequestSchema, request.body ?? {}, 'UMS_E_PEER_MESSAGE').only_whole,
    ),
  );
  app.post('/peer/v1/migrations/:id/give-up', (request) => destination.giveUp(peerName(request), id(request)));
  app.post('/peer/v1/migrations/:id/settle', (request) => destination.settle(peerName(request), id(request)));
  app.post('/peer/v1/migrations/:id/filled', (request) =>
    destination.filled(
      peerName(request),
      id(request),
      parseInput(filledRequestSchema, request.body, 'UMS_E_PEER_MESSAGE').wait_ms,
    ),
  );
  app.post('/peer/v1/migrations/:id/surrender', (request) =>
    destination.surrender(
      peerName(request),
      id(request),
      parseInput(surrenderRequestSchema, request.body ?? {}, 'UMS_E_PEER_MESSAGE').thawed,
    ),
  );
  app.post('/peer/v1/migrations/:id/begin-anew', (request) => destination.beginAnew(peerName(request), id(request)));
  app.post('/peer/v1/migrations/:id/finish', (request) => destination.finish(peerName(request), id(request)));
}

/** The data plane: what arrives as streams. */
export function registerStreams(server: PeerServer, agent: Agent): void {
  const { destination } = agent.coordinator;
  server.handleOneway('engine-image', imageStreamSchema, async ({ peer, header, body, signal }) => {
    await destination.receiveImage(peer, header.migration, body, signal);
    return {};
  });
  server.handleDuplex(
    'trees',
    treesStreamSchema,
    ({ peer, header, signal }, stream) => destination.receiveTrees(peer, header.migration, stream, signal),
    (peer, header) => destination.admitTrees(peer, header.migration),
  );
  server.handleOneway('criu-images', criuImagesStreamSchema, async ({ peer, header, body }) => {
    await destination.receiveCriuImages(peer, header.migration, body);
    return {};
  });
  server.handleDuplex(
    'pages',
    pagesStreamSchema,
    ({ peer, header }, socket) => destination.receivePages(peer, header.migration, socket),
    (peer, header) => destination.admitPages(peer, header.migration),
  );
  server.handleDuplex(
    'images',
    imagesStreamSchema,
    async ({ peer, header }, socket) => {
      await destination.receiveCriuImages(peer, header.migration, socket);
      socket.end();
    },
    (peer, header) => destination.admitPages(peer, header.migration),
  );
  server.handleDuplex(
    'memory',
    memoryStreamSchema,
    ({ peer, header }, socket) => destination.attachMemory(peer, header.migration, header.index, socket),
    (peer, header) => destination.admitMemory(peer, header.migration),
  );
  server.handleDuplex('frontman', peerStreamHeaderSchema, async ({ peer, header }, socket) => {
    const closed = new Promise<void>((resolve) => socket.once('close', () => resolve()));
    agent.frontmen.acceptPeerStream(peer, header, socket);
    await closed;
  });
}

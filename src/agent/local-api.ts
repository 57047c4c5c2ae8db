import type { FastifyInstance, FastifyReply } from 'fastify';
import { z } from 'zod';
import type { BreakpointPlace } from '#src/coordination/breakpoints.ts';
import { isMigrationState } from '#src/coordination/states.ts';
import { predictionRecords } from '#src/coordination/forecast.ts';
import { predictionError } from '#src/decision/index.ts';
import { memoryBytes, findService } from '#src/coordination/preflight.ts';
import type { ServiceSummary } from '#src/drivers/contract.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import type { Agent } from './agent.ts';
import {
  checkRequestSchema,
  frontmanRequestSchema,
  inviteRequestSchema,
  joinRequestSchema,
  migrateRequestSchema,
  recoverRequestSchema,
  type Service,
  type ServiceDetail,
} from './api.ts';
import { parseInput } from './http.ts';
import { renderMetrics } from './metrics.ts';

const idParams = z.object({ id: z.string().max(64) });
const nameParams = z.object({ name: z.string().max(64) });
const refParams = z.object({ ref: z.string().min(1).max(512) });
const breakpointSchema = z.object({
  role: z.enum(['source', 'destination']),
  state: z.string().max(32),
  point: z.enum(['before', 'after']),
  service: z.string().max(512).optional(),
});

/** The routes of api.ts. */
export function registerLocalApi(app: FastifyInstance, agent: Agent): void {
  systems(app, agent);
  services(app, agent);
  migrations(app, agent);
  frontmen(app, agent);
  app.get('/metrics', async (_request, reply) => {
    void reply.type('text/plain; version=0.0.4');
    return renderMetrics(agent);
  });
  if (agent.context.breakpoints.enabled) debug(app, agent);
}

function systems(app: FastifyInstance, agent: Agent): void {
  app.get('/v1/system', () => agent.describeSystem());
  app.get('/v1/systems', () => agent.describePeers());
  app.post('/v1/pairing/invite', (request) => {
    const { ttl_s } = parseInput(inviteRequestSchema, request.body ?? {}, 'UMS_E_USAGE');
    return agent.invite(ttl_s);
  });
  app.post('/v1/pairing/join', (request) => {
    const { token } = parseInput(joinRequestSchema, request.body, 'UMS_E_USAGE');
    return agent.join(token);
  });
  app.post('/v1/systems/:name/rotate', (request) => agent.rotate(nameParams.parse(request.params).name));
  app.delete('/v1/systems/:name', async (request) => {
    await agent.revoke(nameParams.parse(request.params).name);
    return {};
  });
}

function toService(agent: Agent, summary: ServiceSummary): Service {
  return { ...summary, migration: agent.context.journal.lockHolder(summary.engine, summary.id) ?? null };
}

async function listServices(agent: Agent): Promise<Service[]> {
  const services: Service[] = [];
  for (const engine of await agent.context.engines()) {
    if (!engine.available) continue;
    const found = await agent.context.driver(engine.engine).list();
    services.push(...found.map((summary) => toService(agent, summary)));
  }
  return services;
}

async function serviceDetail(agent: Agent, reference: string): Promise<ServiceDetail> {
  const { driver, description } = await findService(agent.context, reference);
  return {
    ...toService(agent, description.summary),
    specification: { ...description.specification },
    memory_bytes: await memoryBytes(await driver.processes(description.handle)),
    trees: description.trees,
    losses: description.losses,
  };
}

function services(app: FastifyInstance, agent: Agent): void {
  app.get('/v1/services', () => listServices(agent));
  app.get('/v1/services/:ref', (request) => serviceDetail(agent, refParams.parse(request.params).ref));
  app.post('/v1/services/:ref/:verb', async (request) => {
    const { ref, verb } = refParams.extend({ verb: z.enum(['stop', 'start', 'remove']) }).parse(request.params);
    const { driver, description } = await findService(agent.context, ref);
    agent.coordinator.refuseIfHeld(driver.engine, description.summary.id);
    if (verb === 'stop') await driver.stop(description.handle);
    else if (verb === 'start') await driver.start(description.handle);
    else await driver.remove(description.handle, { volumes: false });
    return {};
  });
}

function migrations(app: FastifyInstance, agent: Agent): void {
  const { journal } = agent.context;
  app.post('/v1/check', (request) => {
    const { service, to, options } = parseInput(checkRequestSchema, request.body, 'UMS_E_USAGE');
    return agent.coordinator.check(service, to, options);
  });
  app.post('/v1/migrations', (request) => {
    const { service, to, options } = parseInput(migrateRequestSchema, request.body, 'UMS_E_USAGE');
    return agent.coordinator.migrate(service, to, options);
  });
  app.get('/v1/predictions', () => predictionError(predictionRecords(journal)));
  app.get('/v1/migrations', () => journal.all().map((row) => journal.view(row.id)));
  app.get('/v1/migrations/:id', (request) => journal.view(idParams.parse(request.params).id));
  app.get('/v1/migrations/:id/events', (request, reply) => {
    const { id } = idParams.parse(request.params);
    const { after } = z.object({ after: z.coerce.number().int().min(0).default(0) }).parse(request.query);
    return streamEvents(agent, id, after, reply);
  });
  app.post('/v1/migrations/:id/cancel', (request) => agent.coordinator.cancel(idParams.parse(request.params).id));
  app.post('/v1/migrations/:id/recover', (request) => {
    const { choice } = parseInput(recoverRequestSchema, request.body, 'UMS_E_USAGE');
    return agent.coordinator.recoverByOperator(idParams.parse(request.params).id, choice);
  });
}

/** Events so far, then live ones until the migration has ended. A reader that is slow is cut off, not waited for. */
const UNREAD_LIMIT_BYTES = 8 * 1024 * 1024;

async function streamEvents(agent: Agent, id: string, after: number, reply: FastifyReply): Promise<void> {
  const { journal } = agent.context;
  journal.get(id);
  reply.hijack();
  const { raw } = reply;
  raw.writeHead(200, { 'content-type': 'application/x-ndjson', 'cache-control': 'no-store' });
  let last = after;
  const write = (event: { seq: number; event: string }) => {
    if (event.seq <= last || raw.writableEnded) return;
    last = event.seq;
    raw.write(`${JSON.stringify(event)}\n`);
    if (raw.writableLength > UNREAD_LIMIT_BYTES) raw.destroy();
    if (event.event === 'ended') raw.end();
  };
  // Subscribed first, so that nothing can fall between the past and the present; `last` drops what comes twice.
  const stop = journal.subscribe(id, write);
  raw.once('close', stop);
  raw.on('error', stop);
  for (const event of journal.events(id, after)) write(event);
  if (!raw.writableEnded && journal.get(id).ended_at !== null) raw.end();
}

function frontmen(app: FastifyInstance, agent: Agent): void {
  app.get('/v1/frontmen', () => agent.listFrontmen());
  app.post('/v1/frontmen', (request) => {
    const wanted = parseInput(frontmanRequestSchema, request.body, 'UMS_E_USAGE');
    return agent.addFrontman(wanted);
  });
  app.delete('/v1/frontmen/:id', async (request) => {
    await agent.frontmen.remove(idParams.parse(request.params).id);
    return {};
  });
}

function breakpointIn(body: unknown): BreakpointPlace {
  const { role, state, point, service } = parseInput(breakpointSchema, body, 'UMS_E_USAGE');
  if (isMigrationState(state)) return { role, state, point, service };
  throw new UmsError('UMS_E_USAGE', { message: `There is no state ${state}.`, fault: 'user' });
}

function debug(app: FastifyInstance, agent: Agent): void {
  const { breakpoints } = agent.context;
  app.post('/v1/debug/breakpoints', (request) => {
    breakpoints.set(breakpointIn(request.body));
    return {};
  });
  app.post('/v1/debug/breakpoints/clear', (request) => {
    if (request.body === undefined || request.body === null) {
      breakpoints.clearAll();
      return {};
    }
    breakpoints.clear(breakpointIn(request.body));
    return {};
  });
}

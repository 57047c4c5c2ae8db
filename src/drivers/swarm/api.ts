import { z } from 'zod';
import { call } from '../docker/api.ts';
import { required } from '../oci/answers.ts';

/** What Docker's interface tells of Swarm, typed. Only a manager of the swarm answers. */
const CHANGE_LIMIT_MS = 60_000;
/** Docker 25: from here on a service may go without a seccomp filter. */
const VERSION = '/v1.44';

const infoSchema = z.object({
  Swarm: z.object({ NodeID: z.string(), LocalNodeState: z.string(), ControlAvailable: z.boolean() }),
});
export type SwarmInfo = z.infer<typeof infoSchema>['Swarm'];

/** A service goes back to Swarm as it came, but for what is changed, so nothing of its description is left out. */
const serviceSchema = z.object({
  ID: z.string(),
  CreatedAt: z.string(),
  Version: z.object({ Index: z.number() }),
  Spec: z.looseObject({
    Name: z.string(),
    Mode: z.looseObject({ Replicated: z.looseObject({ Replicas: z.number().default(1) }).optional() }),
    TaskTemplate: z.looseObject({ ContainerSpec: z.looseObject({ Image: z.string() }).optional() }),
  }),
});
export type Service = z.infer<typeof serviceSchema>;

const taskSchema = z.object({
  ID: z.string(),
  CreatedAt: z.string(),
  NodeID: z.string().default(''),
  DesiredState: z.string(),
  Status: z.object({
    State: z.string(),
    Err: z.string().default(''),
    ContainerStatus: z.object({ ContainerID: z.string().default(''), PID: z.number().default(0) }).nullish(),
  }),
});
export type Task = z.infer<typeof taskSchema>;

export async function swarmInfo(): Promise<SwarmInfo> {
  return required(await call('/info', infoSchema)).Swarm;
}

export async function listServices(): Promise<Service[]> {
  return required(await call('/services', serviceSchema.array()));
}

export async function inspectService(id: string): Promise<Service | undefined> {
  return await call(`/services/${encodeURIComponent(id)}`, serviceSchema, { absent: [404] });
}

/** The tasks of a service, the newest first: those that have ended are kept for a while. */
export async function tasksOf(service: string): Promise<Task[]> {
  const filters = encodeURIComponent(JSON.stringify({ service: [service] }));
  const tasks = required(await call(`/tasks?filters=${filters}`, taskSchema.array()));
  return tasks.toSorted((left, right) => right.CreatedAt.localeCompare(left.CreatedAt));
}

export async function createService(spec: object): Promise<void> {
  const limits = { method: 'POST', limit_ms: CHANGE_LIMIT_MS, version: VERSION } as const;
  await call('/services/create', z.unknown(), { ...limits, body: spec });
}

/** So many tasks from now on. Refused by Swarm when somebody else changed the service meanwhile. */
export async function scale({ ID: id, Version: version, Spec: spec }: Service, replicas: number): Promise<void> {
  const body = { ...spec, Mode: { ...spec.Mode, Replicated: { ...spec.Mode.Replicated, Replicas: replicas } } };
  const limits = { method: 'POST', limit_ms: CHANGE_LIMIT_MS, version: VERSION } as const;
  await call(`/services/${id}/update?version=${version.Index}`, z.unknown(), { ...limits, body });
}

export async function removeService(id: string): Promise<void> {
  await call(`/services/${id}`, z.unknown(), { method: 'DELETE', limit_ms: CHANGE_LIMIT_MS, absent: [404] });
}

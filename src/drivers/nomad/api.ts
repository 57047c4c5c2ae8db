import { z } from 'zod';
import { required } from '../oci/answers.ts';
import { HttpApi, SchedulerRefusal } from '../scheduler/http.ts';
import { type NomadAccess, readAccess } from './access.ts';
import {
  type Allocation,
  allocationsSchema,
  type Job,
  jobSchema,
  type Node,
  nodeSchema,
  type Self,
  selfSchema,
} from './schema.ts';

/** Nomad's HTTP interface, version 1, as the agent of this host answers it. */
const NOT_FOUND = 404;
/** Nomad has no status of its own for this refusal, only these words. */
const CONFLICT = 'Enforcing job modify index';

/** Which job: names are unique within a namespace. */
export interface JobName {
  id: string;
  namespace: string;
}

export class NomadApi {
  readonly namespace: string;
  readonly #http: HttpApi;

  constructor({ address, token, namespace }: NomadAccess, limit_ms?: number) {
    this.namespace = namespace;
    this.#http = new HttpApi(
      {
        answerer: { name: 'Nomad', supported: 'Nomad 1.4 and later are', version: 'nomad version' },
        address,
        headers: token === undefined ? {} : { 'x-nomad-token': token },
        mend: 'See whether its agent runs on this host (nomad agent-info), and whether NOMAD_ADDR leads to it.',
        mendRights:
          'Give the agent a token by NOMAD_TOKEN that has agent:read, node:read, and list-jobs, read-job and submit-job of its namespace.',
      },
      limit_ms,
    );
  }

  /** As the environment says at this moment. */
  static here(): NomadApi {
    return new NomadApi(readAccess());
  }

  async self(): Promise<Self> {
    return required(await this.#http.call('/v1/agent/self', selfSchema));
  }

  /** The node that the agent of this host is; undefined where it is a server alone. */
  async ownNode(): Promise<Node | undefined> {
    const id = (await this.self()).stats.client?.node_id;
    return id === undefined ? undefined : required(await this.#http.call(`/v1/node/${id}`, nodeSchema));
  }

  /** In all namespaces, those that have ended too, as long as Nomad keeps them. */
  async allocationsOn(node: string): Promise<Allocation[]> {
    return required(await this.#http.call(`/v1/node/${node}/allocations`, allocationsSchema));
  }

  /** On all nodes. */
  async allocationsOf(job: JobName): Promise<Allocation[]> {
    return (await this.#http.call(jobPath(job, '/allocations'), allocationsSchema, { absent: [NOT_FOUND] })) ?? [];
  }

  job(job: JobName): Promise<Job | undefined> {
    return this.#http.call(jobPath(job), jobSchema, { absent: [NOT_FOUND] });
  }

  /**
   * False when the job is no longer the one of this index; with 0, when there is one of its name already. Then nothing of it
   * is overwritten.
   */
  async register(job: { Namespace: string; [field: string]: unknown }, index: number): Promise<boolean> {
    const namespace = encodeURIComponent(job.Namespace);
    const body = { Job: job, EnforceIndex: true, JobModifyIndex: index };
    try {
      await this.#http.call(`/v1/jobs?namespace=${namespace}`, z.unknown(), { method: 'POST', body });
      return true;
    } catch (error) {
      if (error instanceof SchedulerRefusal && error.said.includes(CONFLICT)) return false;
      throw error;
    }
  }

  /** Its allocations end. With `purge` nothing of it is kept. Absent already is success. */
  async deregister(job: JobName, purge: boolean): Promise<void> {
    await this.#http.call(jobPath(job, '', `&purge=${purge}`), z.unknown(), { method: 'DELETE', absent: [NOT_FOUND] });
  }
}

function jobPath({ id, namespace }: JobName, below = '', query = ''): string {
  return `/v1/job/${encodeURIComponent(id)}${below}?namespace=${encodeURIComponent(namespace)}${query}`;
}

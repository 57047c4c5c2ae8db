import { type Socket, createConnection } from 'node:net';
import { z } from 'zod';
import { UmsError } from '#src/telemetry/errors.ts';
import { type Call, ContainerdRefusal, decode, encode, GrpcClient, STATUS } from './grpc.ts';
import {
  type Any,
  type Container,
  containerAnswerSchema,
  containersSchema,
  contentInfoSchema,
  type Image,
  imageAnswerSchema,
  imagesSchema,
  mountsSchema,
  readSchema,
  type RuncOptions,
  runcOptionsSchema,
  type SnapshotMount,
  snapshotSchema,
  type Task,
  taskAnswerSchema,
  tasksSchema,
} from './schema.ts';

/** containerd's interface on its socket, typed. It is asked every time; nothing is remembered here. */
export interface ContainerdSettings {
  address: string;
  namespace: string;
}

/** As `ctr` is told of them. */
export function settingsFromEnvironment(): ContainerdSettings {
  return {
    address: process.env['CONTAINERD_ADDRESS'] || '/run/containerd/containerd.sock',
    namespace: process.env['CONTAINERD_NAMESPACE'] || 'default',
  };
}

const QUERY_LIMIT_MS = 30_000;
/** Milliseconds for what changes something; starting a task waits for its runtime. */
const CHANGE_LIMIT_MS = 120_000;
/** Configurations and manifests of images; layers are streamed. */
const BLOB_LIMIT_BYTES = 8 * 1024 * 1024;
const RUNC_OPTIONS = 'containerd.runc.v1.Options';

/** Descriptors of a task's input and output, as containerd takes them: paths of pipes, a URI, or nothing. */
export interface TaskStdio {
  stdin: string;
  stdout: string;
  stderr: string;
}

export class ContainerdClient {
  readonly namespace: string;
  readonly address: string;
  readonly #grpc: GrpcClient;

  constructor({ address, namespace }: ContainerdSettings) {
    this.address = address;
    this.namespace = namespace;
    this.#grpc = new GrpcClient(address);
  }

  async version(): Promise<string> {
    const answer = await this.#ask('version.v1.Version/Version', ['Empty', {}], 'VersionResponse');
    return z.object({ version: z.string() }).parse(answer).version;
  }

  async container(id: string): Promise<Container | undefined> {
    const answer = await this.#find('containers.v1.Containers/Get', ['Id', { id }], 'ContainerMessage');
    return answer === undefined ? undefined : this.#parse(containerAnswerSchema, answer).container;
  }

  async containers(): Promise<Container[]> {
    const answer = await this.#ask('containers.v1.Containers/List', ['Empty', {}], 'ListContainersResponse');
    return this.#parse(containersSchema, answer).containers;
  }

  async createContainer(container: Omit<Container, 'created_at'>, lease: string): Promise<void> {
    const request: Call['request'] = ['ContainerMessage', { container }];
    await this.#change('containers.v1.Containers/Create', request, 'ContainerMessage', lease);
  }

  /** Changes only the fields of these paths. */
  async updateContainer(container: Partial<Container> & { id: string }, paths: readonly string[]): Promise<void> {
    const request: Call['request'] = ['UpdateContainerRequest', { container, update_mask: { paths } }];
    await this.#change('containers.v1.Containers/Update', request, 'ContainerMessage');
  }

  /** Absent already is success. */
  async deleteContainer(id: string): Promise<void> {
    await this.#unlessMissing(this.#change('containers.v1.Containers/Delete', ['Id', { id }], 'Empty'));
  }

  async task(id: string): Promise<Task | undefined> {
    const request: Call['request'] = ['TaskId', { container_id: id }];
    const answer = await this.#find('tasks.v1.Tasks/Get', request, 'TaskMessage');
    return answer === undefined ? undefined : this.#parse(taskAnswerSchema, answer).process;
  }

  async tasks(): Promise<Task[]> {
    return this.#parse(tasksSchema, await this.#ask('tasks.v1.Tasks/List', ['Empty', {}], 'ListTasksResponse')).tasks;
  }

  async createTask(id: string, rootfs: readonly SnapshotMount[], stdio: TaskStdio, options?: Any): Promise<void> {
    const value = { container_id: id, rootfs, ...stdio, ...(options === undefined ? {} : { options }) };
    await this.#change('tasks.v1.Tasks/Create', ['CreateTaskRequest', value], 'Empty');
  }

  async startTask(id: string): Promise<void> {
    await this.#change('tasks.v1.Tasks/Start', ['TaskId', { container_id: id }], 'Empty');
  }

  /** One that has ended already is success. */
  async killTask(id: string, signal: number, all: boolean): Promise<void> {
    const request: Call['request'] = ['KillRequest', { container_id: id, signal, all }];
    await this.#unlessMissing(this.#change('tasks.v1.Tasks/Kill', request, 'Empty'));
  }

  /** Absent already is success; one that has not ended is refused. */
  async deleteTask(id: string): Promise<void> {
    await this.#unlessMissing(this.#change('tasks.v1.Tasks/Delete', ['TaskId', { container_id: id }], 'Empty'));
  }

  async snapshotParent(snapshotter: string, key: string): Promise<string | undefined> {
    return (await this.snapshot(snapshotter, key))?.parent;
  }

  async snapshot(snapshotter: string, key: string): Promise<z.infer<typeof snapshotSchema>['info'] | undefined> {
    const request: Call['request'] = ['Snapshot', { snapshotter, key }];
    const answer = await this.#find('snapshots.v1.Snapshots/Stat', request, 'StatSnapshotResponse');
    return answer === undefined ? undefined : this.#parse(snapshotSchema, answer).info;
  }

  async snapshotMounts(snapshotter: string, key: string): Promise<SnapshotMount[]> {
    const request: Call['request'] = ['Snapshot', { snapshotter, key }];
    return this.#parse(mountsSchema, await this.#ask('snapshots.v1.Snapshots/Mounts', request, 'MountsResponse'))
      .mounts;
  }

  async prepareSnapshot(
    snapshot: { snapshotter: string; key: string; parent: string; labels: Record<string, string> },
    lease: string,
  ): Promise<void> {
    const method = 'snapshots.v1.Snapshots/Prepare';
    await this.#change(method, ['PrepareSnapshotRequest', snapshot], 'MountsResponse', lease);
  }

  async labelSnapshot(snapshotter: string, name: string, labels: Record<string, string>): Promise<void> {
    const request: Call['request'] = [
      'UpdateSnapshotRequest',
      { snapshotter, info: { name, labels }, update_mask: { paths: ['labels'] } },
    ];
    await this.#change('snapshots.v1.Snapshots/Update', request, 'Empty');
  }

  /** Absent already is success. */
  async removeSnapshot(snapshotter: string, key: string): Promise<void> {
    const request: Call['request'] = ['Snapshot', { snapshotter, key }];
    await this.#unlessMissing(this.#change('snapshots.v1.Snapshots/Remove', request, 'Empty'));
  }

  async image(name: string): Promise<Image | undefined> {
    const answer = await this.#find('images.v1.Images/Get', ['Name', { name }], 'ImageMessage');
    return answer === undefined ? undefined : this.#parse(imageAnswerSchema, answer).image;
  }

  async images(): Promise<Image[]> {
    return this.#parse(imagesSchema, await this.#ask('images.v1.Images/List', ['Empty', {}], 'ListImagesResponse'))
      .images;
  }

  /** False when something has that name already. */
  async createImage(image: Image): Promise<boolean> {
    try {
      await this.#change('images.v1.Images/Create', ['ImageMessage', { image }], 'Empty');
      return true;
    } catch (error) {
      if (error instanceof ContainerdRefusal && error.status === STATUS.alreadyExists) return false;
      throw error;
    }
  }

  async deleteImage(name: string): Promise<void> {
    await this.#unlessMissing(this.#change('images.v1.Images/Delete', ['Name', { name }], 'Empty'));
  }

  async hasBlob(digest: string): Promise<boolean> {
    const answer = await this.#find('content.v1.Content/Info', ['Digest', { digest }], 'InfoResponse');
    return answer !== undefined && this.#parse(contentInfoSchema, answer).info.digest === digest;
  }

  /** A small blob, whole; undefined when it is not here. */
  async readBlob(digest: string): Promise<Buffer | undefined> {
    const chunks: Buffer[] = [];
    let bytes = 0;
    try {
      for await (const chunk of this.streamBlob(digest, undefined, QUERY_LIMIT_MS)) {
        chunks.push(chunk);
        bytes += chunk.length;
        if (bytes > BLOB_LIMIT_BYTES) throw tooLong(digest);
      }
    } catch (error) {
      if (error instanceof ContainerdRefusal && error.status === STATUS.notFound) return undefined;
      throw error;
    }
    return Buffer.concat(chunks);
  }

  async *streamBlob(digest: string, signal: AbortSignal | undefined, limit_ms: number): AsyncGenerator<Buffer> {
    const method = 'content.v1.Content/Read';
    const call = this.#callOf(method, ['Digest', { digest }], 'ReadContentResponse', limit_ms);
    for await (const message of this.#grpc.stream({ ...call, ...(signal === undefined ? {} : { signal }) })) {
      yield Buffer.from(this.#parse(readSchema, message).data);
    }
  }

  /** What is made under a lease is kept although nothing refers to it yet. It ends by itself at the time it is given. */
  async createLease(id: string, ends: Date): Promise<void> {
    try {
      const labels = { 'containerd.io/gc.expire': ends.toISOString() };
      await this.#change('leases.v1.Leases/Create', ['Lease', { id, labels }], 'Empty');
    } catch (error) {
      if (!(error instanceof ContainerdRefusal) || error.status !== STATUS.alreadyExists) throw error;
    }
  }

  async deleteLease(id: string): Promise<void> {
    await this.#unlessMissing(this.#change('leases.v1.Leases/Delete', ['Id', { id }], 'Empty'));
  }

  async #ask(method: string, request: Call['request'], answer: string): Promise<unknown> {
    return await this.#grpc.call(this.#callOf(method, request, answer, QUERY_LIMIT_MS));
  }

  async #find(method: string, request: Call['request'], answer: string): Promise<unknown> {
    return await this.#unlessMissing(this.#ask(method, request, answer));
  }

  async #unlessMissing<T>(call: Promise<T>): Promise<T | undefined> {
    try {
      return await call;
    } catch (error) {
      if (error instanceof ContainerdRefusal && error.status === STATUS.notFound) return undefined;
      throw error;
    }
  }

  async #change(method: string, request: Call['request'], answer: string, lease?: string): Promise<void> {
    const call = this.#callOf(method, request, answer, CHANGE_LIMIT_MS);
    const headers = lease === undefined ? call.headers : { ...call.headers, 'containerd-lease': lease };
    await this.#grpc.call({ ...call, headers });
  }

  #callOf(method: string, request: Call['request'], answer: string, limit_ms: number): Call {
    const headers = { 'containerd-namespace': this.namespace };
    return { method: `containerd.services.${method}`, request, answer, headers, limit_ms };
  }

  #parse<T>(schema: z.ZodType<T>, value: unknown): T {
    const parsed = schema.safeParse(value);
    if (parsed.success) return parsed.data;
    throw new UmsError('UMS_E_ENGINE', {
      message: "containerd's answer is not what this version of ums knows",
      fault: 'ums',
      mend: 'containerd 1.7 and later are supported; please report this with the output of `ctr version`.',
      detail: parsed.error.message.slice(0, 2000),
      cause: parsed.error,
    });
  }
}

function tooLong(digest: string): UmsError {
  return new UmsError('UMS_E_ENGINE', {
    message: `The description ${digest.slice(7, 19)} of an image is larger than an image needs`,
    fault: 'source',
  });
}

/** What the runtime is told in a container's record, or for one of its tasks. */
export function decodeOptions(options: Any | null | undefined): RuncOptions {
  const bytes = options?.type_url.endsWith(RUNC_OPTIONS) === true ? options.value : new Uint8Array();
  return runcOptionsSchema.parse(decode('RuncOptions', bytes));
}

/** The same options, with another runtime and without what `runc restore` does not know. */
export function withRuntime(options: Any | null | undefined, binary_name: string): Any {
  const known = z.record(z.string(), z.unknown()).parse(decodeAll(options));
  return { type_url: RUNC_OPTIONS, value: encode('RuncOptions', { ...known, binary_name, no_new_keyring: false }) };
}

function decodeAll(options: Any | null | undefined): unknown {
  return decode('RuncOptions', options?.type_url.endsWith(RUNC_OPTIONS) === true ? options.value : new Uint8Array());
}

/** Whether anything listens on the socket, without asking it. */
export async function listens(address: string): Promise<boolean> {
  const socket: Socket = createConnection(address);
  try {
    return await new Promise<boolean>((resolve) => {
      socket.once('connect', () => resolve(true));
      socket.once('error', () => resolve(false));
    });
  } finally {
    socket.destroy();
  }
}

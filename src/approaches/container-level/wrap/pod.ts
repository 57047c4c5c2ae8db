import { isMap, isSeq, parseAllDocuments, type YAMLMap } from 'yaml';
import { z } from 'zod';
import { CAPABILITIES } from '../needs.ts';
import {
  ARCHIVE,
  cannotWrap,
  imageArguments,
  peerEnvironment,
  volumeArgument,
  volumeAt,
  type Wrapped,
  type WrapOptions,
} from './inner.ts';

/** The container of a Pod, or of what makes Pods, → the same in a capsule. */
const context = z.looseObject({
  runAsUser: z.int().optional(),
  runAsGroup: z.int().optional(),
  readOnlyRootFilesystem: z.boolean().optional(),
  privileged: z.boolean().optional(),
  capabilities: z.object({ add: z.array(z.string()).optional(), drop: z.array(z.string()).optional() }).optional(),
});
const containerSchema = z.object({
  name: z.string(),
  image: z.string(),
  command: z.array(z.string()).optional(),
  args: z.array(z.string()).optional(),
  workingDir: z.string().optional(),
  tty: z.boolean().optional(),
  stdin: z.boolean().optional(),
  volumeMounts: z.array(z.looseObject({ mountPath: z.string(), readOnly: z.boolean().optional() })).optional(),
  securityContext: context.optional(),
});
type Container = z.infer<typeof containerSchema>;
const podContext = z.looseObject({ runAsUser: z.int().optional(), runAsGroup: z.int().optional() }).default({});

/** Where the description of a Pod lies in each kind. */
const PATHS: Readonly<Record<string, readonly string[]>> = {
  Pod: ['spec'],
  Deployment: ['spec', 'template', 'spec'],
  StatefulSet: ['spec', 'template', 'spec'],
  DaemonSet: ['spec', 'template', 'spec'],
  ReplicaSet: ['spec', 'template', 'spec'],
  Job: ['spec', 'template', 'spec'],
  CronJob: ['spec', 'jobTemplate', 'spec', 'template', 'spec'],
};
const PROBES = ['livenessProbe', 'readinessProbe', 'startupProbe'].map((probe) => [probe, 'exec', 'command']);
const HOOKS = ['postStart', 'preStop'].map((hook) => ['lifecycle', hook, 'exec', 'command']);

export function wrapPod(source: string, only: string | undefined, options: WrapOptions): Wrapped {
  const documents = parseAllDocuments(source);
  if (!Array.isArray(documents)) throw cannotWrap('The file', 'it is empty');
  const notes: string[] = [];
  let wrapped = 0;
  for (const document of documents) {
    if (document.errors.length > 0) throw cannotWrap('The manifest', document.errors[0]?.message ?? 'it is no YAML');
    const path = PATHS[String(document.get('kind'))];
    const spec = path === undefined ? undefined : document.getIn(path);
    if (!isMap(spec)) continue;
    wrapSpec(spec, only, options, notes);
    wrapped += 1;
  }
  if (wrapped === 0) throw cannotWrap('The file', 'it has neither a Pod nor anything that makes Pods');
  return { text: documents.map(String).join(''), notes };
}

function wrapSpec(spec: YAMLMap, only: string | undefined, options: WrapOptions, notes: string[]): void {
  const containers = spec.get('containers');
  const all = isSeq(containers) ? containers.items.filter((item) => isMap(item)) : [];
  const names = all.map((each) => String(each.get('name')));
  const name = only ?? (names.length === 1 ? names[0] : undefined);
  const chosen = all[names.indexOf(name ?? '')];
  if (chosen === undefined) {
    throw cannotWrap('The Pod', `say which of its containers with --service: ${names.join(', ')}`);
  }
  const value: unknown = chosen.toJSON();
  const parsed = containerSchema.safeParse(value);
  if (!parsed.success) throw cannotWrap(name ?? 'the container', z.prettifyError(parsed.error));
  if (parsed.data.tty === true || parsed.data.stdin === true) {
    throw cannotWrap(parsed.data.name, 'the service of a capsule has no terminal and no input');
  }
  const inherited = spec.get('securityContext');
  const ofPod = podContext.parse(isMap(inherited) ? inherited.toJSON() : {});
  wrapContainer(chosen, parsed.data, ofPod, options);
  addArchive(spec, chosen, options);
  notes.push('AppArmor is switched off by its field of Kubernetes 1.30; before that an annotation does it.');
}

function wrapContainer(
  node: YAMLMap,
  container: Container,
  ofPod: z.infer<typeof podContext>,
  options: WrapOptions,
): void {
  const own = container.securityContext ?? {};
  const user = own.runAsUser ?? ofPod.runAsUser;
  const group = own.runAsGroup ?? ofPod.runAsGroup;
  const command = container.command ?? [];
  const words = [...command.slice(1), ...(container.args ?? [])];
  node.set('image', options.capsule);
  node.delete('command');
  node.delete('workingDir');
  node.set('args', [
    ...imageArguments(options, container.image),
    ...(command[0] === undefined ? [] : ['--entrypoint', command[0]]),
    ...(user === undefined ? [] : ['--user', group === undefined ? String(user) : `${user}:${group}`]),
    ...(container.workingDir === undefined ? [] : ['--workdir', container.workingDir]),
    ...(own.readOnlyRootFilesystem === true ? ['--read-only'] : []),
    ...(own.privileged === true ? ['--cap-add', 'ALL'] : []),
    ...(own.capabilities?.add ?? []).flatMap((each) => ['--cap-add', each]),
    ...(own.capabilities?.drop ?? []).flatMap((each) => ['--cap-drop', each]),
    ...(container.volumeMounts ?? []).flatMap((each) => volumeArgument(each.mountPath, each.readOnly === true)),
    ...(words[0]?.startsWith('-') === true ? ['--'] : []),
    ...words,
  ]);
  if (container.volumeMounts !== undefined) {
    node.set(
      'volumeMounts',
      container.volumeMounts.map((each) => ({ ...each, mountPath: volumeAt(each.mountPath) })),
    );
  }
  node.set('securityContext', securityOf(own));
  for (const path of [...PROBES, ...HOOKS]) {
    const words = node.getIn(path);
    if (isSeq(words)) node.setIn(path, ['ums', 'capsule', 'exec', ...z.array(z.string()).parse(words.toJSON())]);
  }
  wrapPeer(node, options);
}

/** The capsule itself is root, and what confines its service is inside it. */
function securityOf(own: z.infer<typeof context>): unknown {
  if (own.privileged === true) return { privileged: true, runAsUser: 0 };
  const further = (own.capabilities?.add ?? []).filter((each) => !CAPABILITIES.some((needed) => needed === each));
  return {
    runAsUser: 0,
    capabilities: { add: [...CAPABILITIES, ...further] },
    seccompProfile: { type: 'Unconfined' },
    appArmorProfile: { type: 'Unconfined' },
  };
}

function wrapPeer(node: YAMLMap, options: WrapOptions): void {
  const ports = [
    { name: 'ums', containerPort: options.peerPort },
    { name: 'ums-pairing', containerPort: options.pairingPort },
  ];
  node.set('ports', [...list(node.get('ports')), ...ports]);
  const added = Object.entries(peerEnvironment(options)).map(([name, value]) => ({ name, value }));
  // Without an address given, others reach it where the cluster does.
  const address = { name: 'UMS_CAPSULE_PEER_ADDRESS', valueFrom: { fieldRef: { fieldPath: 'status.podIP' } } };
  const all = options.peerAddress === undefined ? [...added, address] : added;
  node.set('env', [...list(node.get('env')), ...all]);
}

const list = (node: unknown): unknown[] => (isSeq(node) ? z.array(z.unknown()).parse(node.toJSON()) : []);

function addArchive(spec: YAMLMap, container: YAMLMap, { archive }: WrapOptions): void {
  if (archive === undefined) return;
  const name = 'ums-service-image';
  spec.set('volumes', [...list(spec.get('volumes')), { name, hostPath: { path: archive, type: 'File' } }]);
  container.set('volumeMounts', [...list(container.get('volumeMounts')), { name, mountPath: ARCHIVE, readOnly: true }]);
}

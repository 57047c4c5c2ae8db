import { isMap, isScalar, parseDocument, type YAMLMap } from 'yaml';
import { z } from 'zod';
import { CAPABILITIES, SECURITY_OPTIONS } from '../needs.ts';
import {
  ARCHIVE,
  cannotWrap,
  imageArguments,
  peerEnvironment,
  peerPorts,
  volumeArgument,
  volumeAt,
  type Wrapped,
  type WrapOptions,
} from './inner.ts';
import { splitWords } from './words.ts';

/** One service of a compose file → the same in a capsule; the rest of the file, comments included, stays as it is. */
const text = z.union([z.string(), z.number(), z.boolean()]).transform(String);
const texts = z.array(text);
const command = z.union([z.string(), texts]).nullish();
const volume = z.union([z.string(), z.looseObject({ target: z.string(), read_only: z.boolean().optional() })]);
const serviceSchema = z.object({
  image: z.string(),
  command,
  entrypoint: command,
  user: text.optional(),
  working_dir: z.string().optional(),
  stop_signal: z.string().optional(),
  read_only: z.boolean().optional(),
  privileged: z.boolean().optional(),
  cap_add: texts.optional(),
  cap_drop: texts.optional(),
  volumes: z.array(volume).optional(),
  tmpfs: z.union([z.string(), texts]).optional(),
  healthcheck: z.looseObject({ test: z.union([z.string(), texts]).optional() }).optional(),
  environment: z.union([texts, z.record(z.string(), text.nullable())]).optional(),
  ports: z.array(z.unknown()).optional(),
});
type Service = z.infer<typeof serviceSchema>;

const REFUSED =
  'build tty stdin_open devices pid ipc uts userns_mode volumes_from links extends gpus secrets configs'.split(' ');
const MOVED_INSIDE = 'entrypoint user working_dir stop_signal read_only cap_drop tmpfs init security_opt'.split(' ');

export function wrapCompose(source: string, only: string | undefined, options: WrapOptions): Wrapped {
  const document = parseDocument(source);
  if (document.errors.length > 0) throw cannotWrap('The compose file', document.errors[0]?.message ?? 'it is no YAML');
  const services = document.get('services');
  if (!isMap(services)) throw cannotWrap('The file', 'it has no services');
  const names = services.items.map((item) => (isScalar(item.key) ? String(item.key.value) : ''));
  const name = only ?? (names.length === 1 ? names[0] : undefined);
  if (name === undefined || !names.includes(name)) {
    throw cannotWrap('The compose file', `say which of its services with --service: ${names.join(', ')}`);
  }
  const service = services.get(name);
  if (!isMap(service)) throw cannotWrap(name, 'it is no service');
  const notes = wrapService(name, service, options);
  return { text: document.toString(), notes };
}

function wrapService(name: string, node: YAMLMap, options: WrapOptions): string[] {
  const value: unknown = node.toJSON();
  const parsed = serviceSchema.safeParse(value);
  if (!parsed.success) throw cannotWrap(name, z.prettifyError(parsed.error));
  for (const key of REFUSED) {
    if (node.has(key)) throw cannotWrap(`${key} of ${name}`, 'it is not known how it would be inside a capsule');
  }
  const service = parsed.data;
  const notes = ['init', 'security_opt']
    .filter((key) => node.has(key))
    .map((key) => `${key} of ${name} is left out: the service runs under what the capsule runs under.`);
  for (const key of MOVED_INSIDE) node.delete(key);
  node.set('image', options.capsule);
  node.set('command', argumentsOf(service, options));
  const volumes = volumesOf(service, options);
  if (volumes.length > 0) node.set('volumes', volumes);
  if (service.privileged !== true) {
    node.set('cap_add', [...CAPABILITIES, ...(service.cap_add ?? []).filter((each) => !isNeeded(each))]);
    node.set('security_opt', [...SECURITY_OPTIONS]);
  }
  wrapHealth(node, service);
  if (options.peerAddress !== undefined) {
    node.set('ports', [...(service.ports ?? []), ...peerPorts(options)]);
    node.set('environment', environmentOf(service, options));
  }
  return notes;
}

const isNeeded = (name: string): boolean =>
  CAPABILITIES.some((each) => each === name.toUpperCase().replace(/^CAP_/, ''));

function argumentsOf(service: Service, options: WrapOptions): string[] {
  const entrypoint = wordsOf(service.entrypoint);
  const command = [...entrypoint.slice(1), ...wordsOf(service.command)];
  const own = [
    ...imageArguments(options, service.image),
    ...(entrypoint[0] === undefined ? [] : ['--entrypoint', entrypoint[0]]),
    ...(service.user === undefined ? [] : ['--user', service.user]),
    ...(service.working_dir === undefined ? [] : ['--workdir', service.working_dir]),
    ...(service.stop_signal === undefined ? [] : ['--stop-signal', service.stop_signal]),
    ...(service.read_only === true ? ['--read-only'] : []),
    ...(service.privileged === true ? ['--cap-add', 'ALL'] : []),
    ...(service.cap_add ?? []).flatMap((each) => ['--cap-add', each]),
    ...(service.cap_drop ?? []).flatMap((each) => ['--cap-drop', each]),
    ...(service.volumes ?? []).flatMap((each) => volumeArgument(...insideOf(each))),
    ...tmpfsOf(service).flatMap((each) => volumeArgument(each.split(':')[0] ?? '', false)),
  ];
  return [...own, ...(command[0]?.startsWith('-') === true ? ['--'] : []), ...command];
}

/** As compose reads them: a string is a line of words. */
function wordsOf(value: string | string[] | null | undefined): string[] {
  if (typeof value === 'string') return splitWords(value).map((word) => word.text);
  return value ?? [];
}

function insideOf(value: z.infer<typeof volume>): [string, boolean] {
  if (typeof value !== 'string') return [value.target, value.read_only === true];
  const parts = value.split(':');
  return [(parts.length === 1 ? parts[0] : parts[1]) ?? '', (parts[2] ?? '').split(',').includes('ro')];
}

function volumesOf(service: Service, options: WrapOptions): unknown[] {
  const own = (service.volumes ?? []).map((value) => {
    if (typeof value !== 'string') return { ...value, target: volumeAt(value.target) };
    const parts = value.split(':');
    const at = parts.length === 1 ? 0 : 1;
    return parts.map((part, index) => (index === at ? volumeAt(part) : part)).join(':');
  });
  const memory = tmpfsOf(service).map((each) => ({ type: 'tmpfs', target: volumeAt(each.split(':')[0] ?? '') }));
  const archive = options.archive === undefined ? [] : [`${options.archive}:${ARCHIVE}:ro`];
  return [...own, ...memory, ...archive];
}

function tmpfsOf({ tmpfs }: Service): string[] {
  return typeof tmpfs === 'string' ? [tmpfs] : (tmpfs ?? []);
}

function wrapHealth(node: YAMLMap, { healthcheck }: Service): void {
  const test = healthcheck?.test;
  if (test === undefined) return;
  const words = typeof test === 'string' ? ['CMD-SHELL', test] : test;
  if (words[0] === 'NONE') return;
  const inner = words[0] === 'CMD-SHELL' ? ['/bin/sh', '-c', ...words.slice(1)] : words.slice(1);
  node.setIn(['healthcheck', 'test'], ['CMD', 'ums', 'capsule', 'exec', ...inner]);
}

function environmentOf({ environment }: Service, options: WrapOptions): unknown {
  const peer = peerEnvironment(options);
  if (environment === undefined || !Array.isArray(environment)) return { ...environment, ...peer };
  return [...environment, ...Object.entries(peer).map(([key, value]) => `${key}=${value}`)];
}

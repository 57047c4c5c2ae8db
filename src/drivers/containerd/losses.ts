import { readFile } from 'node:fs/promises';
import { basename } from 'node:path';
import { UmsError } from '#src/telemetry/errors.ts';
import { isMissing } from '../oci/cgroup.ts';
import { decodeOptions } from './client.ts';
import type { Stdio } from './handle.ts';
import type { Config, Container, SnapshotMount, Task } from './schema.ts';

const RUNTIMES = new Set(['io.containerd.runc.v2', 'io.containerd.runc.v1']);
/** Stand-ins of the kernel's tunnels, which are in every network namespace where their modules are loaded. */
const FALLBACKS = /^(?:lo|(?:ip_|ip6_)?(?:tunl|gre|gretap|erspan|vti|sit|ip6tnl|ip6gre)\d*|ip_vti0|ip6_vti0)$/;
export const LOG_LIMIT_BYTES = 16 * 2 ** 20;

/** Everything that containerd and the kernel say of one container. */
export interface Seen {
  container: Container;
  config: Config;
  task: Task | undefined;
  mounts: readonly SnapshotMount[];
}

/** Things of a container that its copy elsewhere will not have, in words for the user. */
export function lossesOf(stdio: Stdio): string[] {
  const losses: string[] = [];
  if (stdio.kind === 'fifo') {
    losses.push(
      'who is attached to it (`ctr tasks attach`) has to attach again, and output that nobody had read is lost',
    );
  }
  if (stdio.kind === 'uri' && stdio.uri.startsWith('binary:')) {
    losses.push("what its log program has written stays at the source; the destination's goes on from there");
  }
  if (logFileOf(stdio) !== undefined) losses.push('of its log only the last 16 MiB move');
  losses.push('its creation time: the destination gives it a new one');
  return losses;
}

/** The file to which its output is written; undefined when there is none. */
export function logFileOf(stdio: Stdio): string | undefined {
  if (stdio.kind !== 'uri' || !stdio.uri.startsWith('file:')) return undefined;
  return decodeURIComponent(new URL(stdio.uri).pathname);
}

/** Throws for what cannot be moved at all, with the reason. */
export async function refuseUnmovable(seen: Seen): Promise<void> {
  const { container, config } = seen;
  refuseRecord(container, config);
  refuse(container.id, ofFiles(seen) ?? ofTask(seen) ?? (await ofNetwork(seen)));
}

/** What its record alone says; the destination looks at it, too, because the record comes from another system. */
export function refuseRecord(container: RuntimeRecord, config: Config): void {
  refuse(container.id, ofRecord(container) ?? ofConfig(container.id, config));
}

type RuntimeRecord = Pick<Container, 'id' | 'runtime' | 'sandbox'>;

function refuse(id: string, reason: Reason | undefined): void {
  if (reason === undefined) return;
  throw new UmsError('UMS_E_SPECIFICATION', {
    message: `${id} cannot be moved: ${reason.why}`,
    fault: 'user',
    state: 'Nothing was changed.',
    mend: reason.mend,
  });
}

interface Reason {
  why: string;
  mend: string;
}

function ofRecord({ runtime, sandbox }: RuntimeRecord): Reason | undefined {
  if (!RUNTIMES.has(runtime?.name ?? '')) {
    return {
      why: `it runs under ${runtime?.name ?? 'no runtime'}, and only runc can be dumped and restored here`,
      mend: 'Create it with the runtime io.containerd.runc.v2.',
    };
  }
  const binary = decodeOptions(runtime?.options).binary_name;
  if (binary !== '' && basename(binary) !== 'runc') {
    return {
      why: `its runtime is ${binary}, and only runc can be dumped and restored here`,
      mend: 'Create it without another runtime binary (--runc-binary).',
    };
  }
  if (sandbox !== '') return { why: `it belongs to the sandbox ${sandbox}`, mend: 'Give it none.' };
  return undefined;
}

function ofConfig(id: string, { linux, process, hooks }: Config): Reason | undefined {
  if (process.terminal) {
    return { why: 'it has a terminal whose other end somebody here holds', mend: 'Create it without --tty.' };
  }
  const has = (type: string): boolean => linux.namespaces.some((namespace) => namespace.type === type);
  if (!has('pid')) {
    return {
      why: 'it has no process id namespace of its own',
      mend: 'Give it one: process ids cannot be kept on a host that has other processes.',
    };
  }
  if (has('user') || linux.uidMappings.length > 0) {
    return { why: 'it has a user namespace', mend: 'Create it without --uidmap and --gidmap.' };
  }
  const joined = linux.namespaces.find(({ path }) => path !== '');
  if (joined !== undefined) {
    return {
      why: `it joins the ${joined.type} namespace ${joined.path}, which somebody else has made`,
      mend:
        joined.type === 'network'
          ? 'Use the network of the host (--net-host), or a private one without interfaces.'
          : 'Give it one of its own.',
    };
  }
  const hook = Object.entries(hooks ?? {}).find(([, list]) => (list?.length ?? 0) > 0);
  if (hook !== undefined) {
    return {
      why: `whoever made it set hooks (${hook[0]}), which prepare things on this host that are not known here`,
      mend: 'Create it without them: nerdctl sets them for its networks, `ctr run --gpus` for devices.',
    };
  }
  if (!linux.cgroupsPath.includes(id)) {
    return {
      why:
        linux.cgroupsPath === '' ? 'it has no control group' : `its control group ${linux.cgroupsPath} lacks its name`,
      mend: 'Create it without --cgroup.',
    };
  }
  return undefined;
}

function ofFiles({ container, config, mounts }: Seen): Reason | undefined {
  if (container.snapshot_key === '' || container.snapshotter === '' || config.root?.path.startsWith('/') === true) {
    return { why: 'its files are in a directory that containerd does not manage', mend: 'Create it from an image.' };
  }
  if (upperOf(mounts) === undefined) {
    return {
      why: `its files are kept by the snapshotter ${container.snapshotter}, not as an overlay`,
      mend: 'Create it with --snapshotter overlayfs.',
    };
  }
  return undefined;
}

/** The directory that it writes to. */
export function upperOf(mounts: readonly SnapshotMount[]): string | undefined {
  const [mount, ...others] = mounts;
  if (mount?.type !== 'overlay' || others.length > 0) return undefined;
  return mount.options.find((option) => option.startsWith('upperdir=/'))?.slice('upperdir='.length);
}

function ofTask({ task }: Seen): Reason | undefined {
  if (task?.terminal === true) {
    return { why: 'it has a terminal whose other end somebody here holds', mend: 'Create it without --tty.' };
  }
  const { stdout = '', stderr = '' } = task ?? {};
  const scheme = /^([a-z]+):/.exec(stdout)?.[1];
  if (scheme !== undefined && scheme !== 'file' && scheme !== 'binary') {
    return { why: `its output goes to ${stdout}`, mend: 'Use a file or a program (--log-uri), pipes or --null-io.' };
  }
  if (scheme === undefined && (stdout === '') !== (stderr === '')) {
    return { why: 'only one of its outputs is kept', mend: 'Use both or --null-io.' };
  }
  return undefined;
}

/** CNI furnishes the namespace that runc made, so only the kernel knows. */
async function ofNetwork({ config, task }: Seen): Promise<Reason | undefined> {
  const own = config.linux.namespaces.some(({ type }) => type === 'network');
  if (!own || task === undefined || task.pid === 0) return undefined;
  let text: string;
  try {
    text = await readFile(`/proc/${task.pid}/net/dev`, 'utf8');
  } catch (error) {
    if (isMissing(error)) return undefined;
    throw error;
  }
  const names = [...text.matchAll(/^\s*([^\s:]+):/gm)].map((match) => match[1] ?? '');
  const made = names.filter((name) => !FALLBACKS.test(name));
  if (made.length === 0) return undefined;
  return {
    why: `its network namespace was furnished by somebody else (${made.join(', ')}), as CNI does, and containerd cannot make that again`,
    mend: 'Use the network of the host (--net-host), or a private one without interfaces.',
  };
}

import { type ChildProcess, spawn, type StdioOptions } from 'node:child_process';
import { existsSync, mkdirSync, openSync, closeSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { compiledEnvironment } from '#src/approaches/images/compiled.ts';
import { run, type RunOptions, type RunResult } from '#src/telemetry/exec.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import {
  firstProcessIn,
  handDownControllers,
  joinCgroup,
  killCgroup,
  removeCgroup,
  makeCgroup,
  processesIn,
  readOrEmpty,
} from './cgroup.ts';
import { CAPSULE, loadCapsule } from './capsule.ts';
import { importIntoContainerd, KUBERNETES_NAMESPACE } from './containerd.ts';
import { hostAddress } from './names.ts';
import { PATIENCE } from './patience.ts';

const BOOT_LIMIT_MS = 30_000 * PATIENCE;
const POLL_MS = 5;
const HOST_PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/ums/node/bin';
const IMAGES = '/opt/images';
const COMPILED = '/opt/ums/compiled';
const IMAGE_PATH = '/usr/local/bin:/usr/bin:/bin';
const DISK = [
  'upper',
  'work',
  'root',
  'containers',
  'docker',
  'containerd',
  'kubelet',
  'ums',
  'srv',
  'api',
  'log',
] as const;

/** Who keeps images; those of Kubernetes are containerd's, in a namespace of their own. */
export type ImageStore = 'podman' | 'docker' | 'swarm' | 'containerd' | 'kubernetes';

export interface HostSettings {
  name: string;
  number: number;
  /** Directory on the machine with the host's disk. */
  directory: string;
  cgroup: string;
  enter: string;
  boot: { lower: string; app: string; modules: string; node: string; kubernetes: string; compiled: string };
}

export interface ExecOptions extends RunOptions {
  /** Working directory on the host. */
  cwd?: string;
}

/** One test host: its disk, its processes, and how to run something on it. */
export class Host {
  readonly name: string;
  readonly number: number;
  readonly address: string;
  readonly directory: string;
  readonly cgroup: string;
  /** The agent's socket, reachable from the machine. */
  readonly socketPath: string;
  readonly logPath: string;
  readonly #settings: HostSettings;

  constructor(settings: HostSettings) {
    this.#settings = settings;
    this.name = settings.name;
    this.number = settings.number;
    this.address = hostAddress(settings.number);
    this.directory = settings.directory;
    this.cgroup = settings.cgroup;
    this.socketPath = join(settings.directory, 'api', 'agent.sock');
    this.logPath = join(settings.directory, 'log', 'agent.log');
  }

  /** The host's first process, as the machine numbers it; undefined when the host is down. */
  get pid(): number | undefined {
    return firstProcessIn(this.cgroup);
  }

  get running(): boolean {
    return this.pid !== undefined;
  }

  /** Boots the host on the disk it has. The caller plugs in the network. */
  async boot(): Promise<number> {
    const { directory, cgroup, boot } = this.#settings;
    for (const part of DISK) mkdirSync(join(directory, part), { recursive: true });
    // On a real host the socket lies on a file system that a restart empties.
    for (const left of readdirSync(join(directory, 'api'))) rmSync(join(directory, 'api', left), { force: true });
    makeCgroup(cgroup);
    const log = openSync(join(directory, 'log', 'boot.log'), 'w');
    const script = join(import.meta.dirname, 'host', 'boot.sh');
    const join_and_unshare =
      'cgroup=$1; shift; echo 0 >"$cgroup/cgroup.procs"; exec unshare -m -p -u -i -C -n -f --kill-child sh "$@"';
    const { lower, app, modules, node, kubernetes, compiled } = boot;
    const args = [this.name, directory, lower, app, modules, node, kubernetes, compiled];
    mkdirSync(compiled, { recursive: true });
    const child = spawn('sh', ['-ec', join_and_unshare, 'sh', cgroup, script, ...args], {
      detached: true,
      stdio: ['ignore', log, log],
    });
    closeSync(log);
    child.unref();
    const pid = await this.#booted(child);
    // unshare(1) itself waits outside the host's process namespace: out of the way of the group's controllers.
    if (child.pid !== undefined) joinCgroup(join(cgroup, 'init'), child.pid);
    handDownControllers(cgroup);
    return pid;
  }

  async #booted(child: ChildProcess): Promise<number> {
    const limit = Date.now() + BOOT_LIMIT_MS;
    while (Date.now() < limit && child.exitCode === null && child.signalCode === null) {
      const pid = this.pid;
      if (pid !== undefined && readOrEmpty(`/proc/${pid}/comm`).trim() === 'tini') return pid;
      await sleep(POLL_MS);
    }
    const log = readOrEmpty(join(this.directory, 'log', 'boot.log')).trim();
    await killCgroup(this.cgroup);
    throw new UmsError('UMS_E_LAB', {
      message: `Test host ${this.name} did not boot: ${log.split('\n').at(-1) ?? 'it said nothing'}`,
      fault: 'ums',
      state: 'Its processes were ended.',
      detail: log,
    });
  }

  /** Ends every process of the host at once, with no chance to say good-bye. Its groups go too, as with a kernel. */
  async kill(): Promise<void> {
    await killCgroup(this.cgroup);
    await removeCgroup(this.cgroup);
  }

  /** The command line that runs a program on this host with everything about it right: namespaces, cgroup, environment. */
  command(
    program: string,
    args: readonly string[],
    options: { env?: Record<string, string>; cwd?: string; detach?: boolean; group?: string } = {},
  ): [string, string[]] {
    const pid = this.#pidOrThrow();
    const group = join(this.cgroup, options.group ?? 'init');
    const env = {
      PATH: HOST_PATH,
      HOME: '/root',
      LANG: 'C.UTF-8',
      TERM: process.env['TERM'] ?? 'dumb',
      // Programs of node are started all the time, and half of their start is compiling.
      ...compiledEnvironment(COMPILED),
      ...options.env,
    };
    return [
      this.#settings.enter,
      [
        ...(options.detach === true ? ['--detach'] : []),
        '--cgroup',
        group,
        '--cwd',
        options.cwd ?? '/root',
        ...Object.entries(env).flatMap(([name, value]) => ['--env', `${name}=${value}`]),
        String(pid),
        program,
        ...args,
      ],
    ];
  }

  /** Runs a program on the host to its end. */
  async exec(program: string, args: readonly string[] = [], options: ExecOptions = {}): Promise<RunResult> {
    const { env, cwd, ...rest } = options;
    const [enter, enterArgs] = this.command(program, args, {
      ...(env === undefined ? {} : { env }),
      ...(cwd === undefined ? {} : { cwd }),
    });
    return run(enter, enterArgs, rest);
  }

  /** Starts a program on the host and leaves it to the caller. */
  spawn(
    program: string,
    args: readonly string[] = [],
    options: { stdio?: StdioOptions; env?: Record<string, string>; cwd?: string } = {},
  ): ChildProcess {
    const { stdio, ...rest } = options;
    const [enter, enterArgs] = this.command(program, args, rest);
    return spawn(enter, enterArgs, { stdio: stdio ?? 'pipe' });
  }

  /** Names of the images that lie ready on every host. */
  async preparedImages(): Promise<string[]> {
    const { stdout } = await this.exec('ls', [IMAGES]);
    return stdout
      .split('\n')
      .flatMap((file) => (file.endsWith('.tar') ? [file.slice(0, -'.tar'.length)] : []))
      .concat(CAPSULE);
  }

  /** Imports a prepared image into an engine of this host, if it is not there; `namespace` is one of containerd's. */
  async importImage(name: string, store: ImageStore = 'podman', namespace?: string): Promise<string> {
    // A swarm has Docker's images.
    const engine = store === 'swarm' ? 'docker' : store;
    const image = engine === 'docker' ? `${name}:latest` : `localhost/${name}:latest`;
    const space = namespace ?? (engine === 'kubernetes' ? KUBERNETES_NAMESPACE : 'default');
    if (name === CAPSULE) return await loadCapsule(this, engine, space);
    if (await this.#hasImage(image, engine, space)) return image;
    if (!(await this.preparedImages()).includes(name)) {
      throw new UmsError('UMS_E_USAGE', {
        message: `No image ${name} is prepared`,
        fault: 'user',
        mend: `There are: ${(await this.preparedImages()).join(', ')}`,
      });
    }
    const tree = `${IMAGES}/${name}.tar`;
    if (engine === 'podman' || engine === 'docker') {
      await this.exec(engine, ['import', '--change', `ENV PATH=${IMAGE_PATH}`, tree, image]);
    } else await importIntoContainerd(this, { tree, image, path: IMAGE_PATH, namespace: space });
    return image;
  }

  async #hasImage(image: string, engine: ImageStore, namespace: string): Promise<boolean> {
    if (engine === 'containerd' || engine === 'kubernetes') {
      const { stdout } = await this.exec('ctr', ['-n', namespace, 'images', 'ls', '-q', `name==${image}`]);
      return stdout.trim() === image;
    }
    const asked = ['image', 'inspect', '--format', '{{.Id}}', image];
    return (await this.exec(engine, asked, { okExitCodes: [0, 1, 125] })).exitCode === 0;
  }

  /** Processes of the host, the machine's numbers. */
  processes(): number[] {
    return processesIn(this.cgroup);
  }

  /** A file of the host, as the machine sees it. Only while the host runs. */
  path(inside: string): string {
    return join(`/proc/${this.#pidOrThrow()}/root`, inside);
  }

  writeFile(inside: string, content: string): void {
    writeFileSync(this.path(inside), content);
  }

  readFile(inside: string): string {
    return readFileSync(this.path(inside), 'utf8');
  }

  get hasDisk(): boolean {
    return existsSync(join(this.directory, 'upper'));
  }

  #pidOrThrow(): number {
    const pid = this.pid;
    if (pid !== undefined) return pid;
    throw new UmsError('UMS_E_LAB', {
      message: `Test host ${this.name} is not running`,
      fault: 'user',
      mend: `Start it: ./ums lab restart ${this.name}`,
    });
  }
}

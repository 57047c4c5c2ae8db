import assert from 'node:assert/strict';
import type { ChildProcess } from 'node:child_process';
import { rm } from 'node:fs/promises';
import { after, before, describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { z } from 'zod';
import type { Host } from '#lab/host.ts';
import { Lab } from '#lab/lab.ts';
import { conformanceCases, type ConformanceWorld } from '#src/drivers/conformance.ts';
import type { Driver, EngineName } from '#src/drivers/contract.ts';
import { run } from '#src/telemetry/exec.ts';
import { ContainerdSide } from './support/conformance-containerd.ts';
import { MiniboxSide } from './support/conformance-minibox.ts';
import { lines, PROGRAM, Side } from './support/conformance-side.ts';
import { createMiniboxDriver } from './support/minibox/index.ts';
import { killOn } from './support/processes.ts';
import { until } from './support/moves.ts';

/** The contract of src/drivers, for every driver, between two hosts of the lab. */
const TEST_LIMIT_MS = 300_000;
const START_LIMIT_MS = 15_000;
const SCRATCH = '/run/ums-conformance-scratch';
const IMAGES = { imagesDir: `${SCRATCH}/images`, workDir: `${SCRATCH}/work` };
const IMAGE_FILE = `${SCRATCH}/image.tar`;
const RESTART_MONITOR_MS = 12_000;
const PAGE_PORT = 27_440;
/** The program holds 4 MiB of anonymous memory; stacks and written pages of files are all that a lazy dump may hold. */
const LAZY_PAGES_MAX_BYTES = 1024 * 1024;

const lab = Lab.open();
let alpha: Host;
let beta: Host;

before(async () => {
  await lab.up({ engines: ['docker', 'containerd'] });
  alpha = lab.host('alpha');
  beta = lab.host('beta');
  for (const host of [alpha, beta])
    for (const engine of ['podman', 'docker', 'containerd'] as const) await host.importImage('memhog', engine);
});

after(async () => {
  for (const host of [alpha, beta])
    await host.exec('rm', ['-rf', SCRATCH, '/var/lib/ums-conformance', '/run/ums-conformance']);
});

class PodmanSide extends Side {
  async startService(name: string): Promise<void> {
    const options = [
      '--volume',
      `${name}-data:/data`,
      '--label',
      'purpose=conformance',
      '--env',
      'A=b c',
      '--restart',
      'always',
    ];
    await this.host.exec('podman', ['run', '--detach', '--name', name, ...options, 'memhog', ...PROGRAM]);
    await this.runs(name);
  }

  async makeForeign(name: string): Promise<void> {
    await this.host.exec('podman', ['create', '--name', name, '--label', 'owner=somebody', 'memhog', 'true']);
  }

  async foreignIsUntouched(name: string): Promise<boolean> {
    const format = '{{.State.Status}} {{index .Config.Labels "owner"}}';
    const { stdout } = await this.host.exec('podman', ['container', 'inspect', '--format', format, name]);
    return stdout.trim() === 'created somebody';
  }

  async removeForeign(name: string): Promise<void> {
    await this.host.exec('podman', ['rm', '--force', '--ignore', '--time', '0', name]);
  }

  async removeBehindDriver(name: string): Promise<void> {
    const [id = ''] = await lines(this.host, 'podman container inspect --format "{{.Id}}" "$1" || true', name);
    await this.removeForeign(name);
    // What Podman does not know of, `create` had mounted for it.
    await lines(
      this.host,
      'umount /var/lib/containers/storage/overlay-containers/$1/userdata/shm 2>/dev/null || true',
      id,
    );
  }

  async remains(name: string): Promise<string[]> {
    return await lines(
      this.host,
      `podman ps --all --format '{{.Names}}' | grep -x "$1"; podman volume ls --quiet | grep -F "$1"
      for id in $(ls /run/ums-conformance/restore 2>/dev/null); do echo "restore $id"; done
      find /var/lib/ums-conformance/created -type f 2>/dev/null
      ids=$(podman ps --all --quiet --no-trunc)
      for id in $(ls /run/runc /sys/fs/cgroup/libpod_parent 2>/dev/null | grep -oE '[0-9a-f]{64}'); do
        case $ids in *$id*) ;; *) echo "left of $id" ;; esac
      done
      for id in $(grep -oE 'overlay-containers/[0-9a-f]{64}' /proc/mounts | cut -d/ -f2); do
        case $ids in *$id*) ;; *) echo "mount of $id" ;; esac
      done; true`,
      name,
    );
  }
}

class DockerSide extends Side {
  async startService(name: string): Promise<void> {
    const options = ['--volume', `${name}-data:/data`, '--label', 'purpose=conformance', '--env', 'A=b c'];
    await this.host.exec('docker', [
      'run',
      '--detach',
      '--name',
      name,
      ...options,
      '--restart',
      'always',
      'memhog',
      ...PROGRAM,
    ]);
    await this.runs(name);
  }

  async makeForeign(name: string): Promise<void> {
    await this.host.exec('docker', ['create', '--name', name, '--label', 'owner=somebody', 'memhog', 'true']);
  }

  async foreignIsUntouched(name: string): Promise<boolean> {
    const format = '{{.State.Status}} {{index .Config.Labels "owner"}}';
    const { stdout } = await this.host.exec('docker', ['container', 'inspect', '--format', format, name]);
    return stdout.trim() === 'created somebody';
  }

  async removeForeign(name: string): Promise<void> {
    await this.removeBehindDriver(name);
  }

  async removeBehindDriver(name: string): Promise<void> {
    await lines(this.host, 'docker rm --force --volumes "$1" >/dev/null 2>&1 || true', name);
  }

  async remains(name: string): Promise<string[]> {
    return await lines(
      this.host,
      `docker ps --all --format '{{.Names}}' | grep -x -e "$1" -e 'ums-.*'; docker volume ls --quiet | grep -F "$1"
      find /run/ums-conformance/restore /run/ums-runtime -mindepth 1 -maxdepth 1 2>/dev/null
      find /var/lib/ums-conformance/created -type f 2>/dev/null
      ids=$(docker ps --all --quiet --no-trunc)
      for id in $(ls /run/docker/runtime-runc/moby /sys/fs/cgroup/docker 2>/dev/null | grep -oE '[0-9a-f]{64}'); do
        case $ids in *$id*) ;; *) echo "left of $id" ;; esac
      done; true`,
      name,
    );
  }
}

class RuncSide extends Side {
  async startService(name: string): Promise<void> {
    const bundle = `/srv/${name}`;
    await this.host.exec('sh', [
      '-ec',
      'mkdir -p "$1"; cp -a /opt/bundles/memhog/rootfs "$1/rootfs"; mkdir -p "$1/rootfs/tmp"',
      'sh',
      bundle,
    ]);
    await this.host.exec('runc', ['spec', '--bundle', bundle]);
    const config = z
      .looseObject({ process: z.looseObject({}), root: z.looseObject({}) })
      .parse(JSON.parse(this.host.readFile(`${bundle}/config.json`)));
    config.process['terminal'] = false;
    config.process['args'] = PROGRAM;
    config.root['readonly'] = false;
    this.host.writeFile(`${bundle}/config.json`, JSON.stringify(config, undefined, 3));
    const script = 'runc run --detach --bundle "$1" "$2" </dev/null >/dev/null 2>&1';
    await this.host.exec('sh', ['-c', script, 'sh', bundle, name]);
    await this.runs(name);
  }

  async makeForeign(name: string): Promise<void> {
    await this.host.exec('sh', ['-ec', 'mkdir "/srv/$1"; echo mine >"/srv/$1/config.json"', 'sh', name]);
  }

  async foreignIsUntouched(name: string): Promise<boolean> {
    return (await lines(this.host, 'cat "/srv/$1/config.json"; ls "/srv/$1"', name)).join(' ') === 'mine config.json';
  }

  async removeForeign(name: string): Promise<void> {
    await this.host.exec('rm', ['-rf', `/srv/${name}`]);
  }

  async removeBehindDriver(name: string): Promise<void> {
    await lines(this.host, 'runc delete --force "$1"; rm -rf "/srv/$1"', name);
  }

  async remains(name: string): Promise<string[]> {
    return await lines(
      this.host,
      `runc list --quiet | grep -x "$1"; ls -d /srv/*"$1"* /srv/.*ums* /sys/fs/cgroup/"$1" 2>/dev/null
      for id in $(ls /run/ums-conformance/restore 2>/dev/null); do echo "restore $id"; done
      find /var/lib/ums-conformance/created -type f 2>/dev/null; grep "/srv/$1" /proc/mounts; true`,
      name,
    );
  }
}

function worldOf(source: Side, destination: Side): ConformanceWorld {
  return {
    source,
    destination,
    images: IMAGES,
    moveImage: (name) => moveImage(source, destination, name),
    moveTrees: async (from, to) => {
      for (const tree of to) {
        const origin = from.find((each) => each.id === tree.id);
        assert.ok(origin, `no tree ${tree.id} at the source`);
        await copyBetween(source.host, origin.path, destination.host, tree.path);
      }
    },
    checkpoint: async (handle) => {
      await dump(source, handle);
      await destination.host.exec('mkdir', ['-p', IMAGES.imagesDir, IMAGES.workDir]);
      await copyBetween(source.host, IMAGES.imagesDir, destination.host, IMAGES.imagesDir);
    },
    sourceImages: IMAGES,
    lazyCheckpoint: async (handle) => {
      await source.host.exec('sh', ['-ec', 'rm -rf "$1"; mkdir -p "$1/images" "$1/work"', 'sh', SCRATCH]);
      await source.driver.preparedCheckpoint(handle, { ...IMAGES, lazy: true, timeout_ms: 60_000 });
      const names = await lines(source.host, 'ls "$1"', IMAGES.imagesDir);
      for (const name of ['inventory.img', 'pagemap-1.img', 'descriptors.json']) assert.ok(names.includes(name), name);
      const bytes = Number((await lines(source.host, 'stat -c %s "$1/pages-1.img"', IMAGES.imagesDir))[0]);
      assert.ok(bytes < LAZY_PAGES_MAX_BYTES, `${bytes} bytes of memory are in the images of a lazy dump`);
    },
    lazyRestore: (handle, between) => lazyRestore(source, destination, handle, between),
    removeAll: async (name) => {
      for (const side of [source, destination]) {
        await side.removeBehindDriver(name);
        await lines(
          side.host,
          'for engine in podman docker; do $engine volume rm --force "$1-data" 2>/dev/null; done; rm -rf /var/lib/ums-conformance /run/ums-conformance; true',
          name,
        );
      }
    },
  };
}

/** The images hold all pages here, each marked as one that may come later; CRIU's own daemon offers them. */
async function lazyRestore(
  source: Side,
  destination: Side,
  handle: string,
  between: () => Promise<void>,
): Promise<void> {
  const { host } = destination;
  const only = 'find "$1" -mindepth 1 ! -name descriptors.json -delete';
  await host.exec('sh', ['-c', only, 'sh', IMAGES.imagesDir]);
  let daemon: ChildProcess | undefined;
  try {
    await destination.driver.preparedRestore(handle, { ...IMAGES, lazy: true, timeout_ms: 60_000 }, async () => {
      await between();
      // In place: the directory is open already.
      const [from, to] = [source.host.path(IMAGES.imagesDir), host.path(IMAGES.imagesDir)];
      await run('cp', ['-a', `${from}/.`, `${to}/`], { timeout_ms: 60_000 });
      const args = ['lazy-pages', '--images-dir', IMAGES.imagesDir, '--work-dir', IMAGES.workDir];
      daemon = host.spawn('criu', args, { stdio: 'ignore' });
      // Its socket is there a moment before it listens; the kernel's list marks those that do.
      await until('the lazy-pages daemon listens', START_LIMIT_MS, async () =>
        (await lines(host, 'ss -xlH src lazy-pages.socket')).length > 0 ? true : undefined,
      );
    });
  } catch (error) {
    // Nobody comes to it any more, and it would wait for ever.
    killOn(host, /^criu lazy-pages /);
    throw error;
  }
  assert.ok(daemon !== undefined, 'the restore was prepared');
}

/** Content of one directory becomes that of another, with everything that a file has. */
async function copyBetween(from: Host, source: string, to: Host, target: string): Promise<void> {
  await to.exec('sh', ['-c', 'find "$1" -mindepth 1 -delete', 'sh', target]);
  await run('cp', ['-a', `${from.path(source)}/.`, `${to.path(target)}/`], { timeout_ms: 60_000 });
}

async function dump(source: Side, handle: string): Promise<void> {
  await source.host.exec('sh', ['-ec', 'rm -rf "$1"; mkdir -p "$1/images" "$1/work"', 'sh', SCRATCH]);
  const args = ['page-server', '--images-dir', IMAGES.imagesDir, '--work-dir', IMAGES.workDir];
  const server = source.host.spawn('criu', [...args, '--address', '127.0.0.1', '--port', String(PAGE_PORT)], {
    stdio: 'ignore',
  });
  const ended = new Promise<void>((resolve) => server.once('exit', () => resolve()));
  try {
    await until('the page server listens', START_LIMIT_MS, async () =>
      (await lines(source.host, 'ss -lntH "sport = :$1"', String(PAGE_PORT))).length > 0 ? true : undefined,
    );
    const pageServer = { address: '127.0.0.1', port: PAGE_PORT };
    await source.driver.checkpoint(handle, { ...IMAGES, pageServer, timeout_ms: 60_000 });
    await ended;
  } finally {
    if (server.exitCode === null) {
      // Nobody spoke to it: a connection that ends at once ends it too.
      const knock = 'exec 3<>"/dev/tcp/127.0.0.1/$1"';
      await source.host.exec('bash', ['-c', knock, 'bash', String(PAGE_PORT)], { okExitCodes: [0, 1] });
      await ended;
    }
  }
}

async function moveImage(source: Side, destination: Side, name: string): Promise<void> {
  const { specification } = await source.driver.describe(name);
  if (await destination.driver.hasImage(specification)) return;
  for (const side of [source, destination]) await side.host.exec('mkdir', ['-p', SCRATCH]);
  await source.driver.exportImage(specification, IMAGE_FILE);
  await run('cp', [source.host.path(IMAGE_FILE), destination.host.path(IMAGE_FILE)], { timeout_ms: 60_000 });
  await destination.driver.importImage(specification, IMAGE_FILE);
  assert.ok(await destination.driver.hasImage(specification), 'the image arrived as the one it was');
  for (const side of [source, destination]) await rm(side.host.path(IMAGE_FILE), { force: true });
}

void describe('a Docker service that is away', { timeout: TEST_LIMIT_MS }, () => {
  void it('is not begun anew, whoever asks Docker for it, until the agent says so', async () => {
    const name = 'conf-docker-held';
    const side = new DockerSide(alpha, 'docker');
    try {
      await side.startService(name);
      const { handle } = await side.driver.describe(name);
      await side.driver.freeze(handle);
      for (const words of [['restart', '--time', '0'], ['start']]) {
        await alpha.exec('docker', [...words, name], { okExitCodes: [1], timeout_ms: 60_000 });
        assert.equal(await side.driver.state(handle), 'stopped');
      }
      await side.driver.start(handle);
      assert.equal(await side.driver.state(handle), 'running');
      await side.driver.freeze(handle);
      await side.driver.thaw(handle);
      await alpha.exec('docker', ['restart', '--time', '0', name]);
      assert.equal(await side.driver.state(handle), 'running');
    } finally {
      await side.removeBehindDriver(name);
      await alpha.exec('docker', ['volume', 'rm', '--force', `${name}-data`]);
    }
  });
});

void describe('a service of containerd that is away', { timeout: TEST_LIMIT_MS }, () => {
  void it('is not begun anew, by a person or by the restart monitor, until the agent says so', async () => {
    const name = 'conf-containerd-held';
    const side = new ContainerdSide(alpha, 'containerd');
    try {
      await side.startService(name);
      const { handle } = await side.driver.describe(name);
      await side.driver.freeze(handle);
      for (const words of [['pause'], ['resume'], ['exec', '--exec-id', 'x', name, 'true']]) {
        await alpha.exec('ctr', ['tasks', ...words, ...(words.includes(name) ? [] : [name])], { okExitCodes: [1] });
      }
      assert.equal(await side.driver.state(handle), 'frozen', 'nobody thaws it');
      await alpha.exec('ctr', ['tasks', 'rm', '--force', name], { okExitCodes: [0, 1] });
      const { stderr } = await alpha.exec('ctr', ['tasks', 'start', '--detach', name], { okExitCodes: [1] });
      assert.match(stderr, /ums is moving this service/);
      // The monitor looks every ten seconds.
      await sleep(RESTART_MONITOR_MS);
      assert.equal(await side.driver.state(handle), 'stopped');
      await side.driver.start(handle);
      assert.equal(await side.driver.state(handle), 'running');
      await side.driver.freeze(handle);
      await side.driver.thaw(handle);
      await alpha.exec('ctr', ['tasks', 'kill', '--signal', 'SIGKILL', name]);
      await until('the restart monitor starts it again', RESTART_MONITOR_MS * 2, async () =>
        (await side.driver.state(handle)) === 'running' ? true : undefined,
      );
    } finally {
      await side.removeBehindDriver(name);
    }
  });
});

const SIDES = {
  podman: PodmanSide,
  docker: DockerSide,
  containerd: ContainerdSide,
  runc: RuncSide,
  'x-minibox': MiniboxSide,
} satisfies Record<Exclude<EngineName, 'kubernetes' | 'swarm' | 'nomad' | 'marathon' | 'init'>, unknown>;

/** Drivers of ums's own must pass everything. */
const ALL = {};
/** One that was written by docs/writing-a-driver.md declares what it lacks. */
const DECLARED: Partial<Record<EngineName, Pick<Driver, 'whyNotLazy'>>> = {
  'x-minibox': createMiniboxDriver({ stateDir: SCRATCH, runDir: SCRATCH }),
};

for (const engine of ['podman', 'docker', 'containerd', 'runc', 'x-minibox'] as const) {
  void describe(`driver ${engine}`, { timeout: TEST_LIMIT_MS * 3 }, () => {
    for (const each of conformanceCases(DECLARED[engine] ?? ALL)) {
      void it(each.name, { timeout: TEST_LIMIT_MS }, async () => {
        const agents = { kept: each.restarts !== true };
        const [source, destination] = [alpha, beta].map((host) => new SIDES[engine](host, engine, agents));
        assert.ok(source !== undefined && destination !== undefined);
        try {
          await each.run(worldOf(source, destination));
        } finally {
          await source.driver.close();
          await destination.driver.close();
        }
      });
    }
  });
}

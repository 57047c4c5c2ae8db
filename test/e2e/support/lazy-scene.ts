import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, cpSync, mkdirSync, openSync, readSync, rmSync, writeSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { connect, createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { z } from 'zod';
import { criuVersion } from '#src/checkpoint/criu.ts';
import { lazyContents, type LazyPager, startPager } from '#src/checkpoint/lazy/index.ts';
import { closePageServer } from '#src/checkpoint/lazy/protocol.ts';
import { run } from '#src/telemetry/exec.ts';
import { PageStore } from '#src/transfer/pages/store.ts';
import { PAGE_BYTES, type PageRange, type SpaceContents, type SpaceName } from '#src/transfer/pages/model.ts';

/**
 * A container whose memory is dumped lazily and restored through a pager, on one host: what a migration does with both
 * ends, without the network between them. Runs inside of a host of the lab.
 */
const ROOT = '/tmp/lazy';
const CHUNK_PAGES = 256;
const STEP_LIMIT_MS = 60_000;

export interface SceneOptions {
  /** Program and arguments inside of the container; its log is /tmp/log there. */
  args: readonly string[];
  /** Lines of the log that say that it is ready. */
  ready: number;
}

export class Scene {
  readonly id = 'lazy-scene';
  readonly bundle = join(ROOT, 'bundle');
  readonly images = join(ROOT, 'images');
  readonly work = join(ROOT, 'work');
  readonly dir = join(ROOT, 'pager');
  readonly storeDir = join(ROOT, 'store');
  readonly source = new SourcePages(join(ROOT, 'source'));
  #store: PageStore | undefined;
  contents: SpaceContents[] = [];
  /** Process ids on the host by those in the container. */
  pids = new Map<number, number>();

  static async open(options: SceneOptions): Promise<Scene> {
    const scene = new Scene();
    await scene.remove();
    for (const path of [scene.bundle, scene.images, scene.work, scene.storeDir, scene.source.dir]) {
      mkdirSync(path, { recursive: true });
    }
    scene.#store = await PageStore.open(scene.storeDir);
    cpSync('/opt/bundles/busybox/rootfs', join(scene.bundle, 'rootfs'), { recursive: true });
    mkdirSync(join(scene.bundle, 'rootfs', 'tmp'), { recursive: true });
    cpSync('/tmp/churn', join(scene.bundle, 'rootfs', 'bin', 'churn'));
    cpSync('/usr/local/bin/memhog', join(scene.bundle, 'rootfs', 'bin', 'memhog'));
    await run('runc', ['spec'], { cwd: scene.bundle });
    const path = join(scene.bundle, 'config.json');
    const spec = z
      .looseObject({ process: z.looseObject({}), root: z.looseObject({}) })
      .parse(JSON.parse(await readFile(path, 'utf8')));
    spec.process['terminal'] = false;
    spec.process['args'] = options.args;
    spec.root['readonly'] = false;
    await writeFile(path, JSON.stringify(spec));
    // Its output must not be this program's pipe.
    await run('sh', ['-c', `exec runc run -d --bundle ${scene.bundle} ${scene.id} </dev/null >/dev/null 2>&1`]);
    await scene.logged(options.ready);
    return scene;
  }

  async remove(): Promise<void> {
    await run('runc', ['delete', '--force', this.id], { okExitCodes: [0, 1] });
    rmSync(ROOT, { recursive: true, force: true });
  }

  async log(): Promise<string[]> {
    const text = await readFile(join(this.bundle, 'rootfs', 'tmp', 'log'), 'utf8').catch(() => '');
    return text.split('\n').filter((line) => line !== '' && !line.startsWith('tick'));
  }

  /** Waits until the log has so many lines, and returns them. */
  async logged(count: number, limit_ms = STEP_LIMIT_MS): Promise<string[]> {
    const end = performance.now() + limit_ms;
    for (;;) {
      const lines = await this.log();
      if (lines.length >= count) return lines;
      if (performance.now() > end) throw new Error(`only ${lines.length} of ${count} lines: ${lines.join('; ')}`);
      await delay(5);
    }
  }

  async init(): Promise<number> {
    const { stdout } = await run('runc', ['state', this.id]);
    return z.object({ pid: z.int() }).parse(JSON.parse(stdout)).pid;
  }

  async signal(name: 'USR1' | 'USR2'): Promise<void> {
    await run('runc', ['kill', this.id, name]);
  }

  /** Freezes, dumps lazily, reads the lazy pages of the frozen processes into `source`, and removes the container. */
  async freezeAndDump(): Promise<void> {
    await run('runc', ['pause', this.id]);
    await this.#findProcesses();
    await this.#dump();
    this.contents = await lazyContents(this.images);
    for (const { name, ranges } of this.contents) this.#readMemory(name, ranges);
    const log = await readFile(join(this.bundle, 'rootfs', 'tmp', 'log'), 'utf8');
    await run('runc', ['delete', '--force', this.id]);
    assert.equal(await readFile(join(this.bundle, 'rootfs', 'tmp', 'log'), 'utf8'), log, 'it stood still');
  }

  async #findProcesses(): Promise<void> {
    const { stdout } = await run('runc', ['ps', '--format', 'json', this.id]);
    for (const pid of z.array(z.int()).parse(JSON.parse(stdout))) {
      const inside = /^NSpid:.*\s(\d+)$/m.exec(await readFile(`/proc/${pid}/status`, 'utf8'))?.[1];
      this.pids.set(Number(inside), pid);
    }
  }

  /** An ordinary dump, which CRIU sends to a page server on loopback; the container stays frozen. */
  async dumpTo(take: (stream: Socket) => Promise<void>): Promise<void> {
    await run('runc', ['pause', this.id]);
    await this.#findProcesses();
    const server = createServer();
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    const { port } = z.object({ port: z.int() }).parse(server.address());
    const { promise: taken, resolve, reject } = Promise.withResolvers<void>();
    server.once('connection', (socket) => {
      server.close();
      take(socket).then(resolve, reject);
    });
    const to = ['--page-server', `127.0.0.1:${port}`];
    const where = ['--image-path', this.images, '--work-path', this.work];
    const dump = run('runc', ['checkpoint', '--leave-running', ...where, ...to, this.id]);
    await Promise.all([dump, taken]);
  }

  /** Pages of the processes as they are. */
  memory(inside: number, first: number, count: number): Buffer {
    const memory = openSync(`/proc/${this.pids.get(inside)}/mem`, 'r');
    const buffer = Buffer.alloc(count * PAGE_BYTES);
    assert.equal(readSync(memory, buffer, 0, buffer.length, BigInt(first) * BigInt(PAGE_BYTES)), buffer.length);
    closeSync(memory);
    return buffer;
  }

  async #dump(): Promise<void> {
    const port = await freePort();
    // runc wants a descriptor that can only be written.
    const script = `exec runc checkpoint --image-path ${this.images} --work-path ${this.work} --lazy-pages --leave-running \
      --page-server 127.0.0.1:${port} --status-fd 5 ${this.id} 5>${join(ROOT, 'status')}`;
    await run('mkfifo', [join(ROOT, 'status')]);
    const child = spawn('sh', ['-c', script], { stdio: ['ignore', 'ignore', 'inherit'] });
    const exit = once(child, 'exit');
    const status = openSync(join(ROOT, 'status'), 'r');
    assert.equal(readSync(status, Buffer.alloc(1), 0, 1, null), 1, 'CRIU says that its page server listens');
    closeSync(status);
    const socket = connect({ host: '127.0.0.1', port });
    await once(socket, 'connect');
    await closePageServer(socket, await criuVersion());
    assert.deepEqual(await exit, [0, null]);
  }

  #readMemory(name: SpaceName, ranges: readonly PageRange[]): void {
    const pid = this.pids.get(Number(name.slice('process:'.length)));
    const memory = openSync(`/proc/${pid}/mem`, 'r');
    const buffer = Buffer.alloc(CHUNK_PAGES * PAGE_BYTES);
    for (const { first, count } of ranges) {
      for (let done = 0; done < count; done += CHUNK_PAGES) {
        const part = buffer.subarray(0, Math.min(CHUNK_PAGES, count - done) * PAGE_BYTES);
        const position = BigInt(first + done) * BigInt(PAGE_BYTES);
        assert.equal(readSync(memory, part, 0, part.length, position), part.length);
        this.source.write(name, first + done, part);
      }
    }
    closeSync(memory);
  }

  /** Makes pages final at the destination. */
  deliver(name: SpaceName, { first, count }: PageRange): void {
    for (let done = 0; done < count; done += CHUNK_PAGES) {
      const pages = Math.min(CHUNK_PAGES, count - done);
      const content = this.source.read(name, first + done, pages);
      for (let page = 0; page < pages; page += 1) {
        const part = content.subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES);
        if (part.equals(ZEROS)) this.#store?.zero(name, first + done + page, 1, true);
        else this.#store?.write(name, first + done + page, part, true);
      }
    }
  }

  deliverAll(): void {
    for (const { name, ranges } of this.contents) for (const range of ranges) this.deliver(name, range);
  }

  start(): Promise<LazyPager> {
    return startPager({ dir: this.dir, imagesDir: this.images, workDir: this.work, storeDir: this.storeDir });
  }

  /** Restores; the container runs when this resolves. */
  async restore(options: { lazy: boolean }): Promise<void> {
    const lazy = options.lazy ? '--lazy-pages' : '';
    const script = `exec runc restore -d ${lazy} --bundle ${this.bundle} --image-path ${this.images} --work-path ${this.work} ${this.id} \
      </dev/null >/dev/null 2>&1`;
    try {
      await run('sh', ['-c', script], { timeout_ms: STEP_LIMIT_MS });
    } catch (error) {
      const log = await readFile(join(this.work, 'restore.log'), 'utf8').catch(() => '');
      throw new Error(`restore failed\n${log.slice(-3000)}`, { cause: error });
    }
  }
}

/** What was in the memory of the source, in a sparse file for each process. */
export class SourcePages {
  readonly dir: string;
  readonly #files = new Map<SpaceName, number>();

  constructor(dir: string) {
    this.dir = dir;
  }

  #open(name: SpaceName): number {
    const file = this.#files.get(name) ?? openSync(join(this.dir, name), 'w+');
    this.#files.set(name, file);
    return file;
  }

  write(name: SpaceName, first: number, content: Buffer): void {
    writeSync(this.#open(name), content, 0, content.length, first * PAGE_BYTES);
  }

  read(name: SpaceName, first: number, pages: number): Buffer {
    const buffer = Buffer.alloc(pages * PAGE_BYTES);
    readSync(this.#open(name), buffer, 0, buffer.length, first * PAGE_BYTES);
    return buffer;
  }
}

const ZEROS = Buffer.alloc(PAGE_BYTES);

async function freePort(): Promise<number> {
  const server = createServer();
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = z.object({ port: z.int() }).parse(server.address());
  server.close();
  return port;
}

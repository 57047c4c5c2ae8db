import { spawn } from 'node:child_process';
import { mkdir, mkdtemp, open, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { toUmsError } from '#src/telemetry/errors.ts';
import { run } from '#src/telemetry/exec.ts';
import { z } from 'zod';
import { criuVersion } from './criu.ts';
import { tellingLine } from './errors.ts';

/**
 * Whether CRIU really works here. `criu check` says "Looks good" on kernels where no internet socket can be dumped, so
 * a small program with a listening socket, a pipe and an open file is dumped and restored, and must go on.
 */
const probeSchema = z.object({
  /** Empty when there is no CRIU that starts. */
  version: z.string(),
  works: z.boolean(),
  problem: z.string().optional(),
  features: z.record(z.string(), z.boolean()),
});
export type CriuProbe = z.infer<typeof probeSchema>;

const cacheSchema = z.object({ v: z.literal(1), boot: z.string(), version: z.string(), probe: probeSchema });

const FEATURES = [
  'mem_dirty_track',
  'uffd',
  'uffd-noncoop',
  'network_lock_nftables',
  'pidfd_store',
  'clone3_set_tid',
  'overlayfs_maps',
  'tcp_half_closed',
  'timens',
] as const;
const STEP_LIMIT_MS = 15_000;

const PERL = String.raw`use Socket;
socket(my $s, PF_INET, SOCK_STREAM, 0) or die; bind($s, sockaddr_in(0, INADDR_LOOPBACK)) or die; listen($s, 5) or die;
my ($port) = sockaddr_in(getsockname($s));
open(my $p, ">", "port") or die; print $p $port; close($p);
pipe(my $r, my $w) or die; open(my $f, ">", "ticks") or die; select($f); $| = 1;
while (1) { syswrite($w, "x"); sysread($r, my $b, 1); print $f "x"; select(undef, undef, undef, 0.01); }`;

const PYTHON = `import os, socket, time
s = socket.socket(); s.bind(("127.0.0.1", 0)); s.listen(5)
open("port", "w").write(str(s.getsockname()[1]))
r, w = os.pipe(); f = open("ticks", "wb", 0)
while True:
    os.write(w, b"x"); f.write(os.read(r, 1)); time.sleep(0.01)`;

/** Calls that arrive while one is at work wait for it. */
let running: Promise<CriuProbe> | undefined;

export function probeCriu(options: { stateDir: string }): Promise<CriuProbe> {
  running ??= probeOrRecall(options.stateDir).finally(() => {
    running = undefined;
  });
  return running;
}

async function probeOrRecall(stateDir: string): Promise<CriuProbe> {
  const version = (await criuVersion()) ?? '';
  const boot = (await readFile('/proc/sys/kernel/random/boot_id', 'utf8')).trim();
  const path = join(stateDir, 'criu-probe.json');
  const known = await recall(path);
  if (known !== undefined && known.boot === boot && known.version === version) return known.probe;
  const probe = version === '' ? absent() : await probeNow(version);
  await mkdir(stateDir, { recursive: true, mode: 0o700 });
  await writeFile(`${path}.new`, JSON.stringify({ v: 1, boot, version, probe }), { mode: 0o600 });
  await rename(`${path}.new`, path);
  return probe;
}

async function recall(path: string): Promise<z.infer<typeof cacheSchema> | undefined> {
  try {
    return cacheSchema.parse(JSON.parse(await readFile(path, 'utf8')));
  } catch {
    // Missing, cut short or of another version: the probe is simply done again.
    return undefined;
  }
}

function absent(): CriuProbe {
  return {
    version: '',
    works: false,
    problem: 'CRIU is not installed, or does not start on this kernel',
    features: {},
  };
}

async function probeNow(version: string): Promise<CriuProbe> {
  const features: Record<string, boolean> = {};
  for (const feature of FEATURES) features[feature] = await hasFeature(feature);
  const directory = await mkdtemp(join(tmpdir(), 'ums-criu-probe-'));
  try {
    const problem = await tryOut(directory);
    return { version, works: problem === undefined, ...(problem === undefined ? {} : { problem }), features };
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

async function hasFeature(feature: string): Promise<boolean> {
  const { exitCode } = await run('criu', ['check', '--feature', feature], {
    timeout_ms: STEP_LIMIT_MS,
    okExitCodes: [0, 1, 255],
  });
  return exitCode === 0;
}

/** Dumps, restores and asks the program whether it goes on; the first problem, or undefined. */
async function tryOut(directory: string): Promise<string | undefined> {
  const log = await open(join(directory, 'output'), 'w', 0o600);
  let pid: number | undefined;
  let restored: number | undefined;
  try {
    const child = await startProgram(directory, log.fd);
    if (child === undefined) return 'it could not be tried: neither perl nor python3 is installed';
    pid = child.pid;
    if (pid === undefined || !(await ticksGrow(directory))) return 'the program to try it with did not start';
    const images = join(directory, 'images');
    await mkdir(images);
    const common = ['--images-dir', images, '-v2'];
    const dumped = await step(['dump', '--tree', String(pid), '--log-file', 'dump.log', ...common], images, 'dump.log');
    if (dumped !== undefined) return `a small program cannot be dumped: ${dumped}`;
    pid = undefined;
    const pidFile = join(directory, 'pid');
    const args = ['restore', '--restore-detached', '--pidfile', pidFile, '--log-file', 'restore.log', ...common];
    const failed = await step(args, images, 'restore.log');
    if (failed !== undefined) return `a small program cannot be restored: ${failed}`;
    restored = Number(await readFile(pidFile, 'utf8'));
    if (!(await ticksGrow(directory))) return 'a small program was restored but does not go on';
    const port = Number(await readFile(join(directory, 'port'), 'utf8'));
    return (await connects(port)) ? undefined : 'a small program was restored but its socket does not listen';
  } catch (error) {
    return toUmsError(error).message;
  } finally {
    await log.close();
    if (pid !== undefined) endProcess(pid);
    if (restored !== undefined && restored > 1) endProcess(restored);
  }
}

async function startProgram(directory: string, output: number): Promise<{ pid: number | undefined } | undefined> {
  for (const [command, args] of [
    ['perl', ['-e', PERL]],
    ['python3', ['-c', PYTHON]],
  ] as const) {
    const pid = await new Promise<number | undefined>((resolve) => {
      const child = spawn(command, args, { cwd: directory, detached: true, stdio: ['ignore', output, output] });
      child.once('error', () => resolve(undefined));
      child.once('spawn', () => resolve(child.pid));
    });
    if (pid !== undefined) return { pid };
  }
  return undefined;
}

function endProcess(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch (error) {
    if (!(error instanceof Error && 'code' in error && error.code === 'ESRCH')) throw error;
  }
}

async function step(args: readonly string[], images: string, log: string): Promise<string | undefined> {
  const { exitCode } = await run('criu', args, { timeout_ms: STEP_LIMIT_MS, okExitCodes: [0, 1, 255] });
  if (exitCode === 0) return undefined;
  const text = await readFile(join(images, log), 'utf8').catch(() => '');
  return tellingLine(text) ?? `criu ${args[0] ?? ''} exited with ${exitCode}`;
}

async function ticksGrow(directory: string): Promise<boolean> {
  const path = join(directory, 'ticks');
  const size = async () => (await stat(path).catch(() => undefined))?.size ?? 0;
  const before = await size();
  const end = performance.now() + STEP_LIMIT_MS;
  while (performance.now() < end) {
    if ((await size()) > before) return true;
    await delay(10);
  }
  return false;
}

function connects(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ port, host: '127.0.0.1', timeout: 2000 });
    const done = (worked: boolean) => {
      socket.destroy();
      resolve(worked);
    };
    socket.once('connect', () => done(true));
    socket.once('error', () => done(false));
    socket.once('timeout', () => done(false));
  });
}

import { readFileSync } from 'node:fs';
import { access, constants, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { run } from '#src/telemetry/exec.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { z } from 'zod';
import { isMissing } from './cgroup.ts';

/** Where Podman and plain bundles keep runc's state when root runs them. */
export const RUNC_ROOT = '/run/runc';
const EXTRA_DIRECTORIES = ['/usr/local/sbin', '/usr/local/bin', '/usr/sbin', '/usr/bin', '/sbin', '/bin'];

/** The absolute path of a program, looked for in PATH and the directories where distributions put runtimes. */
export async function findProgram(name: string): Promise<string | undefined> {
  const directories = [...(process.env['PATH'] ?? '').split(':'), ...EXTRA_DIRECTORIES];
  for (const directory of new Set(directories)) {
    if (!directory.startsWith('/')) continue;
    const path = join(directory, name);
    try {
      await access(path, constants.X_OK);
      return path;
    } catch {
      // Not here; the next directory may have it.
    }
  }
  return undefined;
}

export async function requireProgram(name: string): Promise<string> {
  const path = await findProgram(name);
  if (path !== undefined) return path;
  throw new UmsError('UMS_E_ENGINE_MISSING', {
    message: `${name} is not installed here`,
    fault: 'user',
    mend: `Install it, on Debian with: apt install ${name}`,
  });
}

/** What programs said of their version, and the file that said it. */
const versions = new Map<string, { file: string; text: string }>();

/**
 * What a program prints for `--version`. It is started again only when its file is another one: engines take up to 50 ms
 * to start, and every migration asks.
 */
export async function versionText(path: string): Promise<string> {
  const { dev, ino, size, mtimeNs, ctimeNs } = await stat(path, { bigint: true });
  const file = [dev, ino, size, mtimeNs, ctimeNs].join(' ');
  const known = versions.get(path);
  if (known?.file === file) return known.text;
  const { stdout } = await run(path, ['--version'], { timeout_ms: 10_000 });
  versions.set(path, { file, text: stdout });
  return stdout;
}

/** `runc 1.1.15`, or undefined when there is none. */
export async function runcVersion(): Promise<string | undefined> {
  const path = await findProgram('runc');
  if (path === undefined) return undefined;
  const stdout = await versionText(path);
  const version = /^runc version (\S+)/m.exec(stdout)?.[1] ?? 'unknown';
  return `runc ${version.split('+')[0] ?? version}`;
}

const runtimeStateSchema = z.object({ init_process_pid: z.int(), init_process_start: z.number().default(0) });
/** Field of /proc/PID/stat with the time at which a process began, counted from the one after the command's name. */
const START_FIELD = 19;

/**
 * The first process of a container, from runc's own state file: asking an engine costs fifty milliseconds, and some
 * questions are asked while the service stands still. Undefined when runc knows no such container, or the process has
 * ended and another has its number.
 */
export async function initPid(root: string, id: string): Promise<number | undefined> {
  try {
    const text = readFileSync(join(root, id, 'state.json'), 'utf8');
    const state = runtimeStateSchema.parse(JSON.parse(text));
    if (state.init_process_pid <= 0) return undefined;
    const stat = readFileSync(`/proc/${state.init_process_pid}/stat`, 'utf8');
    const started = Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[START_FIELD]);
    return state.init_process_start === 0 || state.init_process_start === started ? state.init_process_pid : undefined;
  } catch (error) {
    if (isMissing(error)) return undefined;
    throw error;
  }
}

const descriptorsSchema = z.object({ external_descriptors: z.array(z.string()) });

/** What a dump writes as descriptors.json: runc notes it when it starts or restores a container. */
export async function descriptorsOf(root: string, id: string): Promise<string | undefined> {
  try {
    const text = await readFile(join(root, id, 'state.json'), 'utf8');
    return JSON.stringify(descriptorsSchema.parse(JSON.parse(text)).external_descriptors);
  } catch (error) {
    if (isMissing(error)) return undefined;
    throw error;
  }
}

/** runc keeps this pipe from a container's creation until it is told to start. */
export async function waitsToBegin(root: string, id: string): Promise<boolean> {
  try {
    await access(join(root, id, 'exec.fifo'), constants.F_OK);
    return true;
  } catch (error) {
    if (isMissing(error)) return false;
    throw error;
  }
}

import { existsSync } from 'node:fs';
import { chmod, cp, mkdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { z } from 'zod';
import { run } from '#src/telemetry/exec.ts';
import { type AgentSettings, environmentFile, type Layout, linkScript, unitFile } from './unit.ts';

/** One thing that an installation does: said first, with --dry-run only said. */
export interface Step {
  what: string;
  /** The text of the file that it writes, for the reader of a dry run. */
  text?: string;
  act(): Promise<void>;
}

/** What of a checkout runs on a host: the agent, the command line and the documents. */
const PARTS = ['src', 'docs', 'package.json', 'package-lock.json', 'LICENSE', 'README.md'] as const;
const SYSTEMD_LIMIT_MS = 60_000;

export function installSteps(
  checkout: string,
  layout: Layout,
  settings: AgentSettings | undefined,
  systemd: boolean,
): Step[] {
  const app = join(layout.prefix, 'app');
  const steps: Step[] = [
    { what: `copy ums with the packages it runs on to ${app}`, act: () => copyApp(checkout, app) },
    {
      what: `copy ${process.execPath} to ${layout.prefix}/node/bin/node`,
      act: () => replaceFile(process.execPath, join(layout.prefix, 'node', 'bin', 'node')),
    },
    write(layout.link, linkScript(layout), 0o755),
    write(layout.unit, unitFile(layout), 0o644),
  ];
  if (settings !== undefined) steps.push(write(layout.environment, environmentFile(settings), 0o644));
  steps.push(
    ...(systemd
      ? [
          systemctl(['daemon-reload']),
          systemctl(['enable', 'ums-agent.service']),
          systemctl(['restart', 'ums-agent.service']),
        ]
      : []),
  );
  return steps;
}

export function uninstallSteps(layout: Layout, systemd: boolean): Step[] {
  const stop = systemd && existsSync(layout.unit) ? [systemctl(['disable', '--now', 'ums-agent.service'])] : [];
  return [
    ...stop,
    remove(layout.unit),
    remove(layout.link),
    remove(layout.environment),
    remove(layout.prefix),
    ...(systemd ? [systemctl(['daemon-reload'])] : []),
  ];
}

function write(path: string, text: string, mode: number): Step {
  return {
    what: `write ${path}`,
    text,
    act: async () => {
      await mkdir(dirname(path), { recursive: true });
      await writeFile(`${path}.new`, text, { mode });
      await chmod(`${path}.new`, mode);
      await rename(`${path}.new`, path);
    },
  };
}

function remove(path: string): Step {
  return { what: `remove ${path}`, act: () => rm(path, { recursive: true, force: true }) };
}

function systemctl(args: readonly string[]): Step {
  return {
    what: `systemctl ${args.join(' ')}`,
    act: async () => void (await run('systemctl', args, { timeout_ms: SYSTEMD_LIMIT_MS })),
  };
}

const lockSchema = z.object({
  packages: z.record(z.string(), z.object({ dev: z.boolean().optional(), optional: z.boolean().optional() })),
});

/** Folders of the packages that are needed to run, as the lock file names them. */
export async function runtimePackages(checkout: string): Promise<string[]> {
  const lock = lockSchema.parse(JSON.parse(await readFile(join(checkout, 'package-lock.json'), 'utf8')));
  return Object.entries(lock.packages)
    .filter(([path, entry]) => /^node_modules\/(@[^/]+\/)?[^/]+$/.test(path) && entry.dev !== true)
    .map(([path]) => path.slice('node_modules/'.length));
}

/** Where the packages are: beside the checkout or wherever the launcher keeps them. */
function modulesDirectory(): string {
  const resolved = fileURLToPath(import.meta.resolve('commander'));
  const mark = '/node_modules/';
  return resolved.slice(0, resolved.lastIndexOf(mark) + mark.length);
}

/** The new copy is complete before it takes the old one's place, so that an interrupted installation can be repeated. */
async function copyApp(checkout: string, app: string): Promise<void> {
  // Run from the installation itself, it only writes its settings anew.
  if (resolve(checkout) === resolve(app)) return;
  const fresh = `${app}.new`;
  const old = `${app}.old`;
  await rm(fresh, { recursive: true, force: true });
  await mkdir(fresh, { recursive: true });
  for (const part of PARTS) {
    if (existsSync(join(checkout, part))) await cp(join(checkout, part), join(fresh, part), { recursive: true });
  }
  const modules = modulesDirectory();
  for (const name of await runtimePackages(checkout)) {
    const from = join(modules, name);
    // Optional packages for other processors are in the lock file but not on the disk.
    if (existsSync(from)) await cp(from, join(fresh, 'node_modules', name), { recursive: true, dereference: true });
  }
  await rm(old, { recursive: true, force: true });
  if (existsSync(app)) await rename(app, old);
  await rename(fresh, app);
  await rm(old, { recursive: true, force: true });
}

async function replaceFile(from: string, to: string): Promise<void> {
  if (from === to) return;
  await mkdir(dirname(to), { recursive: true });
  await cp(from, `${to}.new`, { dereference: true });
  await chmod(`${to}.new`, 0o755);
  await rename(`${to}.new`, to);
}

import { existsSync } from 'node:fs';
import { chmod, cp, mkdir, rename, rm, writeFile } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { APP_PARTS, copyPackages, copyParts } from '#src/approaches/images/app.ts';
import { run } from '#src/telemetry/exec.ts';
import { type AgentSettings, environmentFile, type Layout, linkScript, unitFile } from './unit.ts';

/** One thing that an installation does: said first, with --dry-run only said. */
export interface Step {
  what: string;
  /** The text of the file that it writes, for the reader of a dry run. */
  text?: string;
  act(): Promise<void>;
}

/** What of a checkout goes to a host: the agent, the command line and the documents. */
const PARTS = [...APP_PARTS, 'docs', 'README.md'];
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

/** The new copy is complete before it takes the old one's place, so that an interrupted installation can be repeated. */
async function copyApp(checkout: string, app: string): Promise<void> {
  // Run from the installation itself, it only writes its settings anew.
  if (resolve(checkout) === resolve(app)) return;
  const fresh = `${app}.new`;
  const old = `${app}.old`;
  await rm(fresh, { recursive: true, force: true });
  await copyParts(checkout, fresh, PARTS);
  await copyPackages(checkout, fresh);
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

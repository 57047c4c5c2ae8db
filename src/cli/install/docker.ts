import { existsSync, readFileSync } from 'node:fs';
import { mkdir, readFile, rename, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { z } from 'zod';
import { UmsError } from '#src/telemetry/errors.ts';
import type { Step } from './steps.ts';

/** Docker's settings, of which only the runtimes are read; everything else is kept as it is. */
const settingsSchema = z.looseObject({ runtimes: z.record(z.string(), z.unknown()).optional() });

export interface DockerPlaces {
  settings: string;
  pid: string;
}

export const DOCKER: DockerPlaces = { settings: '/etc/docker/daemon.json', pid: '/var/run/docker.pid' };
const RUNTIME = 'ums';

/** Tells Docker of the runtime through which it starts containers out of a checkpoint, or makes it forget that. */
export function dockerSteps(app: string, uninstall: boolean, places: DockerPlaces = DOCKER): Step[] {
  const settings = readSettings(places.settings);
  const { [RUNTIME]: known, ...others } = settings.runtimes ?? {};
  const path = join(app, 'src', 'drivers', 'oci', 'engine-runtime.sh');
  const runtimes = uninstall ? others : { ...others, [RUNTIME]: { path } };
  const text = `${JSON.stringify({ ...settings, runtimes }, undefined, 2)}\n`;
  const isSo = uninstall ? known === undefined : JSON.stringify(known) === JSON.stringify({ path });
  if (isSo) return [];
  return [
    {
      what: `${uninstall ? 'take the runtime out of' : 'name the runtime in'} ${places.settings}`,
      text,
      act: () => replace(places.settings, text),
    },
    { what: 'have dockerd read it (its containers go on running)', act: () => reload(places.pid) },
  ];
}

function readSettings(path: string): z.infer<typeof settingsSchema> {
  if (!existsSync(path)) return {};
  try {
    return settingsSchema.parse(JSON.parse(readFileSync(path, 'utf8')));
  } catch (error) {
    throw new UmsError('UMS_E_USAGE', {
      message: `${path} is not JSON as Docker takes it`,
      fault: 'user',
      state: 'Nothing was changed.',
      mend: 'Correct it (dockerd --validate says what is wrong) and run this again.',
      cause: error,
    });
  }
}

async function replace(path: string, text: string): Promise<void> {
  await mkdir(dirname(path), { recursive: true });
  await writeFile(`${path}.new`, text, { mode: 0o644 });
  await rename(`${path}.new`, path);
}

/** dockerd reads its runtimes again on SIGHUP. */
async function reload(pidFile: string): Promise<void> {
  if (!existsSync(pidFile)) return;
  process.kill(Number((await readFile(pidFile, 'utf8')).trim()), 'SIGHUP');
}

import { mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { criuFailure } from '#src/checkpoint/errors.ts';
import { UmsError, toUmsError } from '#src/telemetry/errors.ts';
import type { RestoreRequest, ServiceOutput } from '../contract.ts';
import { logOf } from '../oci/dump.ts';
import { DESCRIPTORS } from '../oci/prepared.ts';
import type { RestoreArea } from '../oci/restore-area.ts';
import { requireProgram, RUNC_ROOT } from '../oci/runtime.ts';
import { runPiped } from './cli.ts';
import { networkPath, parseConfig } from './describe.ts';
import { descriptorsSchema } from './schema.ts';

/** Seconds for which a prepared restore waits for its images; nobody else waits with it. */
const PREPARED_LIMIT_S = 300;

interface Restore {
  id: string;
  bundle: string;
  request: RestoreRequest;
  output: ServiceOutput;
}

const NOWHERE: ServiceOutput = { out: '/dev/null', err: '/dev/null' };

export async function writeSettings(area: RestoreArea, restore: Omit<Restore, 'output'>, wait: boolean): Promise<void> {
  const { id, bundle, request } = restore;
  const config = parseConfig(await readFile(join(bundle, 'config.json'), 'utf8'), bundle);
  const network = config.linux.namespaces.find((namespace) => namespace.type === 'network');
  await area.prepare({
    id,
    runc: await requireProgram('runc'),
    criu: await requireProgram('criu'),
    imagesDir: request.imagesDir,
    workDir: request.workDir,
    ownNetwork: network !== undefined && networkPath(config) === undefined,
    lazy: request.lazy === true,
    ...(wait ? { wait_s: PREPARED_LIMIT_S } : {}),
  });
  await mkdir(request.workDir, { recursive: true });
}

/** `runc create` through the wrapper, which makes it a restore. */
export async function launch(area: RestoreArea, { id, bundle, request, output }: Restore): Promise<void> {
  const log = join(request.workDir, 'runc.log');
  const args = ['--root', RUNC_ROOT, '--log', log, 'create', '--bundle', bundle, id];
  try {
    const text = await readFile(join(request.imagesDir, DESCRIPTORS), 'utf8');
    const piped = descriptorsSchema.parse(JSON.parse(text)).some((target) => target.startsWith('pipe:'));
    // Without pipes the descriptors were files inside the container or its /dev/null, which CRIU opens itself.
    await runPiped(area.wrapper(id), args, piped ? output : NOWHERE, request.timeout_ms);
  } catch (error) {
    if (error instanceof UmsError && error.code === 'UMS_E_TIMEOUT') throw error;
    const cause = new UmsError('UMS_E_CHILD', {
      message: toUmsError(error).message,
      fault: 'ums',
      detail: (await logOf(request.workDir, 'runc.log')).slice(-4000),
    });
    throw criuFailure('UMS_E_RESTORE', await logOf(request.workDir, 'restore.log'), cause);
  }
}

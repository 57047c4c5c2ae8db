import { createHash } from 'node:crypto';
import { chmod, copyFile, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, posix } from 'node:path';
import { HOME, INIT_COMMAND, LAYOUT, type Migratable, migratableSchema } from '#src/drivers/init/layout.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { run } from '#src/telemetry/exec.ts';
import { APP_PARTS, copyPackages, copyParts } from '../images/app.ts';
import { type ImageParts, packArchive, unpackArchive, withLayer } from '../images/archive.ts';
import { compileAhead, compiledExports } from '../images/compiled.ts';
import { addPrograms } from './programs.ts';

const TAR_LIMIT_MS = 300_000;

export interface MigratableRequest {
  /** An archive of the image. */
  archive: string;
  /** The archive to write. */
  target: string;
  /** Name of the new image; the service is called like its last part. */
  name: string;
  /** Directories whose files move, beside the image's own volumes. */
  files: readonly string[];
  /** Where this ums is. */
  checkout: string;
  /** How Node is started for the agent. */
  nodeFlags: readonly string[];
}

/** Makes an image whose containers can give their service away and receive it. */
export async function buildMigratable(request: MigratableRequest): Promise<Migratable> {
  const work = await mkdtemp(join(tmpdir(), 'ums-migratable-'));
  try {
    const before = join(work, 'before');
    await mkdir(before);
    const image = await unpackArchive(request.archive, before);
    requireSamePlatform(image);
    const migratable = migratableOf(image, request);
    const tree = join(work, 'tree');
    await addOurs(tree, migratable, request);
    const layer = join(work, 'layer.tar');
    const same = ['--mtime=@0', '--owner=0', '--group=0', '--numeric-owner', '--sort=name', '--format=posix'];
    const plain = '--pax-option=delete=atime,delete=ctime,exthdr.name=%d/PaxHeaders/%f';
    const args = ['--create', `--file=${layer}`, ...same, plain, `--directory=${tree}`, HOME.slice(1)];
    await run('tar', args, { timeout_ms: TAR_LIMIT_MS });
    const extended = await withLayer(image, layer, 'ums image build migratable');
    await packArchive(entered(extended, request.name), request.target);
    return migratable;
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}

/** What its containers will know of the image as it was. */
export function migratableOf(
  { names, config }: Pick<ImageParts, 'names' | 'config'>,
  request: Pick<MigratableRequest, 'name' | 'files'>,
): Migratable {
  const { config: container } = config;
  const entrypoint = container.Entrypoint ?? [];
  if (entrypoint[0] === INIT_COMMAND[0]) throw refused('It is a migratable image already.');
  const user = container.User ?? '';
  // CRIU would have to be that user too, and files of a service can be read and written as they are only by root.
  if (!/^(?:root|0)?(?::(?:root|0))?$/.test(user)) throw refused(`Its programs run as user ${user}, not as root.`);
  const last =
    request.name
      .split('/')
      .at(-1)
      ?.replace(/[:@].*$/, '') ?? '';
  const files = new Set(
    [...Object.keys(container.Volumes ?? {}), ...request.files].map((path) => posix.resolve('/', path)),
  );
  const parsed = migratableSchema.safeParse({
    v: 1,
    name: last,
    id: `sha256:${createHash('sha256').update(JSON.stringify(config)).digest('hex')}`,
    names,
    entrypoint,
    command: container.Cmd ?? [],
    env: container.Env ?? [],
    workingDir: container.WorkingDir === '' ? '/' : (container.WorkingDir ?? '/'),
    user,
    exposedPorts: Object.keys(container.ExposedPorts ?? {}),
    files: [...files],
  });
  if (parsed.success) return parsed.data;
  throw refused(`What it says of its containers cannot be used: ${parsed.error.issues[0]?.message ?? ''}.`);
}

/** The same image with the init as its first program; a container's own arguments still follow as they did. */
function entered(image: ImageParts, name: string): ImageParts {
  const { config } = image;
  const { Entrypoint, User: _, ...kept } = config.config;
  return {
    ...image,
    names: [name.includes(':') ? name : `${name}:latest`],
    config: { ...config, config: { ...kept, Entrypoint: [...INIT_COMMAND, ...(Entrypoint ?? [])] } },
  };
}

async function addOurs(tree: string, migratable: Migratable, request: MigratableRequest): Promise<void> {
  const { checkout, nodeFlags } = request;
  const at = (path: string) => join(tree, path);
  await mkdir(at(HOME), { recursive: true });
  await copyParts(checkout, at(LAYOUT.app), APP_PARTS);
  await copyPackages(checkout, at(LAYOUT.app));
  await compileAhead(at(LAYOUT.app), at(LAYOUT.compiled), nodeFlags);
  await addPrograms(tree);
  await copyFile(join(checkout, 'src', 'drivers', 'init', 'init.pl'), at(LAYOUT.init));
  await writeFile(at(LAYOUT.settings), `node-flags ${nodeFlags.join(' ')}\n`);
  await writeFile(at(LAYOUT.image), `${JSON.stringify(migratable)}\n`);
  await writeFile(at(LAYOUT.criu), 'unprivileged\n');
  await writeFile(at(LAYOUT.command), commandScript());
  await chmod(at(LAYOUT.command), 0o755);
}

function commandScript(): string {
  return `#!${LAYOUT.bin}/busybox sh
export PATH=${LAYOUT.bin} LD_LIBRARY_PATH=${LAYOUT.lib} UMS_RUN_DIR="\${UMS_RUN_DIR:-${HOME}/run}" UMS_STATE_DIR="\${UMS_STATE_DIR:-${HOME}/state}" ${compiledExports(LAYOUT.compiled)}
exec ${LAYOUT.bin}/node --disable-warning=ExperimentalWarning ${LAYOUT.app}/src/cli/main.ts "$@"
`;
}

/** Programs of this host go into it. */
function requireSamePlatform({ config }: ImageParts): void {
  const here = process.arch === 'x64' ? 'amd64' : process.arch;
  if (config.os === 'linux' && config.architecture === here) return;
  throw refused(`It is for ${config.os}/${config.architecture}, and this host is linux/${here}.`);
}

function refused(why: string): UmsError {
  return new UmsError('UMS_E_USAGE', {
    message: `The image cannot be made migratable: ${why}`,
    fault: 'user',
    state: 'Nothing was written.',
    mend: 'Choose another image; docs/service-level.md says what is needed.',
  });
}

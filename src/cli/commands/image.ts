import { accessSync, constants, createReadStream, createWriteStream, existsSync } from 'node:fs';
import { copyFile, rename, rm } from 'node:fs/promises';
import { homedir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { createGzip } from 'node:zlib';
import type { Command } from 'commander';
import { AGENT_NODE_FLAGS } from '#src/agent/node-flags.ts';
import { buildCapsule } from '#src/approaches/container-level/build.ts';
import { CAPSULE_IMAGE } from '#src/approaches/container-level/layout.ts';
import type { Runner } from '../command.ts';
import { formatBytes } from '../format.ts';
import { addMigratable } from './image-migratable.ts';
import { CHECKOUT } from './misc.ts';

const HELP = `
Examples:
  ums image build capsule
  ums image build capsule --output capsule.tar.gz
  podman load -i capsule.tar.gz
  docker load -i capsule.tar.gz
  gunzip <capsule.tar.gz | ctr -n k8s.io images import -

The image is ${CAPSULE_IMAGE}: Debian 13 with CRIU 4.2, runc, Node and ums. It is made from
Debian's packages and this installation, kept in the cache, and made anew only when one of
them is another. What it is good for: docs/container-level.md.
`;

export function addImage(program: Command, runner: Runner): void {
  const image = program.command('image').description('Build images that carry ums');
  const build = image.command('build').description('Build an image');
  const capsule = build
    .command('capsule')
    .description('Build the outer container of the container-level approach, as an archive that every engine loads')
    .option('-o, --output <file>', 'write the archive there, compressed if it ends in .gz (default: only to the cache)')
    .addHelpText('after', HELP);
  runner.action(capsule, async (cli, options: { output?: string }) => {
    const built = await buildCapsule(CHECKOUT, cacheDirectory(cli.io.env), AGENT_NODE_FLAGS, (text) =>
      cli.remark(`  ${text}`),
    );
    const archive = options.output === undefined ? built.archive : resolve(options.output);
    if (options.output !== undefined) await copyWhole(built.archive, archive);
    const { size_bytes } = built;
    cli.show({ image: CAPSULE_IMAGE, archive, size_bytes, built: built.built }, () =>
      cli.quiet
        ? archive
        : `${CAPSULE_IMAGE}, ${formatBytes(size_bytes)}${built.built ? '' : ' (from the cache)'}: ${archive}\nLoad it with: podman load -i ${archive}  (or docker load; ctr images import takes what is not compressed)`,
    );
    return 0;
  });
  addMigratable(build, runner);
}

/** Where a person without root may write nothing, it is their own cache. */
function cacheDirectory(env: NodeJS.ProcessEnv): string {
  const chosen = env['UMS_CACHE_DIR'];
  if (chosen !== undefined) return resolve(chosen);
  const common = '/var/cache/ums';
  try {
    accessSync(existsSync(common) ? common : dirname(common), constants.W_OK);
    return common;
  } catch {
    return join(env['XDG_CACHE_HOME'] ?? join(homedir(), '.cache'), 'ums');
  }
}

/** Compressed, if its name says so: Docker and Podman load either, containerd’s ctr only what is not. */
async function copyWhole(from: string, to: string): Promise<void> {
  const fresh = `${to}.incomplete`;
  try {
    if (to.endsWith('.gz')) await pipeline(createReadStream(from), createGzip(), createWriteStream(fresh));
    else await copyFile(from, fresh);
    await rename(fresh, to);
  } finally {
    await rm(fresh, { force: true });
  }
}

import { mkdtemp, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { type Command, InvalidArgumentError } from 'commander';
import { AGENT_NODE_FLAGS } from '#src/agent/node-flags.ts';
import { archiveOf } from '#src/approaches/images/from-engine.ts';
import { buildMigratable } from '#src/approaches/service-level/build.ts';
import type { Runner } from '../command.ts';
import { formatBytes } from '../format.ts';
import { CHECKOUT } from './misc.ts';

const HELP = `
Examples:
  ums image build migratable localhost/app:1 --output app.tar
  ums image build migratable saved.tar --name localhost/cache --files /var/lib/cache
  podman load -i app.tar
  podman run -d --cap-add CHECKPOINT_RESTORE --security-opt seccomp=unconfined \\
    localhost/app-migratable

IMAGE is an image that Podman or Docker has here, or an archive (docker save, podman
save). What it gets is all below /.ums: an init, CRIU and the agent, with libraries of
their own, taken from this host. How two such containers exchange their service, and
what their orchestrators must grant: docs/service-level.md.
`;

interface Flags {
  output: string;
  name?: string;
  files: string[];
}

export function addMigratable(build: Command, runner: Runner): void {
  const migratable = build
    .command('migratable')
    .description('Add an init and CRIU to the image of a service, so that its containers can move it by themselves')
    .argument('<image>', 'name of an image, or an archive')
    .requiredOption('-o, --output <file>', 'the archive to write')
    .option('--name <name>', 'name of the new image (default: that of the image, with -migratable)')
    .option('--files <directory>', 'directory whose files move, beside volumes; repeatable', directories, [])
    .addHelpText('after', HELP);
  runner.action(migratable, async (cli, image: string, flags: Flags) => {
    const target = resolve(flags.output);
    const work = await mkdtemp(join(tmpdir(), 'ums-image-'));
    try {
      const name = flags.name ?? `localhost/${lastPart(image)}-migratable`;
      cli.remark('  reading the image, and adding the init, CRIU and the agent');
      const archive = await archiveOf(image, work);
      const request = { archive, target, name, files: flags.files, checkout: CHECKOUT, nodeFlags: AGENT_NODE_FLAGS };
      const made = await buildMigratable(request);
      const { size } = await stat(target);
      cli.show({ image: name, service: made.name, archive: target, size_bytes: size, files: made.files }, () =>
        cli.quiet
          ? target
          : `${name}, ${formatBytes(size)}: ${target}\nLoad it with: podman load -i ${target}  (or docker load, ctr images import)`,
      );
      return 0;
    } finally {
      await rm(work, { recursive: true, force: true });
    }
  });
}

function directories(path: string, before: string[]): string[] {
  if (!path.startsWith('/') || path === '/')
    throw new InvalidArgumentError('A directory of the image, as /var/lib/app.');
  return [...before, path];
}

/** `registry/team/redis:7` is called redis; an archive by its file's name. */
function lastPart(image: string): string {
  const last = image.split('/').at(-1) ?? image;
  return last
    .replace(/[:@].*$/, '')
    .replace(/\.tar$/, '')
    .toLowerCase();
}

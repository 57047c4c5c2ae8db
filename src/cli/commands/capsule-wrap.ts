import { readFile } from 'node:fs/promises';
import { text as textOf } from 'node:stream/consumers';
import { type Command, Option } from 'commander';
import { CAPSULE_IMAGE } from '#src/approaches/container-level/layout.ts';
import { wrapCompose } from '#src/approaches/container-level/wrap/compose.ts';
import { wrapRunLine } from '#src/approaches/container-level/wrap/docker-run.ts';
import type { Wrapped, WrapOptions } from '#src/approaches/container-level/wrap/inner.ts';
import { wrapPod } from '#src/approaches/container-level/wrap/pod.ts';
import { type Runner, usage } from '../command.ts';
import { port } from './options.ts';

interface WrapFlags extends Omit<WrapOptions, 'capsule'> {
  capsuleImage: string;
  service?: string;
}

const LIMIT_CHARACTERS = 4 * 1024 * 1024;
const HELP = `
Examples:
  ums capsule wrap 'docker run -d --name cache -p 6379:6379 redis:7'
  ums capsule wrap compose.yaml --service cache > capsuled.yaml
  kubectl get pod cache -o yaml | ums capsule wrap -
  ums capsule wrap pod.yaml --archive /srv/redis.tar --peer-address 192.0.2.10

It reads text and writes text, and runs nothing. What it does not know it refuses.
`;

export function addWrap(capsule: Command, runner: Runner): void {
  const wrap = capsule
    .command('wrap')
    .description('Turn a docker run or podman run line, a compose file or a Pod manifest into its capsuled form')
    .argument('<what>', 'the line itself, the name of a file, or - for standard input')
    .option('--service <name>', 'which service of the compose file, or container of the Pod')
    .option('--archive <path>', 'an archive of the service’s image on the host (default: the capsule pulls the image)')
    .option('--capsule-image <name>', 'the capsule’s image, as the engine knows it', CAPSULE_IMAGE)
    .option('--peer-address <address>', 'at which other systems reach the capsule; publishes its agent’s ports')
    .addOption(new Option('--peer-port <port>', 'of its agent').argParser(port).default(7440))
    .addOption(new Option('--pairing-port <port>', 'of its agent while it pairs').argParser(port).default(7441))
    .addHelpText('after', HELP);
  runner.action(wrap, async (cli, what: string, flags: WrapFlags) => {
    const source = await sourceOf(what);
    const { capsuleImage, service, ...rest } = flags;
    const wrapped = wrapText(source, service, { ...rest, capsule: capsuleImage });
    cli.show(wrapped, () => wrapped.text);
    if (!cli.json && !cli.quiet) for (const note of wrapped.notes) cli.io.err(`note: ${note}\n`);
    return 0;
  });
}

async function sourceOf(what: string): Promise<string> {
  if (isLine(what)) return what;
  const source = what === '-' ? await textOf(process.stdin) : await readFileOrSay(what);
  if (source.length > LIMIT_CHARACTERS) throw usage(`${what} is too long to be a description of a service.`);
  return source;
}

async function readFileOrSay(path: string): Promise<string> {
  try {
    return await readFile(path, 'utf8');
  } catch (cause) {
    throw usage(`${path} cannot be read.`, { mend: 'Give a file, -, or a docker run line in quotation marks.', cause });
  }
}

const isLine = (text: string): boolean =>
  /^\s*(?:\S+\s+)?\S*(?:docker|podman|nerdctl)\s+(?:container\s+)?run\s/.test(text);

function wrapText(source: string, service: string | undefined, options: WrapOptions): Wrapped {
  if (isLine(source)) return wrapRunLine(source, options);
  if (/^apiVersion:/m.test(source) || /^\s*"apiVersion"/m.test(source)) return wrapPod(source, service, options);
  return wrapCompose(source, service, options);
}

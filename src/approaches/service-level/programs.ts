import { existsSync } from 'node:fs';
import { chmod, copyFile, mkdir, readdir, readFile, symlink, writeFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { LAYOUT } from '#src/drivers/init/layout.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { run } from '#src/telemetry/exec.ts';
import { withLoader } from './elf.ts';

/** What the init, the agent and CRIU run, and the Debian package that has it. Node is the one that runs this. */
const PROGRAMS: Readonly<Record<string, string>> = {
  criu: 'criu',
  perl: 'perl-base',
  tar: 'tar',
  find: 'findutils',
  du: 'coreutils',
  sync: 'coreutils',
};
/** Linked into one file, it needs no loader: a script can name it, and an image without a shell has one. */
const BUSYBOX = 'busybox';
/** Modules that Perl programs of ums use. */
const MODULES = ['strict', 'warnings', 'Config', 'Errno', 'Fcntl', 'POSIX', 'Socket', 'Exporter', 'constant'];
const DIRECTORIES = ['/usr/local/sbin', '/usr/local/bin', '/usr/sbin', '/usr/bin', '/sbin', '/bin'];

/** Puts programs of this host into a tree, with all libraries that they load, so that they need nothing of the image. */
export async function addPrograms(tree: string): Promise<void> {
  const libraries = new Map<string, string>();
  for (const directory of [LAYOUT.bin, LAYOUT.lib, LAYOUT.perl])
    await mkdir(join(tree, directory), { recursive: true });
  for (const [name, from] of Object.entries(PROGRAMS)) await addProgram(tree, name, find(name, from), libraries);
  await addProgram(tree, 'node', process.execPath, libraries);
  await addBusybox(tree);
  await addPerlModules(tree, libraries);
  for (const addon of await addons(join(tree, LAYOUT.app))) await noteLibraries(addon, libraries);
  for (const [name, path] of libraries) await copyFile(path, join(tree, LAYOUT.lib, name));
  if (!existsSync(join(tree, LAYOUT.loader))) {
    throw new UmsError('UMS_E_PREREQUISITE', { message: 'ldd names no loader for the programs here.', fault: 'user' });
  }
}

function find(name: string, package_: string): string {
  const path = DIRECTORIES.map((directory) => join(directory, name)).find((each) => existsSync(each));
  if (path !== undefined) return path;
  throw new UmsError('UMS_E_PREREQUISITE', {
    message: `${name} is not installed here, and is to go into the image.`,
    fault: 'user',
    state: 'Nothing was written.',
    mend: `apt install ${package_}`,
  });
}

async function addProgram(tree: string, name: string, path: string, libraries: Map<string, string>): Promise<void> {
  const target = join(tree, LAYOUT.bin, name);
  const program = await readFile(path);
  await writeFile(target, withLoader(program, LAYOUT.loader) ?? program);
  await chmod(target, 0o755);
  await noteLibraries(path, libraries);
}

/** The libraries that a program would load here, by the names under which it asks for them. */
async function noteLibraries(path: string, libraries: Map<string, string>): Promise<void> {
  const { stdout } = await run('ldd', [path], { okExitCodes: [0, 1] });
  for (const [, library] of stdout.matchAll(/(\/[^\s]+)\s+\(0x/g)) {
    if (library === undefined) continue;
    const name = basename(library);
    libraries.set(name.startsWith('ld-linux') ? basename(LAYOUT.loader) : name, library);
    // Libraries name the loader too, by its own name.
    if (name.startsWith('ld-linux')) libraries.set(name, library);
  }
}

async function addBusybox(tree: string): Promise<void> {
  const path = find(BUSYBOX, 'busybox-static');
  if (withLoader(await readFile(path), '/') !== undefined) {
    throw new UmsError('UMS_E_PREREQUISITE', {
      message: `${path} is not linked statically, and the image may lack the libraries it needs.`,
      fault: 'user',
      state: 'Nothing was written.',
      mend: 'apt install busybox-static',
    });
  }
  await copyFile(path, join(tree, LAYOUT.bin, BUSYBOX));
  await chmod(join(tree, LAYOUT.bin, BUSYBOX), 0o755);
  await symlink(BUSYBOX, join(tree, LAYOUT.bin, 'sh'));
}

/** The files that Perl really loads for these modules, at the same place below its directory of modules. */
async function addPerlModules(tree: string, libraries: Map<string, string>): Promise<void> {
  const program =
    'print "$_\\t$INC{$_}\\n" for keys %INC; print "\\t$_\\n" for @DynaLoader::dl_shared_objects; print "\\t\\t$_\\n" for @INC';
  const uses = MODULES.map((name) => `-M${name}`);
  const { stdout } = await run('perl', [...uses, '-MDynaLoader', '-e', program]);
  const lines = stdout.split('\n').map((line) => line.split('\t'));
  const roots = lines.flatMap(([, , root]) => (root === undefined ? [] : [root]));
  for (const [name, path] of lines) {
    if (name === undefined || path === undefined || path === '') continue;
    const inside = name !== '' ? name : below(path, roots);
    const target = join(tree, LAYOUT.perl, inside);
    await mkdir(dirname(target), { recursive: true });
    await copyFile(path, target);
    if (name === '') await noteLibraries(path, libraries);
  }
}

function below(path: string, roots: readonly string[]): string {
  const root = roots.find((each) => path.startsWith(`${each}/`));
  if (root !== undefined) return path.slice(root.length + 1);
  throw new UmsError('UMS_E_PREREQUISITE', {
    message: `Perl loads ${path}, which is in no directory of its modules.`,
    fault: 'user',
  });
}

/** Packages with a part in machine code. */
async function addons(app: string): Promise<string[]> {
  const names = await readdir(app, { recursive: true });
  return names.filter((name) => name.endsWith('.node') && !name.includes('musl')).map((name) => join(app, name));
}

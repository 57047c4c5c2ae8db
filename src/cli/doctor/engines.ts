import { run } from '#src/telemetry/exec.ts';
import { toUmsError } from '#src/telemetry/errors.ts';
import { type Check, missing, ok, warning } from './checks.ts';

interface Engine {
  name: string;
  command: string;
  args: string[];
  version: RegExp;
  mend: string;
  /** False for engines that this version has no driver for. */
  driven: boolean;
}

const ENGINES: readonly Engine[] = [
  {
    name: 'runc',
    command: 'runc',
    args: ['--version'],
    version: /runc version (\S+)/,
    mend: 'apt-get install runc',
    driven: true,
  },
  {
    name: 'podman',
    command: 'podman',
    args: ['--version'],
    version: /version (\S+)/,
    mend: 'apt-get install podman runc netavark aardvark-dns',
    driven: true,
  },
  { name: 'docker', command: 'docker', args: ['--version'], version: /version ([^\s,]+)/, mend: '', driven: false },
  { name: 'containerd', command: 'containerd', args: ['--version'], version: /\s(v?\d\S*)/, mend: '', driven: false },
];

async function engineCheck(engine: Engine): Promise<Check> {
  const id = `engines.${engine.name}`;
  try {
    const { stdout } = await run(engine.command, engine.args, { timeout_ms: 10_000 });
    const version = engine.version.exec(stdout)?.[1] ?? stdout.trim().split('\n')[0] ?? '';
    if (engine.driven) return ok('engines', id, engine.name, version);
    return {
      id,
      group: 'engines',
      what: engine.name,
      status: 'info',
      seen: `${version}; this version of ums has no driver for it`,
      mend: '',
    };
  } catch (thrown) {
    const error = toUmsError(thrown);
    if (!engine.driven) return { id, group: 'engines', what: engine.name, status: 'info', seen: 'not there', mend: '' };
    return warning('engines', id, engine.name, error.message, engine.mend);
  }
}

export async function engineChecks(): Promise<Check[]> {
  const checks = await Promise.all(ENGINES.map(engineCheck));
  const usable = checks.filter((check) => check.status === 'ok').map((check) => check.what);
  const runc = usable.includes('runc');
  const what = 'an engine whose services can be moved';
  const any = runc
    ? ok('engines', 'engines.any', what, usable.join(', '))
    : missing(
        'engines',
        'engines.any',
        what,
        usable.length === 0 ? 'none' : `${usable.join(', ')} without runc`,
        'apt-get install runc (and podman)',
      );
  return [...checks, any];
}

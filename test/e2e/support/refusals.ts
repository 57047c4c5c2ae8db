import assert from 'node:assert/strict';
import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import { z } from 'zod';
import { agentRequest } from '#lab/agents.ts';
import type { Host } from '#lab/host.ts';
import { migrationSchema } from '#src/coordination/schema.ts';
import type { SourceState } from '#src/coordination/states.ts';
import { ERROR_CODES, type ErrorCode } from '#src/telemetry/error-codes.ts';
import { type ErrorReport, errorReportSchema } from '#src/telemetry/errors.ts';
import { clearBreakpoints, reachedBreakpoint, setBreakpoint, until } from './moves.ts';

/** What the tests of refusals share: an attempt as a person makes it, and a picture of a host before and after. */
const ATTEMPT_LIMIT_MS = 90_000;
const SETTLE_LIMIT_MS = 20_000;
const EXITS = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9];
const LOG_TAIL_BYTES = 4096;

const resultSchema = z.object({
  event: z.literal('result'),
  status: z.enum(['done', 'aborted', 'refused', 'in_doubt', 'running']),
  id: z.string().nullable(),
  error: errorReportSchema.optional(),
});
export interface Attempt {
  exit: number;
  result: z.infer<typeof resultSchema>;
}

/** `ums migrate … --json` on the host itself. */
export async function attempt(host: Host, service: string, to: string, more: readonly string[] = []): Promise<Attempt> {
  const { stdout, stderr, exitCode } = await host.exec(
    'ums',
    ['migrate', service, '--to', to, '--technique', 'cold', '--json', ...more],
    {
      timeout_ms: ATTEMPT_LIMIT_MS,
      okExitCodes: EXITS,
    },
  );
  const last = stdout.trim().split('\n').at(-1) ?? '';
  assert.notEqual(last, '', `ums migrate said nothing: ${stderr}`);
  return { exit: exitCode, result: resultSchema.parse(JSON.parse(last)) };
}

/** The attempt failed with this code, in words that help, and with the exit status of the code. */
export function failedWith(tried: Attempt, code: ErrorCode, words?: RegExp): ErrorReport {
  const { error, status } = tried.result;
  assert.ok(error !== undefined, `it ended ${status}, not with ${code}`);
  assert.equal(error.code, code, JSON.stringify(error));
  assert.ok(status === 'aborted' || status === 'refused', status);
  complete(error);
  if (words !== undefined) assert.match(`${error.message}\n${error.detail ?? ''}`, words);
  assert.equal(tried.exit, ERROR_CODES[code].exit);
  return error;
}

/** No error leaves its reader without what happened, what holds now and what to do. */
export function complete(error: Pick<ErrorReport, 'message' | 'mend'>): void {
  assert.notEqual(error.message, '', 'it says what happened');
  assert.notEqual(error.mend, '', `it says what to do: ${error.message}`);
}

/** Begins an attempt, lets it come to a place in the saga, does something there, and lets it go on. */
export async function attemptWith(
  source: Host,
  service: string,
  to: string,
  place: { state: SourceState; point: 'before' | 'after' },
  act: (id: string) => Promise<void>,
): Promise<Attempt> {
  await setBreakpoint(source, { role: 'source', ...place });
  const tried = attempt(source, service, to);
  let acted = false;
  let id: string | undefined;
  try {
    id = await until(`the migration of ${service}`, SETTLE_LIMIT_MS, () => underWay(source, service));
    assert.ok(await reachedBreakpoint(source, source, id, place.state, place.point), `it comes to ${place.state}`);
    await act(id);
    acted = true;
  } finally {
    // Also after a failed act nothing may go on into the next test.
    if (!acted && id !== undefined) await agentRequest(source, 'POST', `/v1/migrations/${id}/cancel`);
    await clearBreakpoints(source);
    await Promise.allSettled([tried]);
  }
  return tried;
}

async function underWay(host: Host, service: string): Promise<string | undefined> {
  const all = z.array(migrationSchema).parse(await agentRequest(host, 'GET', '/v1/migrations'));
  return all.find((one) => one.role === 'source' && one.service === service && one.ended_at === null)?.id;
}

/**
 * Everything that a migration could leave behind, one fact a line. Counters, the agent's own records and the service of
 * Podman's that it asks are left out, and a mount that Podman makes for itself whenever it likes.
 */
const PICTURE = `
podman ps --all --format 'container {{.Names}} {{.ID}} {{.State}}'
podman volume ls --format 'volume {{.Name}}'
podman images --all --no-trunc --format 'image {{.ID}} {{.Repository}}'
runc list --quiet | sed 's/^/runc /'
awk '$5 != "/var/lib/containers/storage/overlay" { print "mount", $5 }' /proc/self/mountinfo
ip -o link | awk -F': ' '{ print "link", $2 }'
find /sys/fs/cgroup -mindepth 1 -type d -printf 'cgroup %P\\n'
find /sys/fs/cgroup -mindepth 2 -name cgroup.freeze -exec grep -l 1 {} + | sed 's/^/frozen /'
find /run/ums/staging /run/ums/restore /var/lib/ums /srv -mindepth 1 2>/dev/null |
  grep -vE '/(ums\\.db.*|client-[^/]*\\.key|criu-probe\\.json.*)$' | sed 's/^/file /'
ss -Hlntu | awk '{ print "port", $1, $5 }'
ps -eo comm,args | grep -v 'podman system [s]ervice' | awk '{ print $1 }' | grep -E '^(criu|runc|conmon|podman|memhog|tar|unshare|sh)$' | sed 's/^/process /'
nft --stateless list ruleset | sed 's/^/rule /'
`;
/** The commands of the picture show themselves. */
const ITSELF = ['process sh'];

export async function picture(host: Host): Promise<string[]> {
  const { stdout } = await host.exec('sh', ['-c', PICTURE], { timeout_ms: 30_000, okExitCodes: [0, 1] });
  return stdout
    .split('\n')
    .filter((line) => line !== '' && !ITSELF.includes(line))
    .sort();
}

export type Pictures = Map<Host, string[]>;

export async function pictures(hosts: readonly Host[]): Promise<Pictures> {
  return new Map(await Promise.all(hosts.map(async (host) => [host, await picture(host)] as const)));
}

/** Both sides are again as they were; `except` takes away what the test itself changed. */
export async function asBefore(before: Pictures, except: (line: string) => boolean = () => false): Promise<void> {
  for (const [host, lines] of before) {
    await until(`${host.name} is as it was`, SETTLE_LIMIT_MS, async () => {
      const now = (await picture(host)).filter((line) => !except(line));
      const then = lines.filter((line) => !except(line));
      const difference = [
        ...now.filter((line) => !then.includes(line)).map((line) => `+ ${line}`),
        ...then.filter((line) => !now.includes(line)).map((line) => `- ${line}`),
      ];
      if (difference.length > 0) throw new Error(difference.join('\n'));
      assert.deepEqual(now, then);
      return true;
    });
  }
}

/** The end of the service's own log, read from its file: asking the container would leave traces in the pictures. */
export class Ticker {
  readonly #host: Host;
  readonly #file: string;

  static async of(host: Host, name: string): Promise<Ticker> {
    const { stdout } = await host.exec('podman', ['inspect', '--format', '{{.GraphDriver.Data.UpperDir}}', name]);
    return new Ticker(host, `${stdout.trim()}/tmp/ticks`);
  }

  private constructor(host: Host, file: string) {
    this.#host = host;
    this.#file = file;
  }

  #tail(): string {
    const file = openSync(this.#host.path(this.#file), 'r');
    try {
      const { size } = fstatSync(file);
      const text = Buffer.alloc(Math.min(size, LOG_TAIL_BYTES));
      readSync(file, text, 0, text.length, size - text.length);
      return text.toString('utf8');
    } finally {
      closeSync(file);
    }
  }

  last(): number {
    const last = [...this.#tail().matchAll(/^tick (\d+) \d+\.\d{6}$/gm)].at(-1)?.[1];
    assert.ok(last !== undefined, `no tick in ${this.#file}`);
    return Number(last);
  }

  /** It runs: from the state it had, and its counter moves. */
  async goesOn(since: number): Promise<void> {
    const first = this.last();
    assert.ok(first >= since, `the counter went back from ${since} to ${first}`);
    await until('the service goes on', SETTLE_LIMIT_MS, () =>
      Promise.resolve(this.last() > first + 5 ? true : undefined),
    );
  }
}

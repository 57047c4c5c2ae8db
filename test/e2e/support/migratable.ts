import assert from 'node:assert/strict';
import { z } from 'zod';
import { buildMigratableFor, type MigratableOptions, type MigratablePlace, runMigratable } from '#lab/migratable.ts';
import { PATIENCE } from '#lab/patience.ts';
import { migrationSchema, type Migration } from '#src/coordination/schema.ts';
import type { Place as Halt } from './moves.ts';
import { type CommandEngine, type InContainer, WORKLOAD } from './workload.ts';

export { GRANTS, LEAST_GRANTS, removeMigratable as remove } from '#lab/migratable.ts';

/** Containers of migratable images, as tests start, pair and move them. */
const START_LIMIT_MS = 30_000;
const MOVE_LIMIT_MS = 120_000;
const SEE_LIMIT_MS = 40_000;
const LIBRARIES = ['--env', 'LD_LIBRARY_PATH=/.ums/lib'];

/** A container, and where its engine runs it. */
export interface Place extends MigratablePlace {
  engine: CommandEngine;
}

/** Makes a migratable image of one that `host` has in Podman, and loads it into the engines of all places. */
export async function buildFor(
  places: readonly Place[],
  image: string,
  name: string,
  files: readonly string[],
): Promise<void> {
  const [first] = places;
  assert.ok(first !== undefined);
  await buildMigratableFor(first.host, places, image, name, files);
}

export async function start(place: Place, image: string, options: MigratableOptions = {}): Promise<void> {
  await runMigratable(place, image, { ...options, env: { UMS_FAULT_INJECTION: 'on' } });
  await answers(place);
}

/** Waits for the agent in a container. */
export async function answers(place: Place): Promise<void> {
  await askAgent(place, 'GET', '/v1/system', { limit_ms: START_LIMIT_MS });
}

/** The command line of ums in a container; its document. */
export async function command(place: Place, args: readonly string[]): Promise<unknown> {
  const { stdout } = await place.host.exec(place.engine, ['exec', place.container, '/.ums/ums', '--json', ...args], {
    timeout_ms: MOVE_LIMIT_MS,
    okExitCodes: [0, 3, 4, 5],
  });
  const last = stdout.trim().split('\n').at(-1) ?? '';
  return last === '' ? {} : JSON.parse(last);
}

export async function pair(one: Place, other: Place): Promise<void> {
  const { token } = z.object({ token: z.string() }).parse(await command(one, ['pair', 'invite']));
  await command(other, ['pair', 'join', token]);
}

/** Moves the service of one container to the other, and returns what the source's agent says of it. */
export async function moveBetween(from: Place, service: string, to: Place): Promise<Migration> {
  const result = z
    .looseObject({ id: z.string().nullable() })
    .parse(await command(from, ['migrate', service, '--to', to.container]));
  assert.ok(result.id !== null, JSON.stringify(result));
  return migrationSchema.parse(await askAgent(from, 'GET', `/v1/migrations/${result.id}`));
}

/**
 * Asks the agent in a container, and asks again until it answers and its answer has what is wanted (or the migration has
 * ended): within the container, because each `exec` of an engine costs more than the rest together.
 */
const ASK = `
const [method, path, body, wanted, limit_ms] = JSON.parse(process.argv[1]);
const headers = body === null ? {} : { 'content-type': 'application/json' };
const ask = () => new Promise((resolve, reject) => {
  const options = { socketPath: '/.ums/run/api/agent.sock', method, path, headers };
  const call = require('node:http').request(options, (answer) => {
    let text = '';
    answer.setEncoding('utf8');
    answer.on('data', (more) => (text += more));
    answer.on('end', () => resolve({ ok: answer.statusCode < 300, text }));
  });
  call.on('error', reject);
  call.end(body === null ? undefined : JSON.stringify(body));
});
const isThere = (now) => wanted === null || now.ended_at > '' || Object.entries(wanted).some(([key, value]) => now[key] === value);
(async () => {
  const end = Date.now() + limit_ms;
  for (;;) {
    const answer = await ask().catch((error) => ({ ok: false, text: String(error) }));
    if ((answer.ok && isThere(JSON.parse(answer.text))) || Date.now() > end) {
      process.stdout.write(answer.text);
      process.exitCode = answer.ok ? 0 : 1;
      return;
    }
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
})();
`;

/** What a migration is waited for to be. */
type Wanted = Partial<Pick<Migration, 'state' | 'in_doubt'>>;

/** Asks the agent in a container over its local API. */
async function askAgent(
  place: Place,
  method: string,
  path: string,
  options: { body?: unknown; wanted?: Wanted; limit_ms?: number } = {},
): Promise<unknown> {
  const { body = null, wanted = null, limit_ms = 0 } = options;
  return JSON.parse(await scripted(place, ASK, [JSON.stringify([method, path, body, wanted, limit_ms * PATIENCE])]));
}

async function scripted({ host, engine, container }: Place, script: string, args: readonly string[]): Promise<string> {
  const words = ['exec', ...LIBRARIES, container, '/.ums/bin/node', '-e', script, ...args];
  return (await host.exec(engine, words, { timeout_ms: MOVE_LIMIT_MS })).stdout;
}

export async function halt(place: Place, at: Halt): Promise<void> {
  await askAgent(place, 'POST', '/v1/debug/breakpoints', { body: at });
}

export async function goOn(place: Place, at: Halt): Promise<void> {
  await askAgent(place, 'POST', '/v1/debug/breakpoints/clear', { body: at });
}

/** Begins a migration, which a halt will hold. */
export async function begin(from: Place, service: string, to: Place): Promise<string> {
  const body = { service, to: to.container, options: {} };
  return migrationSchema.parse(await askAgent(from, 'POST', '/v1/migrations', { body })).id;
}

/** How many services the agent in a container knows, also such as have not arrived. */
export async function servicesIn(place: Place): Promise<number> {
  return z.array(z.looseObject({ name: z.string() })).parse(await askAgent(place, 'GET', '/v1/services')).length;
}

/** Waits until a migration is what is wanted, as that side sees it; or else has ended. */
export async function sees(place: Place, id: string, wanted: Wanted): Promise<Migration> {
  const found = await askAgent(place, 'GET', `/v1/migrations/${id}`, { wanted, limit_ms: SEE_LIMIT_MS });
  const now = migrationSchema.parse(found);
  const told = JSON.stringify(now);
  for (const [key, value] of Object.entries(wanted))
    assert.equal(Object.entries(now).find(([one]) => one === key)?.[1], value, told);
  if (Object.keys(wanted).length === 0) assert.ok(now.ended_at !== null, told);
  return now;
}

export const inside =
  ({ engine, container }: Place): InContainer =>
  (host, args) =>
    host.exec(engine, ['exec', container, ...args, ...(args[0] === WORKLOAD ? ['--dir', '/srv', '--no-sysv'] : [])], {
      timeout_ms: START_LIMIT_MS,
      okExitCodes: [0, 1],
    });

/** The long-lived processes of kitchensink, by name with their ids; it makes others for moments, under the same names. */
export async function serviceProcesses(place: Place): Promise<string[]> {
  const script = 'for p in /proc/[0-9]*; do read -r id name _ <$p/stat && echo "$id $name"; done 2>/dev/null; true';
  const { stdout } = await inside(place)(place.host, ['/.ums/bin/sh', '-c', script]);
  const lowest = new Map<string, number>();
  for (const [, id, name] of stdout.matchAll(/^(\d+) \((ks-[a-z]+)\)$/gm)) {
    if (name !== undefined) lowest.set(name, Math.min(Number(id), lowest.get(name) ?? Number.POSITIVE_INFINITY));
  }
  return [...lowest].map(([name, id]) => `${name} ${id}`).toSorted();
}

/** Every thread of a service, told by the names of its processes: where it is, how long it has run, and what it may do. */
const LOOK = `
const fs = require('node:fs');
const { createHash } = require('node:crypto');
const names = new RegExp(process.argv[1]);
const read = (path) => { try { return fs.readFileSync(path, 'latin1'); } catch { return ''; } };
function shared(pid) {
  const hash = createHash('sha256');
  const memory = fs.openSync('/proc/' + pid + '/mem', 'r');
  for (const [, from, to] of fs.readFileSync('/proc/' + pid + '/maps', 'latin1').matchAll(/^([0-9a-f]+)-([0-9a-f]+) rw-s .*zero.*$/gm)) {
    const bytes = Buffer.alloc(parseInt(to, 16) - parseInt(from, 16));
    fs.readSync(memory, bytes, 0, bytes.length, parseInt(from, 16));
    hash.update(bytes);
  }
  fs.closeSync(memory);
  return hash.digest('hex');
}
const found = [];
for (const pid of fs.readdirSync('/proc').filter((name) => /^[0-9]+$/.test(name))) {
  if (!names.test(read('/proc/' + pid + '/comm').trim())) continue;
  // One that ends meanwhile is not there any more.
  const capabilities = read('/proc/' + pid + '/status').match(/^Cap.*$/gm)?.join(' ');
  if (capabilities === undefined) continue;
  for (const tid of fs.readdirSync('/proc/' + pid + '/task')) {
    const task = '/proc/' + pid + '/task/' + tid;
    const state = /\\) (\\S) /.exec(read(task + '/stat'))?.[1] ?? 'Z';
    // Ended ones, which their parent has not collected, are nothing that could run.
    if (state === 'Z') continue;
    const [sp = '', pc = ''] = read(task + '/syscall').trim().split(' ').slice(-2);
    const ran_ns = read(task + '/schedstat').split(' ')[0];
    found.push({ id: Number(tid), state, sp, pc, ran_ns, capabilities, shared: tid === pid ? shared(pid) : '' });
  }
}
process.stdout.write(JSON.stringify(found.sort((a, b) => a.id - b.id)));
`;

const threadSchema = z.object({
  id: z.int(),
  state: z.string(),
  sp: z.string(),
  pc: z.string(),
  ran_ns: z.string(),
  capabilities: z.string(),
  shared: z.string(),
});
export type Thread = z.infer<typeof threadSchema>;

export async function threads(place: Place, names: string): Promise<Thread[]> {
  return z.array(threadSchema).parse(JSON.parse(await scripted(place, LOOK, [names])));
}

import { Command } from 'commander';
import { formatBytes, formatDuration } from '#src/cli/format.ts';
import { Lab } from '#lab/lab.ts';
import { enter } from './entry.ts';
import { type Move, move } from './moves.ts';
import { LoadedRedis, type Verified } from './redis/load.ts';
import { REDIS, removeRedis } from './redis/service.ts';
import { Reporter } from './report.ts';

const STATE_BYTES = 256 * 1024 * 1024;
const WRITES_PER_S = 200;
/** How long the client writes undisturbed before and after each move. */
const CALM_WRITES = 100;

interface Seen extends Verified {
  move: Move;
  client_downtime_ms: number;
  normal_gap_ms: number;
  reconnects: number;
}

const WAY = [
  ['alpha', 'beta'],
  ['beta', 'alpha'],
] as const;

/** The story: a Redis under load goes from alpha to beta and back, and its client checks that nothing was lost. */
async function tell(report: Reporter, lab: Lab): Promise<Seen[]> {
  await removeRedis(lab);
  const redis = await LoadedRedis.start(lab, 'alpha', STATE_BYTES);
  try {
    const { keys, bytes, digest, writer } = redis;
    step(report, 'Redis runs on alpha, in a Podman container, behind a Frontman');
    step(report, `It holds ${keys} keys with ${formatBytes(bytes)} of random values`, { keys, bytes, digest });
    await writer.startWriting(WRITES_PER_S);
    await redis.untilWritten(CALM_WRITES);
    step(report, `A client elsewhere writes to it, ${WRITES_PER_S} numbered values a second`);
    const seen: Seen[] = [];
    for (const [from, to] of WAY) {
      report.say('');
      const event = (each: Record<string, unknown>) => report.event(String(each['event']), each);
      const moved = await move(lab, REDIS, from, to, { visible: !report.json, event });
      await redis.untilWritten(CALM_WRITES);
      const gap = await writer.gap(moved.from, moved.to);
      const own: Seen = {
        ...(await redis.verify()),
        move: moved,
        client_downtime_ms: gap.gap_ms,
        normal_gap_ms: gap.median_ms,
        reconnects: gap.reconnects,
      };
      seen.push(own);
      tellMove(report, own);
    }
    await writer.stopWriting();
    return seen;
  } finally {
    await redis.close();
  }
}

function step(report: Reporter, text: string, fields: Record<string, unknown> = {}): void {
  report.event('step', { text, ...fields });
  report.say(`${report.style.dim(formatDuration(report.elapsed_ms).padStart(8))}  ${text}`);
}

function tellMove(report: Reporter, seen: Seen): void {
  const { style } = report;
  const good = (fine: boolean, text: string) => report.say(`  ${fine ? style.green('✔') : style.red('✗')} ${text}`);
  const { source, destination } = seen.move.migration;
  report.event('checked', {
    source,
    destination,
    client_downtime_ms: seen.client_downtime_ms,
    lost_writes: seen.lost_writes,
    checksum_equal: seen.checksum_equal,
    continuous: seen.continuous,
  });
  report.say('  What the client saw:');
  report.say(
    `    the longest wait between two acknowledged writes was ${style.bold(formatDuration(seen.client_downtime_ms))}\n    (normally ${formatDuration(seen.normal_gap_ms)}); reconnects so far: ${seen.reconnects}`,
  );
  good(seen.lost_writes === 0, `${seen.lost_writes} of ${seen.acknowledged} acknowledged writes are lost`);
  good(seen.checksum_equal, `the checksum of all static keys is ${seen.checksum_equal ? 'the same' : 'DIFFERENT'}`);
  good(
    seen.continuous,
    `the same Redis process, ${seen.continuous ? `up for ${seen.uptime_s} s without a break` : 'RESTARTED'}`,
  );
}

function conclude(report: Reporter, seen: readonly Seen[], kept: boolean): number {
  const lost_writes = seen.at(-1)?.lost_writes ?? 0;
  const checksum_equal = seen.length === 2 && seen.every((each) => each.checksum_equal);
  const continuous = seen.every((each) => each.continuous);
  const good = lost_writes === 0 && seen.every((each) => each.lost_writes === 0) && checksum_equal && continuous;
  const client_downtime_ms = Math.max(...seen.map((each) => each.client_downtime_ms));
  const moves = seen.map((each) => ({ ...fieldsOf(each), client_downtime_ms: each.client_downtime_ms }));
  report.event('result', {
    status: good ? 'done' : 'failed',
    ...moves[0],
    lost_writes: Math.max(...seen.map((each) => each.lost_writes)),
    acknowledged_writes: seen.at(-1)?.acknowledged ?? 0,
    client_downtime_ms,
    checksum_equal,
    continuous,
    moves,
    duration_ms: Math.round(report.elapsed_ms),
  });
  const { style } = report;
  report.say('');
  report.say(
    good
      ? `${style.green('✔')} ${style.bold('Redis moved twice and nobody lost a write')}; the longest wait a client saw was ${formatDuration(client_downtime_ms)}.`
      : `${style.red('✗')} Something was lost: see above.`,
  );
  report.say(kept ? KEPT : NEXT);
  return good ? 0 : 1;
}

const NEXT = `
To try next:
  ./ums demo --keep                    leave it running, to look around and move it yourself
  ./ums lab up && ./ums lab shell alpha
  ./ums bench baseline                 downtime beside what Podman itself can do
  ./ums doctor                         what this machine has and lacks`;
const KEPT = `
Redis still runs on alpha. To try next:
  ./ums --context alpha ls
  ./ums --context alpha check redis --to beta
  ./ums --context alpha migrate redis --to beta
  ./ums --context beta migrations
  ./ums lab exec alpha podman ps
  ./ums lab down                       takes everything away again`;

function fieldsOf({ move: { migration } }: Seen): Record<string, unknown> {
  const {
    id,
    service,
    source,
    destination,
    technique,
    approach,
    downtime_ms,
    total_ms,
    bytes_on_wire,
    state_bytes,
    steps,
  } = migration;
  return {
    id,
    service,
    source,
    destination,
    technique,
    approach,
    downtime_ms,
    total_ms,
    bytes_on_wire,
    state_bytes,
    steps,
  };
}

async function demo(options: { json: boolean; keep: boolean }): Promise<number> {
  const report = new Reporter(options.json);
  const lab = Lab.open(undefined, (line) => {
    report.event('step', { text: line });
    report.say(`          ${line}`);
  });
  const wasUp = lab.isUp;
  try {
    report.say(
      `${report.style.bold('A running Redis moves from one host to another and back, while a client writes to it.')}\n`,
    );
    await lab.up(wasUp ? { hosts: ['alpha', 'beta'] } : {});
    step(report, 'Two test hosts, alpha and beta, are up, each with its own agent');
    const seen = await tell(report, lab);
    if (!options.keep) await tidy(lab, wasUp);
    return conclude(report, seen, options.keep);
  } catch (thrown) {
    const status = report.failure(thrown);
    report.say('The test hosts are left as they are: ./ums lab logs alpha; ./ums lab down takes them away.');
    return status;
  }
}

/** A lab that was there before is left as it was; one that was made for the demo goes away with it. */
async function tidy(lab: Lab, wasUp: boolean): Promise<void> {
  if (wasUp) await removeRedis(lab);
  else await lab.down();
}

const program = new Command('ums demo')
  .description(
    'A Redis under load moves between two test hosts on this machine, and back; its client checks that nothing is lost',
  )
  .option('--json', 'one event a line, the last with event "result"', false)
  .option('--keep', 'leave the test hosts and Redis running', false)
  .addHelpText(
    'after',
    '\nExample:\n  ./ums demo --keep\n\nExit status: 0 when no write was lost and every checksum is equal.\n',
  )
  .action(async (options: { json: boolean; keep: boolean }) => {
    process.exitCode = await demo(options);
  });
await enter(program);

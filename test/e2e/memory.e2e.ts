import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { z } from 'zod';
import type { Host } from '#lab/host.ts';
import { Lab } from '#lab/lab.ts';
import { until } from './support/moves.ts';
import { type InContainer, statusOf, verified, WORKLOAD, wentOn } from './support/workload.ts';

/**
 * Tracking written pages of containers, with the seccomp filters that engines set, from the host: nothing is missed, the
 * program notices nothing (its own checks would), and CRIU dumps it in the moment after.
 */
const TEST_LIMIT_MS = 240_000;
const START_LIMIT_MS = 30_000;
const COMMAND = '/opt/ums/app/test/e2e/support/memory-command.ts';
const NODE = '/opt/ums/node/bin/node';
const NAME = 'followed';
const BUNDLE = `/srv/${NAME}`;
const TIMES = 3;

const outcomeSchema = z.object({
  missed: z.array(z.string()),
  final_changed: z.number(),
  final_rest: z.number(),
  final_ms: z.number(),
  round_changed: z.array(z.number()),
  round_ms: z.array(z.number()),
  dumped_ms: z.number(),
  processes: z.array(z.object({ pid: z.number(), stopped_us: z.number(), hashed: z.string().optional() })),
});

const lab = Lab.open();
let alpha: Host;

before(async () => {
  await lab.up({ hosts: ['alpha'] });
  alpha = lab.host('alpha');
  await removeAll();
});
after(removeAll);

async function removeAll(): Promise<void> {
  await alpha.exec('podman', ['rm', '--force', '--ignore', '--time', '0', NAME]);
  await alpha.exec('runc', ['delete', '--force', NAME]);
  await alpha.exec('rm', ['-rf', BUNDLE, '/var/lib/ums-memory-test']);
}

const inPodman: InContainer = (host, args) =>
  host.exec('podman', ['exec', NAME, ...args], { timeout_ms: 30_000, okExitCodes: [0, 1] });
const inRunc: InContainer = (host, args) =>
  host.exec('runc', ['exec', NAME, ...args], { timeout_ms: 30_000, okExitCodes: [0, 1] });

async function startInPodman(): Promise<void> {
  const image = await alpha.importImage(WORKLOAD);
  await alpha.exec('mkdir', ['-p', BUNDLE]);
  const options = ['--detach', '--name', NAME, '--volume', `${BUNDLE}:/data`];
  await alpha.exec('podman', ['run', ...options, image, WORKLOAD, 'run', '--mib', '16']);
}

/** With a filter that refuses what the tracker makes the program call. */
async function startInRunc(): Promise<void> {
  await alpha.exec('sh', ['-ec', `mkdir -p ${BUNDLE} && cp -a /opt/bundles/${WORKLOAD}/rootfs ${BUNDLE}/rootfs`]);
  await alpha.exec('mkdir', ['-p', `${BUNDLE}/rootfs/data`]);
  await alpha.exec('runc', ['spec', '--bundle', BUNDLE]);
  const config = z
    .looseObject({ process: z.looseObject({}), root: z.looseObject({}), linux: z.looseObject({}) })
    .parse(JSON.parse(alpha.readFile(`${BUNDLE}/config.json`)));
  config.process['terminal'] = false;
  config.process['args'] = [WORKLOAD, 'run', '--mib', '16'];
  config.root['readonly'] = false;
  config.linux['seccomp'] = {
    defaultAction: 'SCMP_ACT_ALLOW',
    syscalls: [{ names: ['userfaultfd'], action: 'SCMP_ACT_KILL_PROCESS' }],
  };
  alpha.writeFile(`${BUNDLE}/config.json`, JSON.stringify(config));
  const script = `{ runc run --detach --bundle ${BUNDLE} ${NAME} </dev/null; } 2>&1 | (cat >>/var/log/${NAME}.log &)`;
  await alpha.exec('sh', ['-c', script]);
}

async function followed(engine: 'podman' | 'runc'): Promise<z.infer<typeof outcomeSchema>> {
  const args = ['--disable-warning=ExperimentalWarning', COMMAND, engine, NAME, '6'];
  const { stdout } = await alpha.exec(NODE, args, { timeout_ms: 120_000 });
  return outcomeSchema.parse(JSON.parse(stdout.trim().split('\n').at(-1) ?? ''));
}

const ENGINES = [
  { engine: 'podman', start: startInPodman, inside: inPodman },
  { engine: 'runc', start: startInRunc, inside: inRunc },
] as const;

for (const { engine, start, inside } of ENGINES) {
  void describe(`memory of a container of ${engine}`, { timeout: TEST_LIMIT_MS }, () => {
    void it(`is followed ${TIMES} times to the last page, dumped each time, and goes on unharmed`, async (t) => {
      await start();
      await until('it works', START_LIMIT_MS, async () => (await verified(alpha, inside)).ok || undefined);
      const first = await statusOf(alpha, inside);
      for (let time = 1; time <= TIMES; time += 1) {
        const outcome = await followed(engine);
        assert.deepEqual(outcome.missed, []);
        assert.ok(outcome.processes.length >= 5, 'all processes were followed');
        for (const each of outcome.processes) assert.equal(each.hashed, undefined, 'by the marks of the kernel');
        assert.ok(outcome.final_rest > outcome.final_changed, 'most of the memory is proved unchanged');
        const stopped = outcome.processes.map(({ stopped_us }) => stopped_us).toSorted((a, b) => a - b);
        t.diagnostic(
          `final ${outcome.final_ms.toFixed(1)} ms for ${outcome.processes.length} processes, dump ` +
            `${outcome.dumped_ms.toFixed(0)} ms, threads stopped ${stopped.join(', ')} µs`,
        );
        wentOn(first, (await verified(alpha, inside)).status);
      }
      await removeAll();
    });
  });
}

import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { z } from 'zod';
import { agentRequest } from '#lab/agents.ts';
import type { Host } from '#lab/host.ts';
import { Lab } from '#lab/lab.ts';
import { pairedSystemSchema } from '#src/agent/api.ts';
import type { SourceState } from '#src/coordination/states.ts';
import type { ErrorCode } from '#src/telemetry/error-codes.ts';
import {
  checksumOk,
  containers,
  clearBreakpoints,
  migrateToEnd,
  migration,
  setBreakpoint,
  until,
} from './support/moves.ts';
import { removeMosaic, startMosaic } from './support/mosaic.ts';
import { asBefore, attempt, attemptWith, complete, failedWith, pictures, Ticker } from './support/refusals.ts';
import {
  AGENT,
  pairAnew,
  resizeStaging,
  restartAgent,
  Stranger,
  withFakeOlderCriu,
  withOtherProtocol,
  withReinstalledAgent,
  withSmallDisk,
} from './support/refusals-hosts.ts';

/**
 * Bad input and bad circumstances: each ends with its coded error and the exit status of the code, and leaves both sides
 * as they were, told by a picture of both hosts before and after. All of it happens to one service, which has to go on
 * with its memory through everything.
 */
const NAME = 'steady';
const VOLUME = 'steady-data';
const PORT = 7781;
const LEAF_LIFE_MS = 4000;
/** More than is dumped to images first. */
const STREAMED_MIB = 72;
const LIMIT = { timeout: 120_000 };

const lab = Lab.open();
let alpha: Host;
let beta: Host;
let ticker: Ticker;
const stranger = new Stranger(lab, 'mallory');

async function startService(name: string, options: readonly string[] = [], mib = 4): Promise<Ticker> {
  const image = await alpha.importImage('memhog');
  const args = ['memhog', String(mib), '100', '/tmp/ticks'];
  await alpha.exec('podman', ['run', '--detach', '--name', name, ...options, image, ...args]);
  const fresh = await Ticker.of(alpha, name);
  await until(`${name} ticks`, 20_000, () => Promise.resolve(fresh.last() > 0 ? true : undefined));
  return fresh;
}

async function removeService(host: Host, name: string): Promise<void> {
  await host.exec('podman', ['rm', '--force', '--time', '0', '--ignore', name], { timeout_ms: 30_000 });
}

before(async () => {
  await lab.up({ agents: false });
  await lab.restartAgents(AGENT);
  alpha = lab.host('alpha');
  beta = lab.host('beta');
  await startService(NAME, ['--volume', `${VOLUME}:/data`, '--publish', `${PORT}:80`]);
  // There and back: afterwards the image is on both sides, and all that an engine makes once has been made.
  assert.equal((await migrateToEnd(alpha, NAME, 'beta')).state, 'done');
  assert.equal((await migrateToEnd(beta, NAME, 'alpha')).state, 'done');
  ticker = await Ticker.of(alpha, NAME);
});

after(async () => {
  stranger.remove();
  for (const host of lab.hosts) {
    await removeService(host, NAME);
    await host.exec('podman', ['volume', 'rm', '--force', VOLUME]);
    await lab.stopAgent(host.name);
  }
  await lab.startAgents();
});

async function podmanState(host: Host): Promise<string> {
  return (await host.exec('podman', ['inspect', '--format', '{{.State.Status}}', NAME])).stdout.trim();
}

/** A test whose body may do what it likes with a migration: both hosts end up as they were, and the service goes on. */
function leavesAll(title: string, body: () => Promise<void>): void {
  void it(title, LIMIT, async () => {
    const before = await pictures([alpha, beta]);
    const tick = ticker.last();
    await body();
    await asBefore(before);
    await ticker.goesOn(tick);
  });
}

void describe('a request that cannot be right', () => {
  leavesAll('unknown service', async () => {
    failedWith(await attempt(alpha, 'stedy', 'beta'), 'UMS_E_SERVICE_UNKNOWN', /stedy/);
  });

  leavesAll('a name that two engines know', async () => {
    const twin = { engine: 'runc', name: NAME } as const;
    await startMosaic(alpha, twin, { seed: 1, mib: 1, forks: 0 });
    try {
      const refused = failedWith(await attempt(alpha, NAME, 'beta'), 'UMS_E_SERVICE_AMBIGUOUS');
      assert.match(refused.mend, /podman:steady/);
      assert.match(refused.mend, /runc:steady/);
    } finally {
      await removeMosaic([alpha], twin);
    }
  });

  leavesAll('unknown system', async () => {
    failedWith(await attempt(alpha, NAME, 'gamma'), 'UMS_E_SYSTEM_UNKNOWN', /gamma/);
  });

  leavesAll('two migrations of one service at once', async () => {
    await setBreakpoint(alpha, { role: 'source', state: 'copying', point: 'before' });
    const tries = [attempt(alpha, NAME, 'beta'), attempt(alpha, NAME, 'beta')];
    try {
      const refused = failedWith(await Promise.race(tries), 'UMS_E_SERVICE_BUSY');
      const id = /m-[0-9a-z]{20}/.exec(refused.message)?.[0];
      assert.ok(id !== undefined, 'it names the other migration');
      const stop = await alpha.exec('ums', ['stop', NAME, '--json'], { okExitCodes: [4] });
      assert.match(stop.stdout, /UMS_E_SERVICE_BUSY/);
      await alpha.exec('ums', ['cancel', id]);
    } finally {
      await clearBreakpoints(alpha);
      await Promise.allSettled(tries);
    }
    const ends = (await Promise.all(tries)).map((tried) => `${tried.exit} ${tried.result.error?.code ?? ''}`);
    assert.deepEqual(new Set(ends), new Set(['4 UMS_E_SERVICE_BUSY', '7 UMS_E_CANCELLED']));
  });
});

void describe('a destination that cannot take it', () => {
  leavesAll('name taken', async () => {
    const image = 'localhost/memhog:latest';
    await beta.exec('podman', ['create', '--name', NAME, image, 'memhog', '1', '1', '-']);
    failedWith(await attempt(alpha, NAME, 'beta'), 'UMS_E_NAME_TAKEN', new RegExp(NAME));
    assert.equal((await containers(beta, NAME)).length, 1, 'the one that was there is there');
    await removeService(beta, NAME);
  });

  leavesAll('volume taken', async () => {
    await beta.exec('podman', ['volume', 'create', VOLUME]);
    failedWith(await attempt(alpha, NAME, 'beta'), 'UMS_E_NAME_TAKEN', new RegExp(VOLUME));
    await beta.exec('podman', ['volume', 'rm', VOLUME]);
  });

  const LISTEN = `import socket, time
s = socket.socket(); s.bind(('0.0.0.0', ${PORT})); s.listen(1); time.sleep(60)`;

  async function withPortTaken(body: () => Promise<void>): Promise<void> {
    const server = beta.spawn('python3', ['-c', LISTEN], { stdio: 'ignore' });
    const taken = async () => (await beta.exec('ss', ['-Hltn', `sport = :${PORT}`])).stdout !== '';
    try {
      await until('the port is taken', 20_000, async () => ((await taken()) ? true : undefined));
      await body();
    } finally {
      server.kill('SIGTERM');
      await until('the port is free', 20_000, async () => ((await taken()) ? undefined : true));
    }
  }

  leavesAll('published port taken', () =>
    withPortTaken(async () => {
      failedWith(await attempt(alpha, NAME, 'beta'), 'UMS_E_PORT_TAKEN', new RegExp(String(PORT)));
    }),
  );

  leavesAll('no room on its disk, as far as can be known before', async () => {
    await alpha.exec('podman', ['exec', NAME, 'dd', 'if=/dev/urandom', 'of=/tmp/ballast', 'bs=1M', 'count=48']);
    try {
      await withSmallDisk(beta, '32m', async () => {
        failedWith(await attempt(alpha, NAME, 'beta'), 'UMS_E_NO_ROOM', /disk/);
      });
    } finally {
      await alpha.exec('podman', ['exec', NAME, 'rm', '/tmp/ballast']);
    }
  });

  leavesAll('its disk fills up under the copy', () =>
    withSmallDisk(beta, '128m', async (path) => {
      const place = { state: 'copying', point: 'before' } as const;
      const tried = await attemptWith(alpha, NAME, 'beta', place, async () => {
        await beta.exec('dd', ['if=/dev/zero', `of=${path}/filler`, 'bs=64k'], { okExitCodes: [1] });
      });
      failedWith(tried, 'UMS_E_NO_ROOM', /room|space/);
      await beta.exec('rm', [`${path}/filler`]);
    }),
  );

  leavesAll('no room in its memory, as far as can be known before', async () => {
    await resizeStaging(beta, '1m');
    failedWith(await attempt(alpha, NAME, 'beta'), 'UMS_E_NO_ROOM', /memory/);
    await resizeStaging(beta, '90%');
  });

  leavesAll('its memory fills up before the images come', async () => {
    const place = { state: 'dumping', point: 'before' } as const;
    const tried = await attemptWith(alpha, NAME, 'beta', place, () => resizeStaging(beta, '1m'));
    failedWith(tried, 'UMS_E_NO_ROOM', /memory/);
    await resizeStaging(beta, '90%');
  });

  leavesAll('its memory fills up under the dump of a service whose pages are streamed', async () => {
    await startService('large', [], STREAMED_MIB);
    const place = { state: 'dumping', point: 'before' } as const;
    const tried = await attemptWith(alpha, 'large', 'beta', place, () => resizeStaging(beta, '16m'));
    failedWith(tried, 'UMS_E_NO_ROOM', /memory/);
    await resizeStaging(beta, '90%');
    await removeService(alpha, 'large');
  });
});

void describe('a service that cannot be moved, or is no longer there', () => {
  leavesAll('CRIU refuses, and its reason is told', async () => {
    // A message queue looks like an empty file until CRIU tries to dump the file system that it is in.
    await alpha.exec('podman', ['exec', NAME, 'sh', '-c', ': >/dev/mqueue/jobs']);
    const error = failedWith(await attempt(alpha, NAME, 'beta'), 'UMS_E_DUMP', /mqueue/);
    assert.match(error.detail ?? '', /Error \(criu\/[a-z-]+\.c:\d+\)/);
    await alpha.exec('podman', ['exec', NAME, 'rm', '/dev/mqueue/jobs']);
  });

  leavesAll('CRIU refuses with a stream of pages already open', async () => {
    await startService('large', [], STREAMED_MIB);
    await alpha.exec('podman', ['exec', 'large', 'sh', '-c', ': >/dev/mqueue/jobs']);
    failedWith(await attempt(alpha, 'large', 'beta'), 'UMS_E_DUMP', /mqueue/);
    await removeService(alpha, 'large');
  });

  leavesAll('it exits during the dump', async () => {
    await startService('mortal');
    const place = { state: 'dumping', point: 'before' } as const;
    const kill = `group=$(sed -n 's/^0:://p' /proc/$(podman inspect --format '{{.State.Pid}}' mortal)/cgroup)
      echo 1 >/sys/fs/cgroup$group/cgroup.kill`;
    const tried = await attemptWith(alpha, 'mortal', 'beta', place, async () => {
      await alpha.exec('sh', ['-ec', kill]);
    });
    failedWith(tried, 'UMS_E_SERVICE_GONE', /mortal/);
    await until('its own engine has it, ended', 20_000, async () => {
      const [left] = await containers(alpha, 'mortal');
      return left?.State === 'exited' ? true : undefined;
    });
    await removeService(alpha, 'mortal');
  });

  const PLACES: readonly SourceState[] = ['copying', 'freezing', 'dumping', 'restoring'];
  for (const state of PLACES) {
    leavesAll(`it is removed before ${state}`, async () => {
      await startService('removed');
      const tried = await attemptWith(alpha, 'removed', 'beta', { state, point: 'before' }, () =>
        removeService(alpha, 'removed'),
      );
      failedWith(tried, 'UMS_E_SERVICE_GONE', /removed/);
      assert.deepEqual(await containers(alpha, 'removed'), []);
    });
  }

  leavesAll('it is let run again by its engine before the commit', async () => {
    const tried = await attemptWith(alpha, NAME, 'beta', { state: 'restoring', point: 'before' }, async () => {
      // CRIU has the images, but may still be letting go of the processes, for which it thaws them.
      await until('Podman sees it paused', 10_000, async () => (await podmanState(alpha)) === 'paused' || undefined);
      await alpha.exec('podman', ['unpause', NAME]);
    });
    failedWith(tried, 'UMS_E_ENGINE', /run again/);
  });
});

void describe('checkpoint images that are not what was sent', () => {
  const DAMAGES: [what: string, script: string][] = [
    ['an altered image', `printf '\\377' | dd of="$(ls core-*.img | head -n 1)" bs=1 seek=48 conv=notrunc`],
    ['a truncated image', `truncate --size=-1 "$(ls core-*.img | head -n 1)"`],
    ['a missing image', 'rm inventory.img'],
    ['truncated memory', `truncate --size=-4096 "$(ls pages-*.img | head -n 1)"`],
  ];
  for (const [what, script] of DAMAGES) {
    leavesAll(what, async () => {
      const place = { state: 'restoring', point: 'before' } as const;
      const tried = await attemptWith(alpha, NAME, 'beta', place, async (id) => {
        await beta.exec('sh', ['-ec', script], { cwd: `/run/ums/staging/${id}/images` });
      });
      failedWith(tried, 'UMS_E_IMAGE_CORRUPT', /\.img/);
    });
  }
});

async function statusSeen(from: Host, of: string): Promise<string | undefined> {
  const systems = z.array(pairedSystemSchema).parse(await agentRequest(from, 'GET', '/v1/systems'));
  return systems.find((system) => system.name === of)?.status;
}

void describe('a peer that must not be trusted', () => {
  const PROBES: Record<string, ErrorCode> = {
    'not-json': 'UMS_E_PEER_MESSAGE',
    'too-large': 'UMS_E_PEER_MESSAGE',
    'wrong-shape': 'UMS_E_PEER_MESSAGE',
    'no-such-path': 'UMS_E_PEER_MESSAGE',
    'malformed-id': 'UMS_E_PEER_MESSAGE',
    'header-too-large': 'UMS_E_PEER_MESSAGE',
    'header-endless': 'UMS_E_PEER_MESSAGE',
    'header-not-json': 'UMS_E_PEER_MESSAGE',
    'header-wrong-shape': 'UMS_E_PEER_MESSAGE',
    'unknown-kind': 'UMS_E_PEER_VERSION',
    'unknown-id': 'UMS_E_MIGRATION_UNKNOWN',
    'others-migration': 'UMS_E_MIGRATION_UNKNOWN',
    'others-commit': 'UMS_E_MIGRATION_UNKNOWN',
    'others-trees': 'UMS_E_MIGRATION_UNKNOWN',
    'others-memory': 'UMS_E_MIGRATION_UNKNOWN',
    'others-images': 'UMS_E_MIGRATION_UNKNOWN',
    'others-pages': 'UMS_E_MIGRATION_UNKNOWN',
    'others-criu-images': 'UMS_E_MIGRATION_UNKNOWN',
    'altered-body': 'UMS_E_IMAGE_CORRUPT',
    unpaired: 'UMS_E_PEER_UNPAIRED',
  };

  leavesAll('malformed and oversized messages, and hands on somebody else’s migration', async () => {
    await stranger.join(beta);
    const place = { state: 'copying', point: 'before' } as const;
    const tried = await attemptWith(alpha, NAME, 'beta', place, async (id) => {
      for (const { probe, error } of await stranger.probe(beta, Object.keys(PROBES), id)) {
        assert.equal(error?.code, PROBES[probe], `${probe}: ${JSON.stringify(error)}`);
        if (error !== null) complete(error);
      }
      assert.equal((await migration(beta, id)).state, 'reserved', 'the migration did not notice');
      await agentRequest(alpha, 'POST', `/v1/migrations/${id}/cancel`);
    });
    failedWith(tried, 'UMS_E_CANCELLED');
  });

  leavesAll('revoked by the destination', async () => {
    await beta.exec('ums', ['pair', 'revoke', 'alpha']);
    await beta.exec('ums', ['pair', 'revoke', stranger.name]);
    failedWith(await attempt(alpha, NAME, 'beta'), 'UMS_E_PEER_REVOKED', /beta/);
    assert.equal(await statusSeen(alpha, 'beta'), 'revoked');
    const [answer] = await stranger.probe(beta, ['unknown-kind']);
    assert.equal(answer?.error?.code, 'UMS_E_PEER_REVOKED', 'before a word of it is read');
    await pairAnew(beta, alpha);
  });

  leavesAll('revoked by the source', async () => {
    await alpha.exec('ums', ['pair', 'revoke', 'beta']);
    failedWith(await attempt(alpha, NAME, 'beta'), 'UMS_E_PEER_REVOKED', /alpha/);
    assert.equal(await statusSeen(beta, 'alpha'), 'revoked', 'the other side is told');
    await pairAnew(beta, alpha);
  });

  leavesAll('unpaired: installed anew', () =>
    withReinstalledAgent(lab, beta, async () => {
      failedWith(await attempt(alpha, NAME, 'beta'), 'UMS_E_PEER_UNPAIRED', /beta/);
    }),
  );

  leavesAll('expired', async () => {
    await restartAgent(lab, beta, { args: ['--leaf-life-ms', String(LEAF_LIFE_MS)] });
    await stranger.join(beta);
    await alpha.exec('ums', ['pair', 'rotate', 'beta']);
    await sleep(LEAF_LIFE_MS);
    failedWith(await attempt(alpha, NAME, 'beta'), 'UMS_E_PEER_EXPIRED', /beta/);
    assert.equal(await statusSeen(alpha, 'beta'), 'expired');
    const [answer] = await stranger.probe(beta, ['unknown-kind']);
    assert.equal(answer?.error?.code, 'UMS_E_PEER_EXPIRED', 'whoever comes with it is refused');
    await restartAgent(lab, beta);
    await pairAnew(beta, alpha);
  });
});

void describe('versions that do not go together', () => {
  leavesAll('CRIU is older at the destination', () =>
    withFakeOlderCriu(lab, beta, async () => {
      failedWith(await attempt(alpha, NAME, 'beta'), 'UMS_E_PREFLIGHT', /CRIU is 4.* 3\.17\.1, older/);
    }),
  );

  leavesAll('no protocol in common', () =>
    withOtherProtocol(lab, beta, async () => {
      failedWith(await attempt(alpha, NAME, 'beta'), 'UMS_E_PEER_VERSION', /protocol/);
    }),
  );
});

void it('after all of this the service has its memory and can be moved', LIMIT, async () => {
  const tick = ticker.last();
  const moved = await attempt(alpha, NAME, 'beta');
  assert.deepEqual([moved.exit, moved.result.status], [0, 'done'], JSON.stringify(moved.result.error));
  await (await Ticker.of(beta, NAME)).goesOn(tick);
  await checksumOk(beta, NAME);
});

import assert from 'node:assert/strict';
import type { Driver, Tree } from './contract.ts';

/**
 * What every driver must do, as a list of cases over two hosts: test/e2e/conformance.e2e.ts runs it against each driver
 * inside hosts of the lab. A new driver needs a side of its own there (how to start a service, and one by hand).
 */
export type ConformanceDriver = Pick<
  Driver,
  | 'list'
  | 'describe'
  | 'state'
  | 'processes'
  | 'canCreate'
  | 'create'
  | 'findCreated'
  | 'freeze'
  | 'thaw'
  | 'prepareCheckpoint'
  | 'checkpoint'
  | 'prepareRestore'
  | 'restore'
  | 'throttle'
  | 'resume'
  | 'remove'
  | 'discard'
  | 'settle'
  | 'adopt'
  | 'restartFresh'
  | 'stop'
  | 'start'
>;

export interface ConformanceSide {
  driver: ConformanceDriver;
  /** Starts the service on this side as a person would: a program that counts upwards in memory, for `ticks` to read. */
  startService(name: string): Promise<void>;
  /** Makes something else of that name, without ums, that does not run; true while it is as it was made. */
  makeForeign(name: string): Promise<void>;
  foreignIsUntouched(name: string): Promise<boolean>;
  removeForeign(name: string): Promise<void>;
  /** The last count that the service wrote into one of its trees. */
  ticks(trees: readonly Tree[]): Promise<number>;
  /** Containers, runtime state, mounts, control groups, files and processes of the service here, in words. */
  remains(name: string): Promise<string[]>;
  /** Lets a frozen process go on, as a driver does that is killed before it can tell the engine. */
  letGo(pid: number): Promise<void>;
  /** Takes away what the engine knows of a service, behind the driver's back. */
  removeBehindDriver(name: string): Promise<void>;
}

export interface ConformanceWorld {
  source: ConformanceSide;
  destination: ConformanceSide;
  /** Brings the image to the destination, where there is one. */
  moveImage(name: string): Promise<void>;
  moveTrees(from: readonly Tree[], to: readonly Tree[]): Promise<void>;
  /** Dumps at the source with a page server, and brings the images to the destination. */
  checkpoint(handle: string): Promise<void>;
  /** Prepares a lazy dump, freezes and dumps, all with one driver; the images stay. */
  lazyCheckpoint(handle: string): Promise<void>;
  /** Where the source's images are, when they have not been moved. */
  sourceImages: { imagesDir: string; workDir: string };
  /**
   * Prepares a restore at the destination while only descriptors.json is there, with one driver; then does `between`,
   * brings the images, has a lazy-pages daemon offer their memory, and restores lazily.
   */
  lazyRestore(handle: string, between: () => Promise<void>): Promise<void>;
  /** Directories with the images at the destination. */
  images: { imagesDir: string; workDir: string };
  removeAll(name: string): Promise<void>;
}

export interface ConformanceCase {
  name: string;
  /** Each call comes from another agent, as if that had been restarted before; otherwise all on one side from one. */
  restarts?: true;
  run: (world: ConformanceWorld) => Promise<void>;
}

const TIMEOUT_MS = 60_000;
/** Long enough for a service that runs to count on. */
const LOOK_MS = 300;

let counter = 0;
function fresh(what: string): { name: string; key: string } {
  counter += 1;
  return { name: `conf-${what}-${counter}`, key: `m-${what}-${counter}-${Date.now()}` };
}

function pause(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, LOOK_MS));
}

async function standsStill(side: ConformanceSide, trees: readonly Tree[]): Promise<number> {
  const before = await side.ticks(trees);
  await pause();
  assert.equal(await side.ticks(trees), before, 'it counts although it should stand still');
  return before;
}

async function goesOn(side: ConformanceSide, trees: readonly Tree[], from: number): Promise<void> {
  for (let attempt = 0; attempt < 20; attempt += 1) {
    if ((await side.ticks(trees)) > from) return;
    await pause();
  }
  assert.fail(`it does not count on from ${from}`);
}

function throwsCode(code: string): (error: unknown) => boolean {
  return (error) => {
    assert.ok(error instanceof Error && 'code' in error, String(error));
    assert.equal(error.code, code);
    return true;
  };
}

/** A case with a service of its own that is gone from both sides afterwards, whatever happened. */
function withService(
  name: string,
  body: (world: ConformanceWorld, service: { name: string; key: string }) => Promise<void>,
): ConformanceCase {
  return {
    name,
    run: async (world) => {
      const service = fresh('service');
      try {
        await world.source.startService(service.name);
        await body(world, service);
      } finally {
        await world.removeAll(service.name);
      }
    },
  };
}

const listsAndDescribes = withService('lists and describes a running service', async ({ source }, { name }) => {
  const { driver } = source;
  const listed = (await driver.list()).find((service) => service.name === name);
  assert.equal(listed?.state, 'running');
  const described = await driver.describe(name);
  assert.equal(described.summary.id, listed?.id);
  assert.equal(described.specification.name, name);
  assert.ok(described.trees.length > 0);
  assert.equal((await driver.describe(described.summary.id)).summary.id, listed?.id);
  assert.equal(await driver.state(described.handle), 'running');
  const pids = await driver.processes(described.handle);
  assert.ok(pids.includes(described.summary.pid));
  await assert.rejects(driver.describe('conf-nobody'), throwsCode('UMS_E_SERVICE_UNKNOWN'));
});

const ambiguity: ConformanceCase = {
  name: 'refuses a beginning that fits several, and takes a whole name that is one too',
  run: async (world) => {
    const { source } = world;
    const { name } = fresh('twin');
    const twin = `${name}b`;
    try {
      await source.startService(name);
      await source.startService(twin);
      assert.equal((await source.driver.describe(name)).specification.name, name);
      const ids = (await source.driver.list()).map((service) => service.id);
      const shared = sharedBeginning(ids);
      await assert.rejects(
        source.driver.describe(shared === '' ? '' : shared),
        throwsCode(shared === '' ? 'UMS_E_SERVICE_UNKNOWN' : 'UMS_E_SERVICE_AMBIGUOUS'),
      );
    } finally {
      await world.removeAll(name);
      await world.removeAll(twin);
    }
  },
};

function sharedBeginning(ids: readonly string[]): string {
  const [first = '', ...others] = ids;
  // The whole of an id would be that one, so a beginning is shorter.
  for (let length = first.length - 1; length > 0; length -= 1) {
    const beginning = first.slice(0, length);
    if (others.some((id) => id !== first && id.startsWith(beginning))) return beginning;
  }
  return '';
}

const freezesAndThaws = withService('freezes without a tick and thaws with its state', async ({ source }, { name }) => {
  const { driver } = source;
  const { handle, trees } = await driver.describe(name);
  await driver.freeze(handle);
  await driver.freeze(handle);
  assert.equal(await driver.state(handle), 'frozen');
  const at = await standsStill(source, trees);
  await driver.thaw(handle);
  await driver.thaw(handle);
  assert.equal(await driver.state(handle), 'running');
  await goesOn(source, trees, at);
});

const checkpointKeepsFrozen = withService(
  'is frozen before, during and after a checkpoint',
  async (world, { name }) => {
    const { source } = world;
    const { handle, trees } = await source.driver.describe(name);
    await source.driver.freeze(handle);
    const at = await source.ticks(trees);
    await world.checkpoint(handle);
    assert.equal(await source.driver.state(handle), 'frozen');
    assert.equal(await standsStill(source, trees), at);
    await source.driver.thaw(handle);
    await goesOn(source, trees, at);
  },
);

const checkpointNeedsFrozen = withService('does not checkpoint a service that runs', async (world, { name }) => {
  const { handle } = await world.source.driver.describe(name);
  await assert.rejects(world.checkpoint(handle), throwsCode('UMS_E_SERVICE_NOT_RUNNING'));
  assert.equal(await world.source.driver.state(handle), 'running');
});

const moves = withService(
  'moves: restored without a tick, then goes on, then leaves nothing',
  async (world, service) => {
    const { source, destination } = world;
    const described = await source.driver.describe(service.name);
    await world.moveImage(service.name);
    assert.deepEqual((await destination.driver.canCreate(described.specification)).filter(isError), []);
    const created = await destination.driver.create(described.specification, service.key);
    assert.equal((await destination.driver.create(described.specification, service.key)).id, created.id);
    assert.equal((await destination.driver.findCreated(described.specification, service.key))?.id, created.id);
    assert.equal(await destination.driver.state(created.handle), 'created');
    await source.driver.freeze(described.handle);
    const at = await source.ticks(described.trees);
    await world.checkpoint(described.handle);
    await world.moveTrees(described.trees, created.trees);

    await destination.driver.restore(created.handle, { ...world.images, timeout_ms: TIMEOUT_MS });
    assert.equal(await destination.driver.state(created.handle), 'restored');
    assert.equal(await standsStill(destination, created.trees), at);
    const pids = await destination.driver.processes(created.handle);
    assert.ok(pids.length > 0);
    await destination.driver.resume(created.handle);
    await destination.driver.resume(created.handle);
    assert.equal(await destination.driver.state(created.handle), 'running');
    await goesOn(destination, created.trees, at);

    assert.equal(await standsStill(source, described.trees), at);
    await source.driver.remove(described.handle, { volumes: true });
    await source.driver.remove(described.handle, { volumes: true });
    assert.equal(await source.driver.state(described.handle), 'absent');
    assert.deepEqual(await source.remains(service.name), []);
    // It may be stopped by a broken link before it has settled.
    await destination.driver.adopt(created.handle);
    await destination.driver.freeze(created.handle);
    await destination.driver.resume(created.handle);
    await destination.driver.settle(created.handle);
    await destination.driver.settle(created.handle);

    const again = await destination.driver.describe(service.name);
    assert.deepEqual(comparable(again.specification), comparable(described.specification));
    await destination.driver.freeze(again.handle);
    assert.equal(await destination.driver.state(again.handle), 'frozen', 'a settled service freezes like any other');
    await destination.driver.thaw(again.handle);
    await destination.driver.stop(again.handle);
    assert.equal(await destination.driver.state(again.handle), 'stopped');
    await destination.driver.start(again.handle);
    assert.equal(await destination.driver.state(again.handle), 'running');
    await destination.driver.remove(again.handle, { volumes: true });
    assert.deepEqual(await destination.remains(service.name), []);
  },
);

/** Moves the service so far that its copy is restored, frozen, and the source's stands still. */
async function restoredCopy(world: ConformanceWorld, service: { name: string; key: string }) {
  const { source, destination } = world;
  const described = await source.driver.describe(service.name);
  await world.moveImage(service.name);
  const created = await destination.driver.create(described.specification, service.key);
  await source.driver.freeze(described.handle);
  await world.checkpoint(described.handle);
  await world.moveTrees(described.trees, created.trees);
  await destination.driver.restore(created.handle, { ...world.images, timeout_ms: TIMEOUT_MS });
  return { described, created };
}

const settlesUntold = withService(
  'settles a service whose engine was not told that it runs',
  async (world, service) => {
    const { source, destination } = world;
    const { described, created } = await restoredCopy(world, service);
    const at = await source.ticks(described.trees);
    const [first] = await destination.driver.processes(created.handle);
    assert.ok(first !== undefined);
    await destination.letGo(first);
    await destination.driver.adopt(created.handle);
    await destination.driver.settle(created.handle);
    assert.equal(await destination.driver.state(created.handle), 'running');
    await goesOn(destination, created.trees, at);
    // Its engine must have it as running, or it does not end it.
    await destination.driver.stop(created.handle);
    assert.equal(await destination.driver.state(created.handle), 'stopped');
    await destination.driver.remove(created.handle, { volumes: true });
  },
);

const finishesRemoval = withService('finishes a removal that was cut short', async ({ source }, { name }) => {
  const { handle, specification } = await source.driver.describe(name);
  const described = specification.mounts.flatMap((mount) => (mount.kind === 'volume' ? [mount.name] : []));
  await source.driver.freeze(handle);
  // The container is gone, and with it whoever could tell which volumes were its own.
  await source.driver.remove(handle, { volumes: false });
  // A bundle is all files, and is kept as a volume is.
  const left = await source.driver.state(handle);
  assert.ok(left === 'absent' || left === 'stopped', left);
  await source.driver.remove(handle, { volumes: true, keep: described, described });
  const kept = await source.remains(name);
  assert.deepEqual(
    described.filter((volume) => !kept.includes(volume)),
    [],
    'what shall stay stays',
  );
  await source.driver.remove(handle, { volumes: true, described });
  assert.deepEqual(await source.remains(name), []);
});

function isError(finding: { severity: string }): boolean {
  return finding.severity === 'error';
}

/** Environments have no order, and engines use that. */
function comparable(specification: { env: string[]; image: unknown }): unknown {
  return { ...specification, env: specification.env.toSorted(), image: undefined };
}

const undoesRestored = withService('removes a restored copy without letting it run', async (world, service) => {
  const { source, destination } = world;
  const { described, created } = await restoredCopy(world, service);
  await destination.driver.remove(created.handle, { volumes: true });
  assert.equal(await destination.driver.state(created.handle), 'absent');
  assert.deepEqual(await destination.remains(service.name), []);
  assert.equal(await destination.driver.findCreated(described.specification, service.key), undefined);
  const at = await source.ticks(described.trees);
  await source.driver.thaw(described.handle);
  await goesOn(source, described.trees, at);
});

const refusesBrokenImages = withService('fails to restore from nothing, and can be undone', async (world, service) => {
  const { source, destination } = world;
  const described = await source.driver.describe(service.name);
  await world.moveImage(service.name);
  const created = await destination.driver.create(described.specification, service.key);
  const missing = { imagesDir: '/nonexistent', workDir: world.images.workDir, timeout_ms: TIMEOUT_MS };
  await assert.rejects(destination.driver.restore(created.handle, missing));
  await destination.driver.remove(created.handle, { volumes: true });
  assert.deepEqual(await destination.remains(service.name), []);
});

const discards = withService(
  'discards a frozen source: stopped, without a tick, its files kept',
  async (world, { name }) => {
    const { source } = world;
    const { handle, trees } = await source.driver.describe(name);
    await source.driver.freeze(handle);
    const at = await source.ticks(trees);
    await source.driver.discard(handle);
    await source.driver.discard(handle);
    assert.equal(await source.driver.state(handle), 'stopped');
    assert.equal(await source.ticks(trees), at);
    await source.driver.start(handle);
    assert.equal(await source.driver.state(handle), 'running');
    // One that somebody has started again is ended as well.
    await source.driver.discard(handle);
    assert.equal(await source.driver.state(handle), 'stopped');
    await source.driver.remove(handle, { volumes: true });
    await source.driver.discard(handle);
    assert.equal(await source.driver.state(handle), 'absent');
  },
);

const beginsAnew = withService(
  'begins anew from its files when its memory is lost, frozen or not',
  async ({ source }, { name }) => {
    const { driver } = source;
    const { handle, trees } = await driver.describe(name);
    for (const frozen of [true, false]) {
      const before = await driver.processes(handle);
      if (frozen) await driver.freeze(handle);
      await driver.restartFresh(handle);
      assert.equal(await driver.state(handle), 'running');
      const now = await driver.processes(handle);
      assert.ok(now.length > 0 && !now.some((pid) => before.includes(pid)), 'the processes are others');
      await goesOn(source, trees, 0);
    }
  },
);

const leavesForeign = withService("leaves another's container of the same name alone", async (world, service) => {
  const { source, destination } = world;
  const { specification } = await source.driver.describe(service.name);
  await world.moveImage(service.name);
  await destination.makeForeign(service.name);
  try {
    assert.ok((await destination.driver.canCreate(specification)).some(isError));
    await assert.rejects(destination.driver.create(specification, service.key), throwsCode('UMS_E_NAME_TAKEN'));
    assert.equal(await destination.driver.findCreated(specification, service.key), undefined);
    assert.ok(await destination.foreignIsUntouched(service.name));
  } finally {
    await destination.removeForeign(service.name);
  }
});

const survivesLoss = withService('does not take for its own what came after it was lost', async (world, service) => {
  const { source, destination } = world;
  const { specification } = await source.driver.describe(service.name);
  await world.moveImage(service.name);
  const created = await destination.driver.create(specification, service.key);
  await destination.removeBehindDriver(service.name);
  await destination.makeForeign(service.name);
  try {
    assert.equal(await destination.driver.findCreated(specification, service.key), undefined);
    await destination.driver.remove(created.handle, { volumes: true });
    assert.ok(await destination.foreignIsUntouched(service.name));
  } finally {
    await destination.removeForeign(service.name);
  }
  assert.deepEqual(await destination.remains(service.name), []);
});

const lazyCheckpointKeepsFrozen = withService(
  'is dumped lazily, prepared before the freeze, and goes on afterwards',
  async (world, { name }) => {
    const { source } = world;
    const { handle, trees } = await source.driver.describe(name);
    await world.lazyCheckpoint(handle);
    assert.equal(await source.driver.state(handle), 'frozen');
    const at = await standsStill(source, trees);
    await source.driver.thaw(handle);
    await goesOn(source, trees, at);
  },
);

const preparedCheckpointIsHarmless = withService(
  'runs on when a checkpoint was prepared and the agent went away',
  async (world, { name }) => {
    const { source } = world;
    const { handle, trees } = await source.driver.describe(name);
    const at = await source.ticks(trees);
    await source.driver.prepareCheckpoint(handle, { ...world.sourceImages, lazy: true, timeout_ms: TIMEOUT_MS });
    assert.equal(await source.driver.state(handle), 'running');
    await goesOn(source, trees, at);
    await source.driver.thaw(handle);
    assert.equal(await source.driver.state(handle), 'running');
  },
);

const restoresPrepared = withService(
  'restores lazily what was prepared, and sees the files that came in between',
  async (world, service) => {
    const { source, destination } = world;
    const described = await source.driver.describe(service.name);
    await world.moveImage(service.name);
    const created = await destination.driver.create(described.specification, service.key);
    await source.driver.freeze(described.handle);
    const at = await source.ticks(described.trees);
    await world.checkpoint(described.handle);
    await world.lazyRestore(created.handle, async () => {
      assert.equal(await destination.driver.state(created.handle), 'created');
      await world.moveTrees(described.trees, created.trees);
    });
    assert.equal(await destination.driver.state(created.handle), 'restored');
    assert.equal(await standsStill(destination, created.trees), at);
    await destination.driver.resume(created.handle);
    await goesOn(destination, created.trees, at);
    await source.driver.remove(described.handle, { volumes: true });
    await destination.driver.settle(created.handle);
    const again = await destination.driver.describe(service.name);
    assert.equal(again.summary.state, 'running');
    await destination.driver.remove(again.handle, { volumes: true });
    assert.deepEqual(await destination.remains(service.name), []);
  },
);

const abandonsPrepared = withService('removes what was prepared by an agent that went away', async (world, service) => {
  const { source, destination } = world;
  const described = await source.driver.describe(service.name);
  await world.moveImage(service.name);
  const created = await destination.driver.create(described.specification, service.key);
  await source.driver.freeze(described.handle);
  await world.checkpoint(described.handle);
  const request = { ...world.images, timeout_ms: TIMEOUT_MS };
  await destination.driver.prepareRestore(created.handle, request);
  assert.equal(await destination.driver.state(created.handle), 'created');
  // The next agent prepares anew, and is gone too.
  await destination.driver.prepareRestore(created.handle, request);
  assert.equal(await destination.driver.state(created.handle), 'created');
  await destination.driver.remove(created.handle, { volumes: true });
  assert.equal(await destination.driver.state(created.handle), 'absent');
  assert.deepEqual(await destination.remains(service.name), []);
  const at = await source.ticks(described.trees);
  await source.driver.thaw(described.handle);
  await goesOn(source, described.trees, at);
});

const throttles = withService(
  'is throttled, if the host can do that, and given back what it had',
  async (world, { name }) => {
    const { source } = world;
    const { handle, trees } = await source.driver.describe(name);
    const could = await source.driver.throttle(handle, 0.5);
    assert.equal(await source.driver.throttle(handle, 0.25), could);
    await source.driver.throttle(handle, undefined);
    assert.equal(await source.driver.state(handle), 'running');
    await goesOn(source, trees, await source.ticks(trees));
  },
);

const refusesLazy = withService(
  'refuses a lazy dump, as it declares, and leaves the service as it is',
  async (world, { name }) => {
    const { source } = world;
    const { handle, trees } = await source.driver.describe(name);
    await assert.rejects(world.lazyCheckpoint(handle), throwsCode('UMS_E_TECHNIQUE'));
    assert.equal(await source.driver.state(handle), 'frozen');
    const at = await standsStill(source, trees);
    await source.driver.thaw(handle);
    await goesOn(source, trees, at);
  },
);

const OF_ALL: readonly ConformanceCase[] = [
  listsAndDescribes,
  ambiguity,
  freezesAndThaws,
  checkpointKeepsFrozen,
  checkpointNeedsFrozen,
  moves,
  preparedCheckpointIsHarmless,
  abandonsPrepared,
  throttles,
  settlesUntold,
  undoesRestored,
  finishesRemoval,
  refusesBrokenImages,
  discards,
  beginsAnew,
  leavesForeign,
  survivesLoss,
];

/** Whatever a driver must know between calls is written down, or asked of its engine. */
const movesBetweenRestarts: ConformanceCase = {
  ...moves,
  name: `${moves.name}; by another agent each time`,
  restarts: true,
};

/** What a driver must pass, by what it declares. */
export function conformanceCases({ whyNotLazy }: Pick<Driver, 'whyNotLazy'>): readonly ConformanceCase[] {
  const lazy = whyNotLazy === undefined ? [lazyCheckpointKeepsFrozen, restoresPrepared] : [refusesLazy];
  return [...OF_ALL, movesBetweenRestarts, ...lazy];
}

import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { EngineFingerprint } from '#src/drivers/contract.ts';
import { createDrivers } from '#src/drivers/registry.ts';
import { run } from '#src/telemetry/exec.ts';
import { type Check, missing, ok, warning } from './checks.ts';

/** Engines that this version has no driver for: named, so that nobody wonders whether they were overlooked. */
const OTHERS = ['crictl'] as const;

/** Every driver says for itself whether its engine can be used here. */
export async function engineChecks(): Promise<Check[]> {
  const directory = await mkdtemp(join(tmpdir(), 'ums-doctor-'));
  try {
    const drivers = createDrivers({ runDir: directory, stateDir: directory });
    const prints = await Promise.all([...drivers.values()].map((driver) => driver.fingerprint()));
    const others = await Promise.all(OTHERS.map(otherCheck));
    return [...prints.map(engineCheck), ...others.filter((check) => check !== undefined), anyCheck(prints)];
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

function engineCheck(print: EngineFingerprint): Check {
  const id = `engines.${print.engine}`;
  const runtime = print.runtime === '' || print.engine === 'runc' ? '' : ` on ${print.runtime}`;
  if (print.available) return ok('engines', id, print.engine, `${print.version}${runtime}`);
  return warning('engines', id, print.engine, print.problem ?? 'cannot be used', print.mend ?? '');
}

function anyCheck(prints: readonly EngineFingerprint[]): Check {
  const what = 'an engine whose services can be moved';
  const usable = prints.filter((print) => print.available).map((print) => print.engine);
  if (usable.length > 0) return ok('engines', 'engines.any', what, usable.join(', '));
  return missing('engines', 'engines.any', what, 'none', 'apt-get install runc, and podman if you use it');
}

async function otherCheck(name: string): Promise<Check | undefined> {
  try {
    await run(name, ['--version'], { timeout_ms: 10_000 });
  } catch {
    // Not there, so there is nothing to say about it.
    return undefined;
  }
  return {
    id: `engines.${name}`,
    group: 'engines',
    what: name,
    status: 'info',
    seen: 'is there; this version of ums has no driver for it',
    mend: '',
  };
}

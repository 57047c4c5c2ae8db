import assert from 'node:assert/strict';
import { after, before, it } from 'node:test';
import type { Host } from '#lab/host.ts';
import { Lab } from '#lab/lab.ts';
import { migrateToEnd } from './support/moves.ts';

/** Layers of an image that the destination has under whatever name are not sent again. */
const NAME = 'layered';
const MIB = 1024 * 1024;

const lab = Lab.open();
let alpha: Host;
let beta: Host;

async function shell(host: Host, script: string): Promise<string> {
  return (await host.exec('sh', ['-ec', script], { timeout_ms: 60_000 })).stdout.trim();
}

async function removeAll(): Promise<void> {
  for (const host of lab.hosts) {
    await host.exec('podman', ['rm', '--force', '--time', '0', '--ignore', NAME]);
    await host.exec('podman', ['image', 'rm', '--force', '--ignore', 'layered:base', 'layered:own', 'layered:before']);
  }
}

before(async () => {
  await lab.up();
  alpha = lab.host('alpha');
  beta = lab.host('beta');
  await removeAll();
});
after(removeAll);

/** Adds a layer with a file of random bytes, which no compression makes smaller. */
function addLayer(from: string, to: string, file: string, mib: number): string {
  return `c=$(podman create ${from} x); head -c ${mib * MIB} /dev/urandom >/tmp/${file}; podman cp /tmp/${file} $c:/${file}
    podman commit --quiet $c ${to}; podman rm $c; rm /tmp/${file}`;
}

void it('only the layers that are missing travel', { timeout: 240_000 }, async (t) => {
  const image = await alpha.importImage('memhog');
  await shell(alpha, addLayer(image, 'layered:base', 'base', 40));
  await shell(alpha, addLayer('layered:base', 'layered:own', 'own', 2));
  await alpha.exec('podman', ['run', '--detach', '--name', NAME, 'layered:own', 'memhog', '4', '100', '/tmp/ticks']);
  const id = await shell(alpha, "podman image inspect --format '{{.Id}}' layered:own");
  const first = await migrateToEnd(alpha, NAME, 'beta', {});
  assert.equal(first.state, 'done', JSON.stringify(first.error));
  assert.ok(first.bytes_on_wire > 42 * MIB, 'all layers travelled');
  assert.equal(await shell(beta, "podman image inspect --format '{{.Id}}' layered:own"), id);

  // Another image with the same base, which beta now has as a part of an image with a name of its own.
  await beta.exec('podman', ['rm', '--force', '--time', '0', NAME]);
  await beta.exec('podman', ['tag', 'layered:own', 'layered:before']);
  for (const host of [alpha, beta]) await host.exec('podman', ['untag', 'layered:own', 'layered:own']);
  await shell(alpha, addLayer('layered:base', 'layered:own', 'own', 3));
  await alpha.exec('podman', ['run', '--detach', '--name', NAME, 'layered:own', 'memhog', '4', '100', '/tmp/ticks']);
  const second = await migrateToEnd(alpha, NAME, 'beta', {});
  assert.equal(second.state, 'done', JSON.stringify(second.error));
  t.diagnostic(`${first.bytes_on_wire} bytes on the wire for all layers, ${second.bytes_on_wire} for the last one`);
  assert.ok(second.bytes_on_wire < 20 * MIB, `${second.bytes_on_wire} bytes on the wire`);
});

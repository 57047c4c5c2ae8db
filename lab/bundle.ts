import type { RunResult } from '#src/telemetry/exec.ts';
import { z } from 'zod';
import type { Host } from './host.ts';

/** Bundles of runc that are furnished from an image in a test host's Podman: bundles themselves know no images. */
const LIMIT_MS = 180_000;

const configSchema = z.looseObject({
  process: z.looseObject({ env: z.array(z.string()) }),
  root: z.looseObject({}),
  mounts: z.array(z.looseObject({ destination: z.string() })),
  linux: z.looseObject({ namespaces: z.array(z.looseObject({ type: z.string() })) }),
});

export interface ImageBundle {
  name: string;
  /** As Podman knows it. */
  image: string;
  args: readonly string[];
  /** All that it is granted, without `CAP_`. */
  capabilities: readonly string[];
  env?: readonly string[];
  mounts?: readonly { destination: string; source: string; type: string; options: readonly string[] }[];
}

/** Makes one and runs it on its host's network, since nobody makes one for a bundle. */
export async function runImageBundle(host: Host, bundle: ImageBundle): Promise<RunResult> {
  const path = `/srv/${bundle.name}`;
  const make = `mkdir -p "$2/rootfs"; from=$(podman image mount "$1"); cp -a "$from/." "$2/rootfs/"
    podman image unmount "$1" >/dev/null; runc spec --bundle "$2"`;
  await host.exec('sh', ['-ec', make, 'sh', bundle.image, path], { timeout_ms: LIMIT_MS });
  const config = configSchema.parse(JSON.parse(host.readFile(`${path}/config.json`)));
  const granted = bundle.capabilities.map((name) => `CAP_${name}`);
  config.process['terminal'] = false;
  config.process['args'] = bundle.args;
  config.process['capabilities'] = { bounding: granted, effective: granted, permitted: granted };
  config.process.env.push(...(bundle.env ?? []));
  config.root['readonly'] = false;
  config.mounts.push(...(bundle.mounts ?? []));
  config.linux.namespaces = config.linux.namespaces.filter(({ type }) => type !== 'network');
  host.writeFile(`${path}/config.json`, JSON.stringify(config, undefined, 2));
  const start = 'runc run --detach --bundle "$1" "$2" </dev/null >/dev/null 2>&1';
  return host.exec('sh', ['-c', start, 'sh', path, bundle.name], { timeout_ms: LIMIT_MS });
}

/** Absent already is fine. */
export async function removeBundle(host: Host, name: string): Promise<void> {
  const script = 'runc delete --force "$1" 2>/dev/null || true; rm -rf "/srv/$1"';
  await host.exec('sh', ['-c', script, 'sh', name], { timeout_ms: LIMIT_MS });
}

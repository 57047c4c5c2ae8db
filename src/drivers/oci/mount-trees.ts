import { UmsError } from '#src/telemetry/errors.ts';
import type { Tree } from '../contract.ts';
import type { Specification } from '../specification.ts';
import { entriesOf, exists } from './files.ts';

/** What an engine tells of a mount of a container that is here. */
interface ToldMount {
  Type: string;
  Name?: string | undefined;
  Source: string;
  Destination: string;
}

/** At the source: every volume and every bound directory, each once. */
export function mountedTrees(mounts: readonly ToldMount[]): Tree[] {
  return mounts.flatMap((mount): Tree[] => {
    if (mount.Type === 'volume') return [{ id: `volume:${mount.Name ?? ''}`, path: mount.Source, kind: 'plain' }];
    return mount.Type === 'bind' ? [{ id: `bind:${mount.Source}`, path: mount.Source, kind: 'plain' }] : [];
  });
}

/** Where what travels of the specification's mounts goes, in a container that was created for it. */
export function arrivingTrees({ mounts }: Specification, here: readonly ToldMount[]): Tree[] {
  return mounts.flatMap((mount): Tree[] => {
    if (mount.kind === 'bind' && mount.transfer === 'copy') {
      return [{ id: `bind:${mount.source}`, path: mount.source, kind: 'plain' }];
    }
    if (mount.kind !== 'volume' || mount.shared) return [];
    // An anonymous volume has another name here; its place in the container is the same.
    const made = here.find((each) => each.Type === 'volume' && each.Destination === mount.destination);
    return made === undefined ? [] : [{ id: `volume:${mount.name}`, path: made.Source, kind: 'plain' }];
  });
}

export function unique(trees: readonly Tree[]): Tree[] {
  return [...new Map(trees.map((tree) => [tree.id, tree])).values()];
}

/** What has to be made for a specification's mounts. */
export interface PlannedMounts {
  madeVolumes: string[];
  copiedDirectories: string[];
  madeDirectories: string[];
}

/** Throws where something is in the way. `command` is the engine's, `hasVolume` asks it. */
export async function planMounts(
  { mounts }: Specification,
  command: string,
  hasVolume: (name: string) => Promise<boolean>,
): Promise<PlannedMounts> {
  const madeVolumes = new Set<string>();
  const madeDirectories: string[] = [];
  const copiedDirectories: string[] = [];
  for (const mount of mounts) {
    if (mount.kind === 'volume' && !mount.anonymous && !mount.shared) {
      if (await hasVolume(mount.name)) throw volumeTaken(mount.name, command);
      madeVolumes.add(mount.name);
    }
    if (mount.kind === 'bind' && mount.transfer === 'copy') {
      copiedDirectories.push(mount.source);
      if (!(await exists(mount.source))) madeDirectories.push(mount.source);
      else if ((await entriesOf(mount.source)).length > 0) throw directoryTaken(mount.source);
    }
  }
  return { madeVolumes: [...madeVolumes], madeDirectories, copiedDirectories };
}

function directoryTaken(path: string): UmsError {
  return new UmsError('UMS_E_NAME_TAKEN', {
    message: `The directory ${path}, into which a bind mount would be copied, exists and is not empty`,
    fault: 'destination',
    state: 'It was left as it is.',
    mend: 'Empty or move it, or migrate with `--bind-mounts expect` to use what is there.',
  });
}

function volumeTaken(name: string, command: string): UmsError {
  return new UmsError('UMS_E_NAME_TAKEN', {
    message: `A volume named ${name} exists already`,
    fault: 'destination',
    state: 'It was left as it is.',
    mend: `Remove it if nobody needs it (${command} volume rm ${name}), or rename the volume at the source.`,
  });
}

import { lstatSync } from 'node:fs';
import { join } from 'node:path';
import { readIfThere } from '#src/drivers/oci/cgroup.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { capabilitiesOf } from './bundle-config.ts';
import { INIT } from './layout.ts';

/**
 * A capsule as its host sees it: a container whose first process is the capsule's. Nothing of its engine is needed for
 * that, so it is known under every one of them.
 */
const AGENT_SOCKET = ['run', 'ums', 'api', 'agent.sock'];

export interface CapsuleSeen {
  /** Of its first process, on this host. */
  pid: number;
  /** As its agent was told to call itself; undefined where that was left to it. */
  system: string | undefined;
  /** That its processes may have, without `CAP_`. */
  capabilities: ReadonlySet<string>;
  peerPort: number;
  pairingPort: number;
}

/** What there is to know of a capsule from its first process; undefined when the process is none of a capsule. */
export function capsuleSeen(pid: number): CapsuleSeen | undefined {
  if (pid <= 0) return undefined;
  const words = (readIfThere(`/proc/${pid}/cmdline`) ?? '').split('\0');
  // A container without this capability cannot be one: nothing that it says of itself is believed.
  const bounding = /^CapBnd:\s*([0-9a-f]+)$/m.exec(readIfThere(`/proc/${pid}/status`) ?? '')?.[1] ?? '0';
  const capabilities = capabilitiesOf(bounding);
  if (!words.slice(0, 3).includes(INIT) || !capabilities.has('SYS_ADMIN')) return undefined;
  const after = (option: string): string | undefined => {
    const at = words.indexOf(option);
    return at < 0 ? undefined : words[at + 1];
  };
  return {
    pid,
    system: after('--name'),
    capabilities,
    peerPort: Number(after('--peer-port') ?? 7440),
    pairingPort: Number(after('--pairing-port') ?? 7441),
  };
}

/**
 * The socket of the agent in a capsule. A link on the way there could lead to a socket of the host's own, so there may be
 * none. (Whoever can change that between two looks has CAP_SYS_ADMIN on this host already.)
 */
export function socketIn(pid: number): string {
  let path = `/proc/${pid}/root`;
  for (const part of AGENT_SOCKET) {
    path = join(path, part);
    const seen = lstatSync(path, { throwIfNoEntry: false });
    if (seen !== undefined && !seen.isSymbolicLink()) continue;
    throw new UmsError('UMS_E_AGENT_UNREACHABLE', {
      message: 'The agent in the capsule is not there.',
      fault: 'service',
      state: 'Nothing was changed.',
      mend: 'Wait until the capsule has started; a capsule that runs with --no-agent moves nothing.',
    });
  }
  return path;
}

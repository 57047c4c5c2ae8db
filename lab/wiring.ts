import { spawn } from 'node:child_process';
import { closeSync, mkdirSync, openSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { run } from '#src/telemetry/exec.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { handDownControllers, makeCgroup, processesIn, readOrEmpty, signalIfThere } from './cgroup.ts';
import type { Host } from './host.ts';
import { bucket } from './links.ts';
import { OUTSIDE, wirePort } from './names.ts';
import { BRIDGE, inNetwork, ipBatch, setUpSwitch } from './network.ts';
import type { Link } from './state.ts';

/**
 * The wire's processes: one that keeps its network namespace, and, when frames shall be delayed or lost, the emulator
 * (lab/wire/wire.c) in the place of the kernel's switch. Rates are the kernel's in both cases.
 */
const START_LIMIT_MS = 5000;
const POLL_MS = 5;
const GSO_SEGMENTS_MAX = 65_535;
/** Large enough to spare the emulator most of the work, small enough that a shaped link stays smooth. */
const GSO_SEGMENTS_DELAYED = 16;

export interface Wire {
  cgroup: string;
  tools: string;
  log: string;
}

function processNamed(cgroup: string, name: string): number | undefined {
  return processesIn(cgroup).find((pid) => readOrEmpty(`/proc/${pid}/comm`).trim() === name);
}

export function wireKeeper(cgroup: string): number | undefined {
  return processNamed(cgroup, 'sleep');
}

export async function startWire(wire: Wire): Promise<void> {
  if (wireKeeper(wire.cgroup) !== undefined) return;
  makeCgroup(wire.cgroup);
  handDownControllers(dirname(wire.cgroup));
  const script = 'echo 0 >"$1/cgroup.procs"; exec unshare --net sleep infinity';
  const child = spawn('sh', ['-ec', script, 'sh', wire.cgroup], { detached: true, stdio: 'ignore' });
  child.unref();
  const limit = Date.now() + START_LIMIT_MS;
  for (;;) {
    const pid = wireKeeper(wire.cgroup);
    if (pid !== undefined) return setUpSwitch(pid);
    if (Date.now() > limit || child.exitCode !== null) throw wireFailed('The wire did not start', wire);
    await sleep(POLL_MS);
  }
}

function wireFailed(message: string, wire: Wire): UmsError {
  return new UmsError('UMS_E_LAB', {
    message,
    fault: 'ums',
    mend: 'Take the lab down and up again: ./ums lab down && ./ums lab up',
    detail: readOrEmpty(wire.log).slice(-2000),
  });
}

/** Makes the link of every plugged-in host what it is asked to be. Asking twice changes nothing. */
export async function applyLink(
  wire: Wire,
  keeper: number,
  hosts: readonly { host: Host; pid: number }[],
  link: Link,
): Promise<void> {
  await applyRate(keeper, hosts, link);
  const emulated = link.delay_ms > 0 || link.loss_percent > 0;
  const ports = hosts.map(({ host }) => wirePort(host.name));
  // A frame that the emulator loses shall be one frame, not a batch that the sender left for its card to cut up.
  const segments = link.loss_percent > 0 ? 1 : emulated ? GSO_SEGMENTS_DELAYED : GSO_SEGMENTS_MAX;
  for (const { pid } of hosts) await ipBatch(pid, [`link set eth0 gso_max_segs ${segments}`]);
  await ipBatch(keeper, [`link set ${OUTSIDE} gso_max_segs ${segments}`]);
  if (emulated) {
    await startEmulator(wire, keeper, ports, link);
  } else {
    await stopEmulator(wire);
    await ipBatch(
      keeper,
      [...ports, wirePort(OUTSIDE)].map((port) => `link set ${port} master ${BRIDGE}`),
    );
  }
}

function emulatorArgs(ports: readonly string[], link: Link): string[] {
  const delay_us = Math.round(link.delay_ms * 1000);
  const loss_ppm = Math.round(link.loss_percent * 10_000);
  return [String(delay_us), String(loss_ppm), `+${wirePort(OUTSIDE)}`, ...ports];
}

async function startEmulator(wire: Wire, keeper: number, ports: readonly string[], link: Link): Promise<void> {
  const args = emulatorArgs(ports, link);
  const running = processNamed(wire.cgroup, 'wire');
  if (
    running !== undefined &&
    readOrEmpty(`/proc/${running}/cmdline`).split('\0').slice(1, -1).join(' ') === args.join(' ')
  ) {
    // A host that came back has its port on the switch; two switches between the same ports would be a loop.
    await ipBatch(
      keeper,
      [...ports, wirePort(OUTSIDE)].map((port) => `link set ${port} nomaster`),
    );
    return;
  }
  await stopEmulator(wire);
  await ipBatch(
    keeper,
    [...ports, wirePort(OUTSIDE)].map((port) => `link set ${port} nomaster`),
  );
  mkdirSync(dirname(wire.log), { recursive: true });
  const log = openSync(wire.log, 'a');
  const script = 'echo 0 >"$1/cgroup.procs"; shift; exec nsenter "$@"';
  const command = [`--net=/proc/${keeper}/ns/net`, '--', join(wire.tools, 'wire'), ...args];
  const child = spawn('sh', ['-ec', script, 'sh', wire.cgroup, ...command], {
    detached: true,
    stdio: ['ignore', log, log],
  });
  closeSync(log);
  child.unref();
  const limit = Date.now() + START_LIMIT_MS;
  while (processNamed(wire.cgroup, 'wire') === undefined) {
    if (Date.now() > limit || child.exitCode !== null) throw wireFailed('The delay emulator did not start', wire);
    await sleep(POLL_MS);
  }
}

async function stopEmulator(wire: Wire): Promise<void> {
  const limit = Date.now() + START_LIMIT_MS;
  for (;;) {
    const pid = processNamed(wire.cgroup, 'wire');
    if (pid === undefined) return;
    if (Date.now() > limit) throw wireFailed('The delay emulator did not end', wire);
    signalIfThere(pid, 'SIGKILL');
    await sleep(POLL_MS);
  }
}

/** Both ends of each host's cable are limited: one end for what the host sends, the other for what it is sent. */
async function applyRate(keeper: number, hosts: readonly { host: Host; pid: number }[], link: Link): Promise<void> {
  for (const { host, pid } of hosts) {
    await limitRate(pid, 'eth0', link);
    await limitRate(keeper, wirePort(host.name), link);
  }
}

async function limitRate(pid: number, device: string, link: Link): Promise<void> {
  const size = bucket(link);
  if (size !== null) {
    const rate = ['rate', `${link.rate_bps}bit`, 'burst', String(size.burst_bytes), 'limit', String(size.limit_bytes)];
    await inNetwork(pid, 'tc', ['qdisc', 'replace', 'dev', device, 'root', 'tbf', ...rate]);
    return;
  }
  // Exit code 2: there is nothing to delete.
  await run('nsenter', [`--net=/proc/${pid}/ns/net`, '--', 'tc', 'qdisc', 'del', 'dev', device, 'root'], {
    okExitCodes: [0, 2],
  });
}

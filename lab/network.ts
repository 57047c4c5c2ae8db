import { run } from '#src/telemetry/exec.ts';
import {
  hostAddress,
  hostMac,
  NETWORK_PREFIX_LENGTH,
  OUTSIDE,
  OUTSIDE_ADDRESS,
  OUTSIDE_MAC,
  wirePort,
} from './names.ts';

/**
 * The lab's network. A namespace of its own, "the wire", holds a switch; each host has one cable (a veth pair) whose one
 * end is the host's eth0 and whose other is a port of the switch, named w-HOST. The machine's own network namespace
 * never sees any of it. A further cable, w-outside, leads to 10.77.0.254 in the wire itself: clients that are on no host.
 *
 * Namespaces are entered with nsenter --net: `ip netns exec` would also remount /sys.
 */
export const BRIDGE = 'switch';

export async function inNetwork(
  pid: number,
  command: string,
  args: readonly string[],
  input?: string,
): Promise<string> {
  const result = await run(
    'nsenter',
    [`--net=/proc/${pid}/ns/net`, '--', command, ...args],
    input === undefined ? {} : { input },
  );
  return result.stdout;
}

/** Several `ip` commands in one process. */
export async function ipBatch(pid: number, lines: readonly string[]): Promise<void> {
  await inNetwork(pid, 'ip', ['-batch', '-'], `${lines.join('\n')}\n`);
}

export async function setUpSwitch(wirePid: number): Promise<void> {
  await ipBatch(wirePid, [
    `link add name ${BRIDGE} type bridge stp_state 0 forward_delay 0 mcast_snooping 0`,
    `link set ${BRIDGE} up`,
    'link set lo up',
    `link add name ${OUTSIDE} address ${OUTSIDE_MAC} type veth peer name ${wirePort(OUTSIDE)}`,
    `addr add ${OUTSIDE_ADDRESS}/${NETWORK_PREFIX_LENGTH} dev ${OUTSIDE}`,
    `link set ${wirePort(OUTSIDE)} master ${BRIDGE} up`,
    `link set ${OUTSIDE} up`,
  ]);
}

/** Plugs a freshly booted host in. Its port appears on the switch; whether it stays there is the link's business. */
export async function plugIn(wirePid: number, host: { name: string; number: number; pid: number }): Promise<void> {
  const port = wirePort(host.name);
  await ipBatch(wirePid, [
    `link add name ${port} type veth peer name eth0 netns ${host.pid}`,
    `link set ${port} master ${BRIDGE} up`,
  ]);
  await ipBatch(host.pid, [
    `link set eth0 address ${hostMac(host.number)}`,
    `addr add ${hostAddress(host.number)}/${NETWORK_PREFIX_LENGTH} dev eth0`,
    'link set eth0 up',
    `route add default via ${OUTSIDE_ADDRESS}`,
  ]);
}

/** Pulls the cable, as a power cut does: the host's last words (TCP resets of its dying sockets) reach nobody. */
export async function unplug(wirePid: number, host: string): Promise<void> {
  const ports = await inNetwork(wirePid, 'ip', ['-br', 'link', 'show']);
  if (!ports.split('\n').some((line) => line.startsWith(`${wirePort(host)}@`))) return;
  await inNetwork(wirePid, 'ip', ['link', 'del', wirePort(host)]);
}

/** One direction between two places in which nothing passes. */
export interface Cut {
  from: string;
  to: string;
}

/** The rules for a list of cuts, complete: what was cut before and is not in the list passes again. */
export function cutRules(cuts: readonly Cut[], macOf: (place: string) => string, ports: readonly string[]): string {
  const destinations = [...new Set(cuts.map((cut) => cut.to))].filter((to) => ports.includes(to)).sort();
  const chains = destinations.map((to) => {
    const from = cuts.filter((cut) => cut.to === to).map((cut) => macOf(cut.from));
    return [
      ` chain to-${to} {`,
      `  type filter hook egress device "${wirePort(to)}" priority 0; policy accept;`,
      `  ether saddr { ${[...new Set(from)].sort().join(', ')} } drop`,
      ' }',
    ].join('\n');
  });
  return ['table netdev cuts', 'delete table netdev cuts', 'table netdev cuts {', ...chains, '}', ''].join('\n');
}

/**
 * Applied where frames leave the wire towards a host, so that it works alike whether the switch or the emulator moved
 * them, and frames that were under way when the cut came are cut too.
 */
export async function applyCuts(wirePid: number, rules: string): Promise<void> {
  await inNetwork(wirePid, 'nft', ['-f', '-'], rules);
}

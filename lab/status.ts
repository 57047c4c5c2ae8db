import { agentPids } from './agents.ts';
import type { Host } from './host.ts';
import { formatRate, type Measurement } from './links.ts';
import type { Cut } from './network.ts';
import type { Link } from './state.ts';

/** What is there, for programs (`--json`) and people. */
export interface LabStatus {
  name: string;
  up: boolean;
  directory: string;
  /** Set UMS_CONFIG_DIR to this to speak to this lab's agents with the command line. */
  config: string;
  link: Link;
  /** Directions in which nothing passes. */
  cuts: Cut[];
  hosts: HostStatus[];
}
export interface HostStatus {
  name: string;
  address: string;
  running: boolean;
  pid: number | null;
  agent_pid: number | null;
  processes: number;
  socket: string;
  log: string;
}

export function hostStatus(host: Host): HostStatus {
  return {
    name: host.name,
    address: host.address,
    running: host.running,
    pid: host.pid ?? null,
    agent_pid: agentPids(host)[0] ?? null,
    processes: host.processes().length,
    socket: host.socketPath,
    log: host.logPath,
  };
}

export function describeLink(link: Link): string {
  return `rate ${formatRate(link.rate_bps)}, delay ${link.delay_ms} ms one way, loss ${link.loss_percent} %`;
}

export function renderStatus(status: LabStatus): string {
  if (!status.up) return `Lab ${status.name} is down. Start it: ./ums lab up\n`;
  const hosts = status.hosts.map((host) => {
    const agent = host.agent_pid === null ? 'no agent' : 'agent runs';
    return `  ${host.name.padEnd(14)}${host.address.padEnd(13)}${host.running ? `up, ${agent}` : 'down'}`;
  });
  const cuts = status.cuts.map((cut) => `  nothing passes from ${cut.from} to ${cut.to}`);
  return `${[`Lab ${status.name} is up`, ...hosts, `  link: ${describeLink(status.link)}`, ...cuts].join('\n')}\n`;
}

export function renderMeasurement(link: Link, measured: Measurement): string {
  const loss = link.loss_percent === 0 ? '' : `, ${measured.loss_percent} % of pings unanswered`;
  const found = `rate ${formatRate(measured.rate_bps)} (one TCP stream's payload), round trip ${measured.rtt_ms} ms${loss}`;
  const verdict = measured.ok ? 'as asked' : 'NOT as asked: is the machine busy?';
  return `Asked:    ${describeLink(link)}\nMeasured: ${found}, ${measured.from} to ${measured.to}: ${verdict}\n`;
}

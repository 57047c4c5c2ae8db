import { createServer } from 'node:net';
import { createSocket } from 'node:dgram';
import type { Finding, Severity } from '../contract.ts';
import type { Mount, Port } from '../specification.ts';
import { entriesOf, exists } from './files.ts';

export type BindMount = Extract<Mount, { kind: 'bind' }>;

export function findingOf(severity: Severity, id: string, what: string, why: string, mend: string): Finding {
  return { severity, id, what, why, mend };
}

/** Published ports that somebody listens on already: asked of the kernel by listening for a moment. */
export async function portFindings(ports: readonly Port[]): Promise<Finding[]> {
  const findings: Finding[] = [];
  for (const port of ports) {
    if (port.protocol === 'sctp' || (await isFree(port))) continue;
    const where = `${port.hostIp === '' ? '' : `${port.hostIp}:`}${port.hostPort}/${port.protocol}`;
    findings.push(
      findingOf(
        'error',
        'port.taken',
        `Port ${where} is in use here`,
        'The service publishes it.',
        'Stop what listens there (ss -lntup shows it)',
      ),
    );
  }
  return findings;
}

function isFree(port: Port): Promise<boolean> {
  const host = port.hostIp === '' ? '0.0.0.0' : port.hostIp;
  return new Promise((resolve) => {
    // Any failure counts: an address that this host does not have cannot be published on either.
    if (port.protocol === 'udp') {
      const socket = createSocket(host.includes(':') ? 'udp6' : 'udp4');
      socket.once('error', () => socket.close(() => resolve(false)));
      socket.bind({ port: port.hostPort, address: host, exclusive: true }, () => socket.close(() => resolve(true)));
      return;
    }
    const server = createServer();
    server.once('error', () => resolve(false));
    server.listen({ port: port.hostPort, host, exclusive: true }, () => server.close(() => resolve(true)));
  });
}

/** A device that the service uses and this host lacks. */
export async function deviceFindings(path: string): Promise<Finding[]> {
  if (await exists(path)) return [];
  return [
    findingOf(
      'error',
      'device.missing',
      `There is no ${path} here`,
      'The service uses the device.',
      'Load its driver, or move to a system that has it',
    ),
  ];
}

/** A path of the host that the service mounts. */
export async function bindFindings(mount: BindMount): Promise<Finding[]> {
  const there = await exists(mount.source);
  switch (mount.transfer) {
    case 'expect':
      if (there) return [];
      return [
        findingOf(
          'error',
          'mount.missing',
          `${mount.source} does not exist here`,
          `The service mounts it at ${mount.destination}.`,
          'Make it, or migrate with --bind-mounts copy',
        ),
      ];
    case 'copy':
      if (!there || (await entriesOf(mount.source)).length === 0) return [];
      return [
        findingOf(
          'error',
          'mount.taken',
          `${mount.source} exists here and is not empty`,
          'The service’s copy of it would be mixed into it.',
          'Empty or move it, or migrate with --bind-mounts expect',
        ),
      ];
    case 'undecided':
      return [
        findingOf(
          'error',
          'mount.undecided',
          `The service mounts the host’s ${mount.source}`,
          'Only you know whether its content belongs to the service or to the host.',
          'Say --bind-mounts copy to take it along, or --bind-mounts expect to use what is at the destination',
        ),
      ];
  }
}

import { createServer } from 'node:net';
import { createSocket } from 'node:dgram';
import type { Finding, Severity } from '../contract.ts';
import type { Port } from '../specification.ts';

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

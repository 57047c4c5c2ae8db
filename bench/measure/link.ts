import { z } from 'zod';
import type { Host } from '#lab/host.ts';
import type { Lab } from '#lab/lab.ts';
import { wirePort } from '#lab/names.ts';
import { run } from '#src/telemetry/exec.ts';
import { UmsError } from '#src/telemetry/errors.ts';

const reportSchema = z.object({ end: z.object({ sum_received: z.object({ bits_per_second: z.number() }) }) });
const PORT = '5201';
const SECONDS = '1';

/** What the link really carries, measured between the hosts before anything else runs. */
export async function measureLink(from: Host, to: Host): Promise<number> {
  const server = to.exec('iperf3', ['--server', '--one-off', '--port', PORT], { timeout_ms: 30_000 });
  const script = `for i in $(seq 100); do iperf3 --json --client ${to.address} --port ${PORT} --time ${SECONDS} > /tmp/iperf.json && break; sleep 0.02; done; cat /tmp/iperf.json`;
  const client = await from.exec('sh', ['-c', script], { timeout_ms: 30_000 });
  await server;
  return reportSchema.parse(JSON.parse(client.stdout)).end.sum_received.bits_per_second;
}

/** Limits what the wire hands to each host; what goes in one direction does not slow the other. */
export async function shapeLink(lab: Lab, rate_bps: number): Promise<void> {
  const wire = lab.wirePid;
  if (wire === undefined) throw new UmsError('UMS_E_LAB', { message: 'The lab is not up.', fault: 'user' });
  for (const host of lab.hosts) {
    const shape = ['tbf', 'rate', `${rate_bps}bit`, 'burst', '256kb', 'latency', '50ms'];
    await run('nsenter', [
      `--net=/proc/${wire}/ns/net`,
      '--',
      'tc',
      'qdisc',
      'replace',
      'dev',
      wirePort(host.name),
      'root',
      ...shape,
    ]);
  }
}

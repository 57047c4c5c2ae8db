import { z } from 'zod';
import { UmsError } from '#src/telemetry/errors.ts';
import type { Host } from './host.ts';
import type { Link } from './state.ts';

/** Links in words and numbers: parsing what a person asks for, and measuring what came of it. */
export interface LinkRequest {
  /** "1gbit", "11.34mbit", "800kbit"; "max" takes the limit away. */
  rate?: string;
  /** One way, between any two hosts. */
  delay_ms?: number;
  loss_percent?: number;
}

const UNITS_BPS: Record<string, number> = { bit: 1, kbit: 1e3, mbit: 1e6, gbit: 1e9 };
const RATE_BPS_MIN = 8000;
const RATE_BPS_MAX = 100e9;

export function parseRate(text: string): number | null {
  if (text === 'max') return null;
  const match = /^(\d+(?:\.\d+)?)(bit|kbit|mbit|gbit)$/i.exec(text.trim());
  const rate_bps =
    match === null ? Number.NaN : Math.round(Number(match[1]) * (UNITS_BPS[(match[2] ?? '').toLowerCase()] ?? 0));
  if (rate_bps >= RATE_BPS_MIN && rate_bps <= RATE_BPS_MAX) return rate_bps;
  throw new UmsError('UMS_E_USAGE', {
    message: `"${text}" is not a rate`,
    fault: 'user',
    mend: 'Write a number with its unit, such as 1gbit, 11.34mbit or 800kbit, or "max".',
  });
}

function parseNumber(what: string, text: string, unit: string, max: number): number {
  const value = Number(text.trim().endsWith(unit) ? text.trim().slice(0, -unit.length) : text);
  if (text.trim() !== '' && value >= 0 && value <= max) return value;
  throw new UmsError('UMS_E_USAGE', {
    message: `"${text}" is not a ${what}`,
    fault: 'user',
    mend: `Write a number from 0 to ${max}, with or without ${unit} behind it.`,
  });
}

export function parseDelay(text: string): number {
  return parseNumber('delay', text, 'ms', 10_000);
}
export function parseLoss(text: string): number {
  return parseNumber('loss', text, '%', 100);
}

export function formatRate(rate_bps: number | null): string {
  if (rate_bps === null) return 'unlimited';
  const [unit, factor]: [string, number] =
    rate_bps >= 1e9 ? ['Gbit/s', 1e9] : rate_bps >= 1e6 ? ['Mbit/s', 1e6] : ['kbit/s', 1e3];
  return `${Number((rate_bps / factor).toPrecision(4))} ${unit}`;
}

/** What a token bucket needs for a rate: what may pass in one go, and how much may wait. */
export function bucket(link: Link): { burst_bytes: number; limit_bytes: number } | null {
  if (link.rate_bps === null) return null;
  const bytes_per_ms = link.rate_bps / 8000;
  // One millisecond's worth, but never less than a few frames; a queue as deep as the path is long.
  const burst_bytes = Math.ceil(Math.max(16 * 1024, bytes_per_ms));
  return { burst_bytes, limit_bytes: burst_bytes + Math.ceil(bytes_per_ms * Math.max(50, 2 * link.delay_ms + 50)) };
}

export interface Measurement {
  from: string;
  to: string;
  /** What a TCP stream's receiver got: headers take 4.4 % of a link's rate. */
  rate_bps: number;
  rtt_ms: number;
  /** The wire's own part: a busy machine adds to the average, not to the least. */
  rtt_min_ms: number;
  loss_percent: number;
  /** Whether rate and round-trip time are what was asked for, within a tenth. */
  ok: boolean;
}

const iperfSchema = z.object({ end: z.object({ sum_received: z.object({ bits_per_second: z.number() }) }) });
const IPERF_PORT = '5201';
const TCP_SHARE = 1448 / 1514;
const TOLERANCE = 0.1;
/** What a packet costs on this machine besides the wire. */
const RTT_EXTRA_MS = 2;
const LIMIT_MS = 60_000;

export async function measureLink(from: Host, to: Host, link: Link): Promise<Measurement> {
  const { rtt_ms, rtt_min_ms } = await ping(from, to, 10, 50);
  const loss_percent = link.loss_percent === 0 ? 0 : (await ping(from, to, 1000, 2)).loss_percent;
  const server = to.spawn('iperf3', ['-s', '-1', '-p', IPERF_PORT], { stdio: 'ignore' });
  try {
    await to.exec('sh', [
      '-c',
      `for i in $(seq 200); do ss -tln | grep -q ':${IPERF_PORT} ' && exit 0; sleep 0.02; done; exit 1`,
    ]);
    // The stream needs some tens of round trips before it fills the link.
    const omit_s = Math.ceil(0.3 + (rtt_ms * 20) / 1000);
    const args = ['-c', to.address, '-p', IPERF_PORT, '-O', String(omit_s), '-t', '2', '-J'];
    const { stdout } = await from.exec('iperf3', args, { timeout_ms: LIMIT_MS });
    const rate_bps = iperfSchema.parse(JSON.parse(stdout)).end.sum_received.bits_per_second;
    return {
      from: from.name,
      to: to.name,
      rate_bps,
      rtt_ms,
      rtt_min_ms,
      loss_percent,
      ok: asAsked(link, rate_bps, rtt_min_ms),
    };
  } finally {
    server.kill('SIGKILL');
  }
}

function asAsked(link: Link, rate_bps: number, rtt_ms: number): boolean {
  const wanted_ms = 2 * link.delay_ms;
  const rttIsRight = rtt_ms >= wanted_ms && rtt_ms <= wanted_ms * (1 + TOLERANCE) + RTT_EXTRA_MS;
  // Loss and long delays keep one TCP stream below the rate; that is what they are for.
  const bounded = link.rate_bps !== null;
  const wanted_bps = (link.rate_bps ?? 0) * TCP_SHARE;
  const notAbove = !bounded || rate_bps <= wanted_bps * (1 + TOLERANCE);
  const notBelow = !bounded || link.loss_percent > 0 || rate_bps >= wanted_bps * (1 - TOLERANCE);
  return rttIsRight && notAbove && notBelow;
}

async function ping(from: Host, to: Host, count: number, interval_ms: number): Promise<Ping> {
  const args = ['-n', '-q', '-c', String(count), '-i', String(interval_ms / 1000), '-W', '3', to.address];
  // Exit code 1 says that answers are missing, which is what is measured here.
  const { stdout } = await from.exec('ping', args, { timeout_ms: LIMIT_MS, okExitCodes: [0, 1] });
  return parsePing(stdout);
}

interface Ping {
  rtt_ms: number;
  rtt_min_ms: number;
  loss_percent: number;
}

export function parsePing(text: string): Ping {
  const [, least, average] = /= ([\d.]+)\/([\d.]+)\//.exec(text) ?? [];
  const loss = /([\d.]+)% packet loss/.exec(text)?.[1];
  if (least === undefined || average === undefined || loss === undefined) {
    throw new UmsError('UMS_E_LAB', {
      message: 'The hosts do not reach each other, so the link cannot be measured',
      fault: 'user',
      mend: 'If they are partitioned on purpose: ./ums lab partition --heal',
      detail: text,
    });
  }
  return { rtt_ms: Number(average), rtt_min_ms: Number(least), loss_percent: Number(loss) };
}

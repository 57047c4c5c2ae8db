import { z } from 'zod';
import { DAEMON_ENGINES, Lab } from '#lab/lab.ts';
import { formatRate, type LinkRequest, type Measurement } from '#lab/links.ts';
import { formatDuration } from '#src/cli/format.ts';
import { removePulse } from './pulse/service.ts';
import type { BenchOptions } from './registry.ts';
import type { Reporter } from './report.ts';

/** A link as it was asked for and as it turned out. */
export interface StagedLink extends Required<LinkRequest> {
  name: string;
  measured: Measurement;
}

const enginesSchema = z.object({
  engine: z.array(z.string()).default([]),
  engines: z.array(z.string()).default([]),
});

/** The stage of a bench: two lab hosts with the workload's image, left as they were found whatever happens. */
export async function onStage<Result>(
  report: Reporter,
  options: BenchOptions,
  act: (lab: Lab) => Promise<Result>,
): Promise<Result> {
  const lab = Lab.open(undefined, (line) => report.say(`  ${line}`));
  const wasUp = lab.isUp;
  const flags = enginesSchema.parse(options.flags);
  const asked = [...flags.engine, ...flags.engines];
  await lab.up({ hosts: ['alpha', 'beta'], engines: DAEMON_ENGINES.filter((engine) => asked.includes(engine)) });
  const before = lab.status().link;
  try {
    await removePulse(lab);
    for (const host of lab.hosts) await host.importImage('pulse');
    return await act(lab);
  } finally {
    if (!wasUp && !options.keep) await lab.down();
    else {
      await removePulse(lab);
      await lab.setLink({ ...before, rate: before.rate_bps === null ? 'max' : `${before.rate_bps}bit` });
    }
  }
}

/** Sets a link, measures what came of it and says so. */
export async function stageLink(
  report: Reporter,
  lab: Lab,
  name: string,
  rate: string,
  delay_ms: number,
): Promise<StagedLink> {
  const request = { rate, delay_ms, loss_percent: 0 };
  const measured = await lab.link(request);
  report.say(
    `Link ${name}: asked for ${rate === 'max' ? 'no limit' : rate} and ${2 * delay_ms} ms there and back; carries ${formatRate(measured.rate_bps)} (iperf3), ${formatDuration(measured.rtt_min_ms)}.`,
  );
  report.event('link', { name, ...request, measured });
  return { name, ...request, measured };
}

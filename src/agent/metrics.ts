import type { Agent } from './agent.ts';

/** Prometheus' text format (version 0.0.4) of what an operator alarms on; counts come from the journal. */
export function renderMetrics(agent: Agent): string {
  const { journal } = agent.context;
  const counts = new Map<string, number>();
  let inDoubt = 0;
  for (const row of journal.all()) {
    const key = `role="${row.role}",state="${row.state}"`;
    counts.set(key, (counts.get(key) ?? 0) + 1);
    if (row.in_doubt) inDoubt += 1;
  }
  const lines = ['# HELP ums_migrations Migrations in the journal by role and state.', '# TYPE ums_migrations gauge'];
  for (const [labels, count] of counts) lines.push(`ums_migrations{${labels}} ${count}`);
  lines.push(
    '# HELP ums_migrations_in_doubt Migrations that wait for an operator.',
    '# TYPE ums_migrations_in_doubt gauge',
    `ums_migrations_in_doubt ${inDoubt}`,
    '# HELP process_resident_memory_bytes Resident memory of the agent.',
    '# TYPE process_resident_memory_bytes gauge',
    `process_resident_memory_bytes ${process.memoryUsage.rss()}`,
  );
  return `${lines.join('\n')}\n`;
}

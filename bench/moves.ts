import { join } from 'node:path';
import type { Lab } from '#lab/lab.ts';
import { run } from '#src/cli/program.ts';
import { processIo } from '#src/cli/terminal.ts';
import { migrationSchema, type Migration } from '#src/coordination/schema.ts';
import { AgentClient } from '#src/cli/client.ts';
import type { Context } from '#src/cli/contexts.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { z } from 'zod';

/** The agent of a lab host, as the command line speaks to it. */
export function agentOf(lab: Lab, host: string): AgentClient {
  return new AgentClient({ name: host, socket: lab.host(host).socketPath });
}

export interface Move {
  migration: Migration;
  /** Milliseconds since 1970 between which the command ran. */
  from: number;
  to: number;
}

const resultSchema = z.object({ event: z.literal('result'), id: z.string().nullable(), status: z.string() });

export interface MoveOutput {
  /** Shows the command line's own progress to the reader. */
  visible: boolean;
  /** Receives each event of the command line. */
  event?(event: Record<string, unknown>): void;
  /** More words for `ums migrate`. */
  words?: readonly string[];
}

/** An agent, and how the command line is told of it. */
export interface Asked {
  context: Context;
  words: readonly string[];
  env: Readonly<Record<string, string>>;
}

/** The agent of a test host. */
export function hostAgent(lab: Lab, host: string): Asked {
  const context = { name: host, socket: lab.host(host).socketPath };
  return { context, words: ['--context', host], env: { UMS_CONFIG_DIR: lab.paths.config } };
}

/** An agent by the directory of its sockets, as one within a container is seen from the machine. */
export function agentAt(runDirectory: string): Asked {
  const context = { name: 'local', socket: join(runDirectory, 'api', 'agent.sock') };
  return { context, words: [], env: { UMS_RUN_DIR: runDirectory, UMS_CONTEXT: '' } };
}

/** Moves a service with the real command line, in this process, and returns what the journal says of it. */
export async function move(lab: Lab, service: string, from: string, to: string, output: MoveOutput): Promise<Move> {
  return moveBy(hostAgent(lab, from), service, to, output);
}

/** The same, by any agent that has the service. */
export async function moveBy(agent: Asked, service: string, to: string, output: MoveOutput): Promise<Move> {
  const began = Date.now();
  const real = processIo();
  let written = '';
  let errors = '';
  const io = {
    ...real,
    env: { ...process.env, ...agent.env },
    out: (text: string) => {
      if (output.visible) real.out(text);
      else written += text;
    },
    err: (text: string) => {
      // Shown once, by whoever catches the failure.
      errors += text;
    },
  };
  const status = await run(
    [...agent.words, 'migrate', service, '--to', to, ...(output.words ?? []), ...(output.visible ? [] : ['--json'])],
    io,
  );
  const ended = Date.now();
  const events = written
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => z.record(z.string(), z.json()).parse(JSON.parse(line)));
  for (const event of events) output.event?.(event['event'] === 'result' ? { ...event, event: 'migrated' } : event);
  const client = new AgentClient(agent.context);
  try {
    const last = events.map((event) => resultSchema.safeParse(event)).findLast((parsed) => parsed.success);
    const migration =
      last?.success === true && last.data.id !== null
        ? await client.migration(last.data.id)
        : await newest(client, service, began);
    if (status !== 0 || migration === undefined) throw failure(service, to, migration, events, errors);
    return { migration: migrationSchema.parse(migration), from: began, to: ended };
  } finally {
    await client.close();
  }
}

async function newest(client: AgentClient, service: string, since: number): Promise<Migration | undefined> {
  const own = (await client.migrations()).filter((each) => each.service === service && each.started_at >= since - 5000);
  return own.toSorted((a, b) => b.started_at - a.started_at)[0];
}

function failure(
  service: string,
  to: string,
  migration: Migration | undefined,
  events: readonly Record<string, unknown>[],
  errors: string,
): UmsError {
  if (migration?.error !== undefined && migration.error !== null) return UmsError.fromReport(migration.error);
  const refused = z.object({ error: z.object({ message: z.string() }) }).safeParse(events.at(-1));
  return new UmsError('UMS_E_LAB', {
    message: `Moving ${service} to ${to} failed${refused.success ? `: ${refused.data.error.message}` : lastLine(errors)}`,
    fault: 'ums',
    mend: 'Look at the agents: ./ums lab logs alpha; ./ums lab logs beta',
    ...(errors === '' ? {} : { detail: errors }),
  });
}

function lastLine(text: string): string {
  const line = text.split('\n').findLast((each) => each.trim() !== '');
  return line === undefined ? '.' : `: ${line.trim()}`;
}

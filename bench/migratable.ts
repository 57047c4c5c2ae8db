import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { Host } from '#lab/host.ts';
import { buildMigratableFor, type MigratablePlace, runDirectoryIn } from '#lab/migratable.ts';
import { AgentClient } from '#src/cli/client.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { agentAt, type Asked } from './moves.ts';

/** Migratable images and the agents in containers of them, as benches use both. */
const READY_LIMIT_MS = 90_000;
const POLL_MS = 50;
const INVITATION_S = 300;

/**
 * Builds a migratable image of a workload's and loads it where it is to run, unless that was done: `given` has what was.
 * Always on the same host, because two containers are compared by what their images were made of.
 */
export async function giveMigratable(
  builder: Host,
  places: readonly MigratablePlace[],
  { workload, name, files }: { workload: string; name: string; files: readonly string[] },
  given: Set<string>,
): Promise<void> {
  const keyOf = ({ host, engine }: MigratablePlace): string => `${name} ${host.name} ${engine}`;
  const lacking = places.filter((place) => !given.has(keyOf(place)));
  if (lacking.length === 0) return;
  const image = await builder.importImage(workload, 'podman');
  await buildMigratableFor(builder, lacking, image, name, files);
  for (const place of lacking) given.add(keyOf(place));
}

/** The agent in a container, once it answers. */
export async function agentIn(place: MigratablePlace): Promise<Asked> {
  const limit = Date.now() + READY_LIMIT_MS;
  let problem = 'there is no such container';
  while (Date.now() < limit) {
    const directory = runDirectoryIn(place);
    if (directory !== undefined) {
      const client = new AgentClient({ name: place.container, socket: join(directory, 'api', 'agent.sock') });
      try {
        await client.system();
        return agentAt(directory);
      } catch (thrown) {
        problem = thrown instanceof Error ? thrown.message : String(thrown);
      } finally {
        await client.close();
      }
    }
    await delay(POLL_MS);
  }
  const message = `The agent in ${place.container} of ${place.engine} on ${place.host.name} does not answer: ${problem}`;
  throw new UmsError('UMS_E_LAB', { message, fault: 'ums' });
}

export async function pairAgents(here: Asked, there: Asked): Promise<void> {
  const [inviter, joiner] = [new AgentClient(here.context), new AgentClient(there.context)];
  try {
    const { token } = await inviter.invite(INVITATION_S);
    await joiner.join(token);
  } finally {
    await Promise.all([inviter.close(), joiner.close()]);
  }
}

/** What the agent in a container knows of services in it. */
export async function servicesOf(agent: Asked): Promise<string[]> {
  const client = new AgentClient(agent.context);
  try {
    return (await client.services()).map(({ name }) => `the service ${name} of its container`);
  } finally {
    await client.close();
  }
}

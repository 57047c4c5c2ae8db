import { toUmsError } from '#src/telemetry/errors.ts';
import { createLogger } from '#src/telemetry/log.ts';
import { pino } from 'pino';
import { Agent } from './agent.ts';
import { parseConfig } from './config.ts';

/** The daemon's entry: starts the agent, and stops it in order on SIGTERM or SIGINT. */
const config = parseConfig(process.argv.slice(2));
const log = createLogger(config.logLevel, pino.destination({ dest: 2, sync: true }));

async function main(): Promise<void> {
  const agent = await Agent.open(config, log);
  await agent.start();
  let stopping = false;
  const stop = (signal: string) => {
    if (stopping) return;
    stopping = true;
    log.info({ signal }, 'agent stops');
    agent.stop().then(
      () => process.exit(0),
      (error: unknown) => {
        log.error({ err: error }, 'agent did not stop in order');
        process.exit(1);
      },
    );
  };
  process.on('SIGTERM', stop);
  process.on('SIGINT', stop);
}

main().catch((error: unknown) => {
  const failure = toUmsError(error);
  log.fatal({ ...failure.toReport() }, 'agent could not start');
  process.exitCode = failure.exitStatus;
});

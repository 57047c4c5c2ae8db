import { stat } from 'node:fs/promises';
import { connect } from 'node:net';
import { hostname, networkInterfaces } from 'node:os';

/**
 * The agent of a migratable container, started by its init. What a person would say on the command line comes from the
 * container's environment:
 *
 *   UMS_SYSTEM        name of this system (default: the container's host name)
 *   UMS_PEER_ADDRESS  at which peers reach it (default: the container's first address)
 *   UMS_PEER_PORT, UMS_PAIRING_PORT, UMS_STAGING_DIR, UMS_LOG_LEVEL
 *   UMS_FAULT_INJECTION=on  for tests: migrations can be halted
 *
 * The init gives the service its first process when this one has all its threads: their ids must lie below the service's
 * (init.pl). So the pool in which Node does its work for files, four threads by default, is called on before anything else.
 */
const POOL_THREADS = 4;
const runDir = process.env['UMS_RUN_DIR'] ?? '/.ums/run';

await Promise.all(Array.from({ length: POOL_THREADS * 2 }, () => stat('/')));
const init = connect({ path: `${runDir}/init.sock` });
init.on('error', (error) =>
  process.stderr.write(`the init does not hear that the threads are there: ${error.message}\n`),
);
init.end('threads');
init.resume();

const own = Object.values(networkInterfaces())
  .flatMap((each) => each ?? [])
  .find(({ internal, family }) => !internal && family === 'IPv4');
const given = (option: string, name: string, otherwise?: string): string[] => {
  const value = process.env[name] ?? otherwise;
  return value === undefined || value === '' ? [] : [option, value];
};

process.argv.splice(
  2,
  process.argv.length,
  ...given('--name', 'UMS_SYSTEM', hostname().split('.')[0]?.toLowerCase()),
  ...given('--peer-address', 'UMS_PEER_ADDRESS', own?.address ?? '127.0.0.1'),
  ...given('--peer-port', 'UMS_PEER_PORT'),
  ...given('--pairing-port', 'UMS_PAIRING_PORT'),
  ...given('--staging-dir', 'UMS_STAGING_DIR', `${runDir}/staging`),
  ...given('--log-level', 'UMS_LOG_LEVEL', 'warn'),
  '--run-dir',
  runDir,
  '--listen-address',
  '0.0.0.0',
  '--page-cache',
  '0',
  ...(process.env['UMS_FAULT_INJECTION'] === 'on' ? ['--fault-injection'] : []),
);
await import('./main.ts');

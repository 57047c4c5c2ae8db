import { hostname } from 'node:os';
import { Command, InvalidArgumentError } from 'commander';
import { systemNameSchema } from '#src/coordination/schema.ts';

export interface AgentConfig {
  name: string;
  peerAddress: string;
  peerPort: number;
  pairingPort: number;
  stateDir: string;
  runDir: string;
  logLevel: string;
  /** Tests only: lets breakpoints be set over the local API. */
  faultInjection: boolean;
}

function port(text: string): number {
  const value = Number(text);
  if (Number.isInteger(value) && value >= 1 && value <= 65_535) return value;
  throw new InvalidArgumentError('A port is a number from 1 to 65535.');
}

function systemName(text: string): string {
  const parsed = systemNameSchema.safeParse(text);
  if (parsed.success) return parsed.data;
  throw new InvalidArgumentError('A system’s name is 1 to 63 lower-case letters, digits and inner hyphens.');
}

function defaultName(): string {
  return hostname().split('.')[0]?.toLowerCase() ?? 'system';
}

interface Options {
  name: string;
  peerAddress: string;
  peerPort: number;
  pairingPort: number;
  stateDir: string;
  runDir: string;
  logLevel: string;
  faultInjection: boolean;
}

export function parseConfig(argv: readonly string[]): AgentConfig {
  const command = new Command('ums agent run')
    .description('Runs the agent of this system in the foreground; logs go to standard error, one JSON object a line.')
    .option('--name <name>', 'name of this system, as its peers will know it', systemName, defaultName())
    .requiredOption('--peer-address <address>', 'address of this system at which peers reach it')
    .option('--peer-port <port>', 'port for peers', port, 7440)
    .option('--pairing-port <port>', 'port for pairing, open only while an invitation is', port, 7441)
    .option('--state-dir <dir>', 'journal and keys', process.env['UMS_STATE_DIR'] ?? '/var/lib/ums')
    .option('--run-dir <dir>', 'socket and staging', process.env['UMS_RUN_DIR'] ?? '/run/ums')
    .option('--log-level <level>', 'trace, debug, info, warn or error', 'info')
    .option('--fault-injection', 'for tests: let migrations be halted at any state', false)
    .addHelpText('after', '\nExample:\n  ums agent run --name alpha --peer-address 192.0.2.10');
  command.parse([...argv], { from: 'user' });
  const options = command.opts<Options>();
  return {
    name: options.name,
    peerAddress: options.peerAddress,
    peerPort: options.peerPort,
    pairingPort: options.pairingPort,
    stateDir: options.stateDir,
    runDir: options.runDir,
    logLevel: options.logLevel,
    faultInjection: options.faultInjection,
  };
}

import { hostname } from 'node:os';
import { Command, InvalidArgumentError, Option } from 'commander';
import { systemNameSchema } from '#src/coordination/schema.ts';

export interface AgentConfig {
  name: string;
  peerAddress: string;
  peerPort: number;
  pairingPort: number;
  /** Where peers' connections are accepted, if not at the address by which they know this system. */
  listenAddress?: string;
  stateDir: string;
  runDir: string;
  /** Checkpoints go here, instead of into a file system in memory that the agent mounts. */
  stagingDir?: string;
  logLevel: string;
  /** Milliseconds of silence after which a peer counts as gone. */
  peerTimeout_ms: number;
  /** Bytes of a service's pages that are kept on disk when it leaves, for when it comes back; 0 keeps none. */
  pageCache_bytes: number;
  /** Tests only: lets breakpoints be set over the local API. */
  faultInjection: boolean;
  /** Where the output of bundles goes, instead of into a file beside each. */
  bundleOutput?: string;
  bundleErrors?: string;
  /** Tests only: life of the certificates that this system issues to peers. */
  leafLife_ms?: number;
}

function port(text: string): number {
  const value = Number(text);
  if (Number.isInteger(value) && value >= 1 && value <= 65_535) return value;
  throw new InvalidArgumentError('A port is a number from 1 to 65535.');
}

function milliseconds(text: string): number {
  const value = Number(text);
  if (Number.isInteger(value) && value >= 500 && value <= 600_000) return value;
  throw new InvalidArgumentError('A number of milliseconds from 500 to 600000.');
}

function mebibytes(text: string): number {
  const value = Number(text);
  if (Number.isInteger(value) && value >= 0 && value <= 1_048_576) return value;
  throw new InvalidArgumentError('A number of mebibytes from 0 to 1048576.');
}

function systemName(text: string): string {
  const parsed = systemNameSchema.safeParse(text);
  if (parsed.success) return parsed.data;
  throw new InvalidArgumentError('A system’s name is 1 to 63 lower-case letters, digits and inner hyphens.');
}

function defaultName(): string {
  return hostname().split('.')[0]?.toLowerCase() ?? 'system';
}

/** As commander names them. */
type Options = Omit<AgentConfig, 'peerTimeout_ms' | 'leafLife_ms' | 'pageCache_bytes'> & {
  peerTimeout: number;
  pageCache: number;
  leafLifeMs?: number;
};

export function parseConfig(argv: readonly string[]): AgentConfig {
  const command = new Command('ums agent run')
    .description('Runs the agent of this system in the foreground; logs go to standard error, one JSON object a line.')
    .option('--name <name>', 'name of this system, as its peers will know it', systemName, defaultName())
    .requiredOption('--peer-address <address>', 'address of this system at which peers reach it')
    .option('--peer-port <port>', 'port for peers', port, 7440)
    .option('--pairing-port <port>', 'port for pairing, open only while an invitation is', port, 7441)
    .option(
      '--listen-address <address>',
      'where to accept them, if not at the peer address: 0.0.0.0 behind published ports',
    )
    .option('--state-dir <dir>', 'journal and keys', process.env['UMS_STATE_DIR'] ?? '/var/lib/ums')
    .option('--run-dir <dir>', 'socket and staging', process.env['UMS_RUN_DIR'] ?? '/run/ums')
    .option('--staging-dir <dir>', 'directory for checkpoints (default: a file system in memory of its own)')
    .option('--peer-timeout <ms>', 'silence after which a peer counts as gone', milliseconds, 15_000)
    .option(
      '--page-cache <MiB>',
      'memory of services kept on disk when they leave, in all; 0 for none',
      mebibytes,
      4096,
    )
    .option('--bundle-output <file>', 'where the output of runc bundles goes (default: a file in each bundle)')
    .option('--bundle-errors <file>', 'where their standard error goes (default: as their output)')
    .option('--log-level <level>', 'trace, debug, info, warn or error', 'info')
    .option('--fault-injection', 'for tests: let migrations be halted at any state', false)
    .addOption(
      new Option('--leaf-life-ms <ms>', 'for tests: life of the certificates issued to peers')
        .argParser(milliseconds)
        .hideHelp(),
    )
    .addHelpText('after', '\nExample:\n  ums agent run --name alpha --peer-address 192.0.2.10');
  // Commander's own exit status for a wrong command line is 1, which here means a defect.
  command.exitOverride((error) => process.exit(error.exitCode === 0 ? 0 : 2));
  command.parse([...argv], { from: 'user' });
  const { peerTimeout, pageCache, leafLifeMs, ...same } = command.opts<Options>();
  return {
    ...same,
    peerTimeout_ms: peerTimeout,
    pageCache_bytes: pageCache * 1_048_576,
    ...(leafLifeMs === undefined ? {} : { leafLife_ms: leafLifeMs }),
  };
}

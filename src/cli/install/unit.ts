import { AGENT_NODE_FLAGS } from '#src/agent/node-flags.ts';

/** The places of an installation. */
export interface Layout {
  /** Where the checkout and Node go, /opt/ums. */
  prefix: string;
  link: string;
  unit: string;
  environment: string;
}

export const LAYOUT: Layout = {
  prefix: '/opt/ums',
  link: '/usr/local/bin/ums',
  unit: '/etc/systemd/system/ums-agent.service',
  environment: '/etc/ums/agent.env',
};

export function unitFile(layout: Layout): string {
  return `[Unit]
Description=ums agent: moves running containers between hosts
Documentation=file:${layout.prefix}/app/README.md
Wants=network-online.target
After=network-online.target

[Service]
EnvironmentFile=${layout.environment}
# What Node has compiled is kept, which halves the time of a start.
Environment=NODE_COMPILE_CACHE=${layout.prefix}/compiled
ExecStart=${layout.prefix}/node/bin/node ${AGENT_NODE_FLAGS.join(' ')} ${layout.prefix}/app/src/agent/main.ts --name \${NAME} --peer-address \${PEER_ADDRESS} --peer-port \${PEER_PORT}
Restart=on-failure
RestartSec=1
# A restart of the agent must not end what it has started: containers' monitors and runtimes, and the pagers that still
# fill the memory of services.
KillMode=process
TasksMax=infinity
LimitNOFILE=1048576
StateDirectory=ums
StateDirectoryMode=0700
RuntimeDirectory=ums
RuntimeDirectoryMode=0700
# Checkpoint images lie there while a migration is under way: they outlive a restart.
RuntimeDirectoryPreserve=yes

[Install]
WantedBy=multi-user.target
`;
}

export interface AgentSettings {
  name: string;
  peerAddress: string;
  peerPort: number;
}

export function environmentFile(settings: AgentSettings): string {
  return `# Read by ums-agent.service. After a change: systemctl restart ums-agent
# The name by which other systems know this one.
NAME=${settings.name}
# The address and port at which they reach its agent (TCP; pairing also uses 7441 while an invitation is open).
PEER_ADDRESS=${settings.peerAddress}
PEER_PORT=${settings.peerPort}
`;
}

export function linkScript(layout: Layout): string {
  return `#!/bin/sh
# The command line of ums, written by \`ums install\`.
# What Node has compiled is kept by root's commands, which halves the time of each.
NODE_COMPILE_CACHE="${layout.prefix}/compiled" exec ${layout.prefix}/node/bin/node ${layout.prefix}/app/src/cli/main.ts "$@"
`;
}

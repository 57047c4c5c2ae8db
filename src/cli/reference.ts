import type { Command } from 'commander';
import { EXIT_STATUSES } from './exit-statuses.ts';

/** docs/cli.md, made from the command tree, so that it cannot say anything else than the program does. */
export function renderReference(program: Command): string {
  const commands: string[] = [];
  const visit = (command: Command, path: string[]) => {
    if (path.length > 1) commands.push(section(command, path));
    for (const child of command.commands) visit(child, [...path, child.name()]);
  };
  visit(program, ['ums']);
  const statuses = Object.entries(EXIT_STATUSES).map(([status, meaning]) => `| ${status} | ${meaning} |`);
  return [
    '# The command line\n',
    INTRODUCTION,
    '## Options of every command\n',
    `${optionsOf(program).join('\n')}\n`,
    '## Exit status\n',
    `| status | meaning |\n|---|---|\n${statuses.join('\n')}\n`,
    'The codes behind each are in [errors.md](errors.md).\n',
    '## Commands\n',
    ...commands,
  ].join('\n');
}

const INTRODUCTION = `\`ums\` talks to the agent of one system over its unix socket: the one on this machine, or the one that \`--context\` names.
Times are given as \`500ms\`, \`30s\`, \`10m\` or \`2h\`; a plain number means seconds.

<!-- This file is made from the command tree: node src/cli/write-reference.ts -->

With \`--json\`, a command prints one JSON document on one line. \`migrate\` and \`show --follow\` print a stream, one object a
line, and so do \`demo\` and \`bench\`; the last line has \`"event":"result"\`:

| field | meaning |
|---|---|
| \`status\` | \`done\`, \`aborted\` (undone: the service is at its source), \`in_doubt\` (see \`ums recover\`), \`running\` (detached), \`refused\` (never began), \`dry_run\` |
| \`id\`, \`service\`, \`source\`, \`destination\` | of the migration; \`id\` is \`null\` when it never began |
| \`technique\`, \`approach\` | as chosen |
| \`downtime_ms\` | from the freeze at the source to the first instruction at the destination, measured by the agents |
| \`total_ms\` | from the request to the end of the clean-up |
| \`bytes_on_wire\`, \`state_bytes\` | sent between the agents; memory of the service |
| \`steps\` | \`[{name, start_ms, duration_ms}]\`, from the beginning of the migration |
| \`error\` | if any: \`{code, message, fault, state, mend, detail?}\` |

The result of \`demo\` has these for its first move, all moves under \`moves\`, and \`lost_writes\`, \`acknowledged_writes\`,
\`client_downtime_ms\` (the longest time between two acknowledged writes, as the client saw it), \`checksum_equal\` and
\`continuous\` (the same process, never restarted). The result of \`bench\` has every repetition, the machine, the link and
\`checks\`: \`[{name, value, limit, ok}]\`, one for each figure asked of it; the command ends with 1 when one is not ok.

An error of any other command is \`{"event":"error", "code", "message", "fault", "state", "mend", "exit_status"}\` on standard output.
`;

function optionsOf(command: Command): string[] {
  return command.options
    .filter((option) => !option.hidden)
    .map((option) => {
      const choices = option.argChoices === undefined ? '' : ` (${option.argChoices.join(', ')})`;
      return `- \`${option.flags}\`: ${option.description}${choices}${option.mandatory ? '; required' : ''}`;
    });
}

function section(command: Command, path: readonly string[]): string {
  const usage = command.registeredArguments.map((argument) => {
    const name = argument.variadic ? `${argument.name()}...` : argument.name();
    return argument.required ? `<${name}>` : `[${name}]`;
  });
  const options = optionsOf(command);
  const title = `### \`${[...path, ...usage].join(' ')}\`\n`;
  const description = `${command.description()}.\n`;
  return [title, description, ...(options.length === 0 ? [] : [`${options.join('\n')}\n`])].join('\n');
}

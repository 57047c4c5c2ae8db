import type { Argument, Command, Option } from 'commander';

/** One command of the tree, as completion needs it. */
interface Node {
  /** "frontman add"; empty for the program itself. */
  path: string;
  description: string;
  children: { name: string; description: string }[];
  options: { flag: string; description: string; takesValue: boolean; choices: string[] }[];
  /** What the first argument names, so that the shell can ask `ums` for the names. */
  argument: 'service' | 'system' | 'migration' | 'shell' | undefined;
}

const ARGUMENTS: Readonly<Record<string, Node['argument']>> = {
  service: 'service',
  name: 'system',
  id: 'migration',
  shell: 'shell',
};

export function commandNodes(program: Command): Node[] {
  const inherited = visibleOptions(program);
  const nodes: Node[] = [];
  const visit = (command: Command, path: string[]) => {
    const own = command === program ? [] : visibleOptions(command);
    nodes.push({
      path: path.join(' '),
      description: command.description(),
      children: command.commands.map((child) => ({ name: child.name(), description: child.description() })),
      options: [...own, ...inherited, { flag: '--help', description: 'explain', takesValue: false, choices: [] }],
      argument: argumentOf(command.registeredArguments[0]),
    });
    for (const child of command.commands) visit(child, [...path, child.name()]);
  };
  visit(program, []);
  return nodes;
}

function argumentOf(argument: Argument | undefined): Node['argument'] {
  return argument === undefined ? undefined : ARGUMENTS[argument.name()];
}

function visibleOptions(command: Command): Node['options'] {
  return command.options
    .filter((option: Option) => !option.hidden && option.long !== undefined && option.long !== null)
    .map((option) => ({
      flag: option.long ?? '',
      description: option.description,
      takesValue: option.required || option.optional,
      choices: option.argChoices ?? [],
    }));
}

/** Asks `ums` itself for names; silence when no agent answers. */
const NAMES: Readonly<Record<NonNullable<Node['argument']>, string>> = {
  service: 'ums --quiet ls 2>/dev/null',
  system: 'ums --quiet systems 2>/dev/null',
  migration: 'ums --quiet migrations 2>/dev/null',
  shell: 'echo bash zsh fish',
};

function valueSource(option: Node['options'][number]): string | undefined {
  if (option.choices.length > 0) return `echo ${option.choices.join(' ')}`;
  if (option.flag === '--to') return NAMES.system;
  if (option.flag === '--context') return 'ums --quiet contexts 2>/dev/null';
  return undefined;
}

export function completionScript(shell: string, program: Command): string | undefined {
  const nodes = commandNodes(program);
  if (shell === 'bash') return bash(nodes);
  if (shell === 'zsh') return `#compdef ums\nautoload -U +X bashcompinit && bashcompinit\n${bash(nodes)}`;
  if (shell === 'fish') return fish(nodes);
  return undefined;
}

function bash(nodes: readonly Node[]): string {
  const words = nodes.map((node) => {
    const flags = node.options.map((option) => option.flag);
    const names = node.children.map((child) => child.name);
    const source = node.argument === undefined ? '' : `$(${NAMES[node.argument]})`;
    return `    '${node.path}') words="${[...names, ...flags, source].join(' ').trim()}" ;;`;
  });
  const withValues = new Map<string, string | undefined>();
  for (const option of nodes.flatMap((node) => node.options)) {
    if (option.takesValue) withValues.set(option.flag, valueSource(option));
  }
  const values = [...withValues].map(
    ([flag, source]) => `    ${flag}) words="${source === undefined ? '' : `$(${source})`}" ;;`,
  );
  const paths = nodes.filter((node) => node.path !== '').map((node) => `'${node.path}'`);
  return `# Completion of ums for bash (and zsh through bashcompinit), made from its command tree.
_ums() {
  local current="\${COMP_WORDS[COMP_CWORD]}" previous="\${COMP_WORDS[COMP_CWORD-1]}" path='' words='' word
  for word in "\${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
    case "\${path:+$path }$word" in
      ${paths.join('|')}) path="\${path:+$path }$word" ;;
    esac
  done
  case "$previous" in
${values.join('\n')}
    *)
  case "$path" in
${words.join('\n')}
  esac ;;
  esac
  COMPREPLY=( $(compgen -W "$words" -- "$current") )
}
complete -F _ums ums
`;
}

/** A single-quoted word of fish. */
function quote(text: string): string {
  return `'${text.replaceAll('\\', '\\\\').replaceAll("'", String.raw`\'`)}'`;
}

function fish(nodes: readonly Node[]): string {
  const lines = ['# Completion of ums for fish, made from its command tree.', 'complete -c ums -f', FISH_PATH];
  for (const node of nodes) {
    const when = `-n ${quote(`test "$(__ums_path)" = "${node.path}"`)}`;
    for (const child of node.children)
      lines.push(`complete -c ums ${when} -a ${child.name} -d ${quote(child.description)}`);
    if (node.argument !== undefined) lines.push(`complete -c ums ${when} -a ${quote(`(${NAMES[node.argument]})`)}`);
    for (const option of node.options) {
      const source = valueSource(option);
      const value = option.takesValue ? ` -r${source === undefined ? '' : ` -a ${quote(`(${source})`)}`}` : '';
      lines.push(`complete -c ums ${when} -l ${option.flag.slice(2)}${value} -d ${quote(option.description)}`);
    }
  }
  const paths = nodes.filter((node) => node.path !== '').map((node) => quote(node.path));
  return `${lines.join('\n').replace('@PATHS@', paths.join(' '))}\n`;
}

const FISH_PATH = `function __ums_path
    set -l path ''
    for word in (commandline -opc)[2..]
        set -l longer (string trim "$path $word")
        contains -- $longer @PATHS@; and set path $longer
    end
    echo $path
end`;

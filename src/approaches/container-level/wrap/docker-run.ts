import { CAPABILITIES, SECURITY_OPTIONS } from '../needs.ts';
import {
  ARCHIVE,
  cannotWrap,
  imageArguments,
  peerEnvironment,
  peerPorts,
  volumeArgument,
  volumeAt,
  type Wrapped,
  type WrapOptions,
} from './inner.ts';
import { quoteWord, splitWords, type Word } from './words.ts';

/** `docker run …` or `podman run …` → the same in a capsule. What it does not know it refuses, rather than lose it. */
const SHORT: Readonly<Record<string, string>> = {
  d: 'detach',
  e: 'env',
  h: 'hostname',
  i: 'interactive',
  l: 'label',
  m: 'memory',
  p: 'publish',
  P: 'publish-all',
  t: 'tty',
  u: 'user',
  v: 'volume',
  w: 'workdir',
  c: 'cpu-shares',
};
const set = (words: string): ReadonlySet<string> => new Set(words.split(' '));
const SWITCHES = set(
  'detach rm publish-all interactive tty init read-only privileged no-healthcheck replace quiet no-hosts',
);
/** They stay what they are: they are the capsule's now. */
const OUTER = set(
  'name publish restart network net network-alias env env-file label label-file annotation memory memory-swap cpus ' +
    'memory-reservation cpu-shares cpu-period cpu-quota cpuset-cpus cpuset-mems pids-limit log-driver log-opt dns ' +
    'dns-search dns-option add-host hostname ip ip6 mac-address ulimit pull platform cidfile stop-timeout cgroup-parent ' +
    'oom-score-adj sysctl expose runtime health-interval health-timeout health-retries health-start-period pod ' +
    'detach rm publish-all no-healthcheck replace quiet no-hosts',
);
const INNER: Readonly<Record<string, string>> = {
  user: '--user',
  workdir: '--workdir',
  entrypoint: '--entrypoint',
  'stop-signal': '--stop-signal',
  'cap-drop': '--cap-drop',
};

interface Flag {
  name: string;
  value: Word;
}

interface Line {
  engine: Word[];
  flags: Flag[];
  image: string;
  command: Word[];
}

class Wrapping {
  readonly outer: Word[] = [];
  readonly inner: Word[] = [];
  readonly notes: string[] = [];

  take({ name, value }: Flag): void {
    const inside = INNER[name];
    if (OUTER.has(name)) this.outer.push(...asFlag(name, value));
    else if (inside !== undefined) this.inner.push(plain(inside), value);
    else if (name === 'volume') this.#volume(value);
    else if (name === 'mount') this.#mount(value);
    else if (name === 'tmpfs') this.#tmpfs(value);
    else if (name === 'cap-add') this.#capability(value);
    else if (name === 'privileged') this.#privileged();
    else if (name === 'read-only') this.inner.push(plain('--read-only'));
    else if (name === 'health-cmd') this.#health(value);
    else if (name === 'init') this.notes.push('--init is left out: a capsule has a first process that reaps.');
    else if (name === 'security-opt')
      this.notes.push(`--security-opt ${value.text} is left out: the service runs under what the capsule runs under.`);
    else if (name === 'interactive' || name === 'tty')
      throw cannotWrap(`--${name}`, 'the service of a capsule has no terminal and no input');
    else throw cannotWrap(`--${name}`, 'it is not known how it would be inside a capsule');
  }

  #volume(value: Word): void {
    const parts = value.text.split(':');
    const destination = parts.length === 1 ? (parts[0] ?? '') : (parts[1] ?? '');
    const options = parts[2] ?? '';
    const outer = [...(parts.length === 1 ? [] : [parts[0] ?? '']), volumeAt(destination), ...parts.slice(2)];
    this.outer.push(plain('--volume'), { ...value, text: outer.join(':') });
    this.#inside(destination, options.split(',').includes('ro'), value.expands);
  }

  #mount(value: Word): void {
    const fields = value.text.split(',');
    const at = fields.findIndex((field) => /^(?:target|destination|dst)=/.test(field));
    const destination = fields[at]?.slice(fields[at].indexOf('=') + 1);
    if (destination === undefined) throw cannotWrap(`--mount ${value.text}`, 'it has no target');
    fields[at] = `target=${volumeAt(destination)}`;
    this.outer.push(plain('--mount'), { ...value, text: fields.join(',') });
    this.#inside(
      destination,
      fields.some((field) => /^(?:ro|readonly)(?:=true|=1)?$/.test(field)),
      value.expands,
    );
  }

  #tmpfs(value: Word): void {
    const [destination = '', ...options] = value.text.split(':');
    this.outer.push(plain('--tmpfs'), { ...value, text: [volumeAt(destination), ...options].join(':') });
    this.#inside(destination, false, value.expands);
    this.notes.push(`--tmpfs ${destination} is a volume for the service: it moves with --bind-mounts copy.`);
  }

  #inside(destination: string, readOnly: boolean, expands: boolean): void {
    const [flag = '', text = ''] = volumeArgument(destination, readOnly);
    this.inner.push(plain(flag), { text, expands });
  }

  #capability(value: Word): void {
    this.outer.push(plain('--cap-add'), value);
    this.inner.push(plain('--cap-add'), value);
  }

  #privileged(): void {
    this.outer.push(plain('--privileged'));
    this.inner.push(plain('--cap-add'), plain('ALL'));
  }

  #health(value: Word): void {
    const line = `ums capsule exec /bin/sh -c ${quoteWord({ ...value, expands: false })}`;
    this.outer.push(plain('--health-cmd'), { text: line, expands: value.expands });
  }
}

const plain = (text: string): Word => ({ text, expands: false });

function asFlag(name: string, value: Word): Word[] {
  return SWITCHES.has(name) ? [plain(`--${name}`)] : [plain(`--${name}`), value];
}

export function wrapRunLine(text: string, options: WrapOptions): Wrapped {
  const line = parseLine(splitWords(text.trim()));
  const wrapping = new Wrapping();
  for (const flag of line.flags) wrapping.take(flag);
  const privileged = line.flags.some((flag) => flag.name === 'privileged');
  const grants = privileged
    ? []
    : [
        ...CAPABILITIES.flatMap((name) => ['--cap-add', name]),
        ...SECURITY_OPTIONS.flatMap((option) => ['--security-opt', option]),
      ];
  const peer = options.peerAddress === undefined ? [] : peerPorts(options).flatMap((port) => ['--publish', port]);
  const environment = Object.entries(peerEnvironment(options)).flatMap(([name, value]) => [
    '--env',
    `${name}=${value}`,
  ]);
  const archive = options.archive === undefined ? [] : ['--volume', `${options.archive}:${ARCHIVE}:ro`];
  const words: Word[] = [
    ...line.engine,
    ...wrapping.outer,
    ...[...grants, ...archive, ...peer, ...environment, options.capsule, ...imageArguments(options, line.image)].map(
      plain,
    ),
    ...wrapping.inner,
    // Where the service's own words begin with a dash they are not the capsule's.
    ...(line.command[0]?.text.startsWith('-') === true ? [plain('--')] : []),
    ...line.command,
  ];
  return { text: `${words.map(quoteWord).join(' ')}\n`, notes: wrapping.notes };
}

function parseLine(words: readonly Word[]): Line {
  const start = words.findIndex((word) => /^(?:.*\/)?(?:docker|podman|nerdctl)$/.test(word.text));
  const run = words.findIndex((word, at) => at > start && word.text === 'run');
  if (start < 0 || run < 0 || run - start > 2) throw cannotWrap('The line', 'it is no docker run or podman run');
  const flags: Flag[] = [];
  let at = run + 1;
  for (; at < words.length; at += 1) {
    const word = words[at];
    if (word === undefined || !word.text.startsWith('-')) break;
    const taken = flagsOf(word, words[at + 1]);
    flags.push(...taken.flags);
    if (taken.usesNext) at += 1;
  }
  const image = words[at]?.text;
  if (image === undefined) throw cannotWrap('The line', 'it names no image');
  return { engine: words.slice(0, run + 1), flags, image, command: words.slice(at + 1) };
}

/** `--name=x`, `--name x`, `-dit`, `-p8080:80`, `-p 8080:80`. */
function flagsOf(word: Word, next: Word | undefined): { flags: Flag[]; usesNext: boolean } {
  const long = /^--([a-z0-9-]+)(?:=([\s\S]*))?$/.exec(word.text);
  if (long !== null) {
    const name = long[1] ?? '';
    if (SWITCHES.has(name)) return { flags: long[2] === 'false' ? [] : [{ name, value: plain('') }], usesNext: false };
    if (long[2] !== undefined) return { flags: [{ name, value: { ...word, text: long[2] } }], usesNext: false };
    return { flags: [{ name, value: next ?? plain('') }], usesNext: true };
  }
  const flags: Flag[] = [];
  for (let at = 1; at < word.text.length; at += 1) {
    const name = SHORT[word.text[at] ?? ''];
    if (name === undefined) throw cannotWrap(word.text, 'it is not known');
    if (SWITCHES.has(name)) flags.push({ name, value: plain('') });
    else {
      const rest = word.text.slice(at + 1).replace(/^=/, '');
      const value = rest === '' ? (next ?? plain('')) : { ...word, text: rest };
      return { flags: [...flags, { name, value }], usesNext: rest === '' };
    }
  }
  return { flags, usesNext: false };
}

import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { UmsError } from '#src/telemetry/errors.ts';

/**
 * The Debian archive that the machine itself uses: images and the root file system of test hosts come from there and from
 * nowhere else, so that a machine behind a mirror or a proxy needs no other set-up.
 */
export interface Source {
  uri: string;
  suites: string[];
  components: string[];
}

/** Reads one deb822 file (*.sources). Stanzas that are switched off are left out. */
export function parseDeb822(text: string): Source[] {
  return text.split(/\n\s*\n/).flatMap((stanza) => {
    const fields = stanzaFields(stanza);
    const words = (name: string) => (fields.get(name) ?? '').split(/\s+/).filter((word) => word !== '');
    if (/^(no|false|0)$/i.test(fields.get('enabled') ?? '') || !words('types').includes('deb')) return [];
    return words('uris').map((uri) => ({ uri, suites: words('suites'), components: words('components') }));
  });
}

function stanzaFields(stanza: string): Map<string, string> {
  const fields = new Map<string, string>();
  let current = '';
  for (const line of stanza.split('\n')) {
    if (line.startsWith('#')) continue;
    const start = /^([A-Za-z-]+):(.*)$/.exec(line);
    if (start !== null) {
      current = (start[1] ?? '').toLowerCase();
      fields.set(current, (start[2] ?? '').trim());
    } else if (current !== '') {
      fields.set(current, `${fields.get(current) ?? ''} ${line.trim()}`);
    }
  }
  return fields;
}

/** Reads one file of the older form (sources.list): `deb [options] uri suite component…`. */
export function parseOneLine(text: string): Source[] {
  return text.split('\n').flatMap((line) => {
    const match = /^\s*deb\s+(?:\[[^\]]*\]\s*)?(\S+)\s+(\S+)\s*([^#]*)/.exec(line);
    if (match === null) return [];
    return [{ uri: match[1] ?? '', suites: [match[2] ?? ''], components: (match[3] ?? '').trim().split(/\s+/) }];
  });
}

const DEBIAN_SUITE =
  /^(bullseye|bookworm|trixie|forky|duke|sid|oldoldstable|oldstable|stable|testing|unstable)(-updates|-backports)?$/;

/** The first source that carries Debian itself: one of its suites, its component `main`, and not the security archive. */
export function pickDebian(sources: readonly Source[]): string | undefined {
  return sources.find(
    ({ uri, suites, components }) =>
      components.includes('main') &&
      suites.some((suite) => DEBIAN_SUITE.test(suite)) &&
      !/security/.test(uri) &&
      /debian|^(file|copy|mirror)/.test(uri),
  )?.uri;
}

export function debianMirror(etcApt = '/etc/apt'): string {
  const uri = pickDebian(readSources(etcApt));
  if (uri === undefined) {
    throw new UmsError('UMS_E_PREREQUISITE', {
      message: 'This machine has no Debian archive among its package sources',
      fault: 'user',
      mend: 'It is made of Debian packages: name a Debian mirror in /etc/apt/sources.list.d.',
    });
  }
  // Cloud images name a file that lists mirrors.
  const list = /^mirror\+file:(.*)$/.exec(uri)?.[1];
  if (list === undefined) return uri;
  const first = readFileSync(list, 'utf8')
    .split('\n')
    .find((line) => /^\s*\w+:\/\//.test(line));
  return first?.trim().split(/\s/)[0] ?? uri;
}

function readSources(etcApt: string): Source[] {
  const directory = join(etcApt, 'sources.list.d');
  const names = listIfThere(directory).sort();
  return [
    ...parseOneLine(readIfThere(join(etcApt, 'sources.list'))),
    ...names
      .filter((name) => name.endsWith('.sources'))
      .flatMap((name) => parseDeb822(readIfThere(join(directory, name)))),
    ...names
      .filter((name) => name.endsWith('.list'))
      .flatMap((name) => parseOneLine(readIfThere(join(directory, name)))),
  ];
}

function listIfThere(directory: string): string[] {
  try {
    return readdirSync(directory);
  } catch {
    return [];
  }
}

function readIfThere(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}

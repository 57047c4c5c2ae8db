import { expect, test } from 'vitest';
import { parseDeb822, parseOneLine, pickDebian } from './mirror.ts';

const DEBIAN_12 = `Types: deb
# A comment between fields
URIs: http://deb.example.org/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://deb.example.org/debian-security
Suites: bookworm-security
Components: main
`;

test('the deb822 form is read, with comments, several stanzas and continuation lines', () => {
  expect(parseDeb822(DEBIAN_12)).toHaveLength(2);
  const continued =
    'Types: deb\nURIs:\n http://a.example.org/debian\n http://b.example.org/debian\nSuites: trixie\nComponents: main contrib\n';
  expect(parseDeb822(continued).map((source) => source.uri)).toEqual([
    'http://a.example.org/debian',
    'http://b.example.org/debian',
  ]);
});

test('what is switched off or holds no binaries is left out', () => {
  expect(parseDeb822('Enabled: no\nTypes: deb\nURIs: http://x/debian\nSuites: trixie\nComponents: main\n')).toEqual([]);
  expect(parseDeb822('Types: deb-src\nURIs: http://x/debian\nSuites: trixie\nComponents: main\n')).toEqual([]);
});

test('the one-line form is read, with options and comments', () => {
  const text =
    '# deb http://no/debian trixie main\ndeb-src http://no/debian trixie main\ndeb [arch=amd64 signed-by=/k.gpg] http://yes/debian trixie main non-free # why\n';
  expect(parseOneLine(text)).toEqual([
    { uri: 'http://yes/debian', suites: ['trixie'], components: ['main', 'non-free'] },
  ]);
});

test("Debian's own archive is picked, not its security archive and not a stranger's", () => {
  const stranger = { uri: 'https://packages.example.org/debian', suites: ['cloud-tool'], components: ['main'] };
  const security = { uri: 'http://x/debian-security', suites: ['stable'], components: ['main'] };
  expect(pickDebian([stranger, security, ...parseDeb822(DEBIAN_12)])).toBe('http://deb.example.org/debian');
  expect(pickDebian([stranger, security])).toBeUndefined();
});

import { UmsError } from '#src/telemetry/errors.ts';

/** One word of a shell's command line. `expands` says that the shell shall still replace its variables. */
export interface Word {
  text: string;
  expands: boolean;
}

/** Splits a command line as a shell does, as far as it is one simple command. */
export function splitWords(line: string): Word[] {
  const words: Word[] = [];
  let word: Word | undefined;
  for (let at = 0; at < line.length; at += 1) {
    const character = line[at] ?? '';
    if (character === '\\' && line[at + 1] === '\n') at += 1;
    else if (/\s/.test(character)) {
      if (word !== undefined) words.push(word);
      word = undefined;
    } else if (/[|;&<>()`]/.test(character) || (character === '$' && line[at + 1] === '(')) {
      throw notSimple(`it has ${character === '$' ? '$(' : character}`);
    } else {
      word ??= { text: '', expands: false };
      at = readPiece(line, at, word);
    }
  }
  return word === undefined ? words : [...words, word];
}

/** Adds what begins at `at` to the word, and returns where it ends. */
function readPiece(line: string, at: number, word: Word): number {
  const character = line[at] ?? '';
  if (character === "'" || character === '"') {
    const end = closing(line, at);
    const inner = line.slice(at + 1, end);
    if (character === '"' && /\$[\w{]/.test(inner)) word.expands = true;
    word.text += character === '"' ? inner.replaceAll(/\\(["\\$`])/g, '$1') : inner;
    return end;
  }
  if (character === '\\') {
    word.text += line[at + 1] ?? '';
    return at + 1;
  }
  if (character === '$') word.expands = true;
  word.text += character;
  return at;
}

function closing(line: string, from: number): number {
  for (let at = from + 1; at < line.length; at += 1) {
    if (line[at] === '\\' && line[from] === '"') at += 1;
    else if (line[at] === line[from]) return at;
  }
  throw notSimple('a quotation mark is never closed');
}

function notSimple(why: string): UmsError {
  return new UmsError('UMS_E_USAGE', {
    message: `The line cannot be wrapped: ${why}`,
    fault: 'user',
    state: 'Nothing was written.',
    mend: 'Give one docker run or podman run command.',
  });
}

export function quoteWord({ text, expands }: Word): string {
  if (/^[A-Za-z0-9_@%+=:,./-]+$/.test(text)) return text;
  return expands ? `"${text.replaceAll(/["\\`]/g, '\\$&')}"` : `'${text.replaceAll("'", "'\\''")}'`;
}

import { mkdir, readFile, rename, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';

const NAME = /^[\w.@+-]{1,200}$/;

/** The directory of a run's results: a file for each repetition, written when it is measured, and one for the whole. */
export class Results {
  readonly directory: string;
  readonly bench: string;
  readonly stamp: string;

  constructor(directory: string, bench: string, began_at: number) {
    this.directory = directory;
    this.bench = bench;
    this.stamp = new Date(began_at).toISOString().replaceAll(':', '').slice(0, 17);
  }

  /** `BENCH-STAMP.json`: the result as a whole. */
  async whole(result: object): Promise<string> {
    return this.#write(join(this.directory, `${this.bench}-${this.stamp}.json`), json(result));
  }

  /** `BENCH-STAMP/NAME.json`: one repetition of this run. */
  async repetition(name: string, value: object): Promise<string> {
    return this.#write(join(this.directory, `${this.bench}-${this.stamp}`, `${checked(name)}.json`), json(value));
  }

  /** `BENCH-STAMP.ENDING`: a plot or a table. */
  async beside(ending: string, text: string): Promise<string> {
    return this.#write(join(this.directory, `${this.bench}-${this.stamp}.${checked(ending)}`), text);
  }

  /** `BENCH/NAME.json`: kept across runs, so that a run can go on where an earlier one ended. */
  async lasting(name: string, value: object): Promise<string> {
    return this.#write(this.#lastingPath(name), json(value));
  }

  async readLasting(name: string): Promise<unknown> {
    try {
      return JSON.parse(await readFile(this.#lastingPath(name), 'utf8'));
    } catch {
      // Not measured yet, or cut short: it is measured again.
      return undefined;
    }
  }

  #lastingPath(name: string): string {
    return join(this.directory, this.bench, `${checked(name)}.json`);
  }

  async #write(path: string, text: string): Promise<string> {
    await mkdir(dirname(path), { recursive: true });
    await writeFile(`${path}.incomplete`, text);
    await rename(`${path}.incomplete`, path);
    return path;
  }
}

function json(value: object): string {
  return `${JSON.stringify(value, null, 2)}\n`;
}

function checked(name: string): string {
  if (!NAME.test(name)) throw new Error(`"${name}" is not a name for a file of results`);
  return name;
}

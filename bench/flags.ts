import { InvalidArgumentError } from 'commander';
import { parseRate } from '#lab/links.ts';

/** Parsers of benches' options: each says what it wants when it does not get it. */
export function whole(least: number, most: number): (text: string) => number {
  return (text) => {
    const value = /^\d{1,9}$/.test(text) ? Number(text) : Number.NaN;
    if (value >= least && value <= most) return value;
    throw new InvalidArgumentError(`It must be a whole number from ${least} to ${most}.`);
  };
}

export function wholeList(least: number, most: number): (text: string) => number[] {
  return (text) => text.split(',').map(whole(least, most));
}

/** A subset, in the order given. */
export function someOf<Name extends string>(names: readonly Name[]): (text: string) => Name[] {
  return (text) =>
    text.split(',').map((word) => {
      const found = names.find((name) => name === word);
      if (found !== undefined) return found;
      throw new InvalidArgumentError(`"${word}" is none of ${names.join(', ')}.`);
    });
}

/** A rate as `lab link` takes it: checked here, passed on as text. */
export function rate(text: string): string {
  try {
    parseRate(text);
    return text;
  } catch {
    throw new InvalidArgumentError('Write a number with its unit, such as 1gbit or 72mbit, or "max".');
  }
}

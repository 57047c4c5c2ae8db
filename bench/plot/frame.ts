import { wrap } from '#src/cli/format.ts';
import { type Scale, tickText } from './scale.ts';
import { FAINT, INK, line, text } from './svg.ts';

/** What all plots have: a title, what was measured how, a legend, and a vertical axis with its unit. */
export interface Frame {
  left: number;
  top: number;
  width: number;
  height: number;
}

export const LEFT = 70;
const MARGIN = 16;
const TITLE_HEIGHT = 24;
const SUBTITLE_HEIGHT = 15;
const LEGEND_HEIGHT = 20;
const LETTER = 7;
const SMALL_LETTER = 5.9;

/** Title, subtitle and legend, each in as many lines as it needs, and where the plot itself may begin. */
export function heading(
  words: { title: string; subtitle: string },
  width: number,
  names: readonly string[],
  sample: (index: number, x: number, y: number) => string,
): { parts: string[]; bottom: number } {
  const parts = [text(MARGIN, TITLE_HEIGHT - 2, words.title, { size: 15, bold: true })];
  let y = TITLE_HEIGHT;
  for (const row of wrap(words.subtitle, Math.floor((width - 2 * MARGIN) / SMALL_LETTER))) {
    parts.push(text(MARGIN, y + 12, row, { size: 11, colour: '#555555' }));
    y += SUBTITLE_HEIGHT;
  }
  let x = LEFT;
  y += LEGEND_HEIGHT;
  for (const [index, name] of names.entries()) {
    const needed = 34 + name.length * LETTER;
    if (x > LEFT && x + needed > width - MARGIN) {
      x = LEFT;
      y += LEGEND_HEIGHT;
    }
    parts.push(sample(index, x + 7, y - 4), text(x + 19, y, name));
    x += needed;
  }
  return { parts, bottom: y + 14 };
}

/** Room that a turned name of this many letters takes below the axis. */
export function turnedHeight(names: readonly string[]): number {
  return 14 + Math.max(0, ...names.map((name) => name.length)) * SMALL_LETTER;
}

export function verticalAxis(frame: Frame, scale: Scale, label: string): string[] {
  const bottom = frame.top + frame.height;
  const ticks = scale.ticks.flatMap((tick) => {
    const y = bottom - scale.place(tick) * frame.height;
    return [
      line(frame.left, y, frame.left + frame.width, y, FAINT),
      text(frame.left - 6, y + 4, tickText(tick), { anchor: 'end', size: 11 }),
    ];
  });
  const axis = line(frame.left, frame.top, frame.left, bottom, INK);
  const base = line(frame.left, bottom, frame.left + frame.width, bottom, INK);
  const name = text(frame.left - 48, frame.top + frame.height / 2, label, { anchor: 'middle', turned: true });
  return [...ticks, axis, base, name];
}

/** A dashed line at a value that the others are compared with; the legend names it. */
export function referenceLine(frame: Frame, scale: Scale, value: number): string {
  const y = frame.top + frame.height - scale.place(value) * frame.height;
  return line(frame.left, y, frame.left + frame.width, y, INK, DASHED);
}

export function dashSample(x: number, y: number): string {
  return line(x - 8, y, x + 8, y, INK, DASHED);
}

const DASHED = 'stroke-dasharray="5 3" stroke-width="1.5"';

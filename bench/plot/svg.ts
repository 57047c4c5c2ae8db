/** The little of SVG that plots need. White ground and dark text, so that they can be read on a page of any colour. */
export const INK = '#222222';
export const FAINT = '#d9d9d9';
const FONT = 'font-family="Helvetica, Arial, sans-serif"';

/** Okabe and Ito's colours, which people with any kind of colour vision can tell apart. */
export const COLOURS = [
  '#0072b2',
  '#e69f00',
  '#009e73',
  '#cc79a7',
  '#56b4e9',
  '#d55e00',
  '#f0e442',
  '#999999',
  '#000000',
] as const;

export function colourOf(index: number): string {
  return COLOURS[index % COLOURS.length] ?? INK;
}

/** Which colour and mark a name has: the fixed names' own in every plot, the others what comes after those. */
export function paletteOf(fixed: readonly string[], names: readonly string[]): (name: string) => number {
  const all = [...fixed, ...names.filter((name) => !fixed.includes(name))];
  return (name) => all.indexOf(name);
}

export function escapeText(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;').replaceAll('"', '&quot;');
}

export function number(value: number): string {
  return String(Number(value.toFixed(2)));
}

export interface TextStyle {
  anchor?: 'start' | 'middle' | 'end';
  size?: number;
  bold?: boolean;
  turned?: boolean;
  colour?: string;
}

export function text(x: number, y: number, words: string, style: TextStyle = {}): string {
  const turn = style.turned === true ? ` transform="rotate(-90 ${number(x)} ${number(y)})"` : '';
  const weight = style.bold === true ? ' font-weight="bold"' : '';
  const paint = `font-size="${style.size ?? 12}" fill="${style.colour ?? INK}" text-anchor="${style.anchor ?? 'start'}"`;
  return `<text x="${number(x)}" y="${number(y)}" ${paint}${weight}${turn}>${escapeText(words)}</text>`;
}

export function line(x1: number, y1: number, x2: number, y2: number, colour: string = INK, more = ''): string {
  return `<line x1="${number(x1)}" y1="${number(y1)}" x2="${number(x2)}" y2="${number(y2)}" stroke="${colour}" ${more}/>`;
}

export function box(x: number, y: number, width: number, height: number, fill: string, more = ''): string {
  return `<rect x="${number(x)}" y="${number(y)}" width="${number(width)}" height="${number(height)}" fill="${fill}" ${more}/>`;
}

/** A vertical line from the least to the most with a short bar at each end: the spread of the repetitions. */
export function whisker(x: number, low: number, high: number, width = 6): string {
  const end = (y: number) => line(x - width / 2, y, x + width / 2, y);
  return `${line(x, low, x, high)}${end(low)}${end(high)}`;
}

const MARKERS = 5;

/** Marks differ in shape too, so that colour is not all that tells lines apart. */
export function marker(index: number, x: number, y: number, colour: string): string {
  const at = (dx: number, dy: number) => `${number(x + dx)},${number(y + dy)}`;
  const polygon = (points: string[]) => `<polygon points="${points.join(' ')}" fill="${colour}"/>`;
  switch (index % MARKERS) {
    case 0:
      return `<circle cx="${number(x)}" cy="${number(y)}" r="4" fill="${colour}"/>`;
    case 1:
      return box(x - 3.5, y - 3.5, 7, 7, colour);
    case 2:
      return polygon([at(0, -5), at(4.5, 3.5), at(-4.5, 3.5)]);
    case 3:
      return polygon([at(0, -5), at(5, 0), at(0, 5), at(-5, 0)]);
    default:
      return polygon([at(0, 5), at(4.5, -3.5), at(-4.5, -3.5)]);
  }
}

export function svg(width: number, height: number, title: string, parts: readonly string[]): string {
  const head = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" ${FONT} role="img">`;
  return `${head}\n<title>${escapeText(title)}</title>\n${box(0, 0, width, height, '#ffffff')}\n${parts.join('\n')}\n</svg>\n`;
}

import { dashSample, type Frame, heading, LEFT, referenceLine, turnedHeight, verticalAxis } from './frame.ts';
import { linearScale, logScale, type Scale } from './scale.ts';
import { box, colourOf, INK, paletteOf, svg, text, whisker } from './svg.ts';

/** Groups of bars; a bar is one value or a stack of parts, with the spread of its repetitions. */
export interface Bar {
  /** Under the bar where bars are stacks; otherwise what its colour stands for. */
  name: string;
  parts: readonly { name: string; value: number }[];
  low: number;
  high: number;
}

export interface BarPlot {
  title: string;
  /** What was measured how: workload, link, repetitions. */
  subtitle: string;
  /** With its unit. */
  y: string;
  log?: boolean;
  groups: readonly { name: string; bars: readonly Bar[] }[];
  /** For stacks: the parts from the bottom to the top. */
  order?: readonly string[];
  /** Names in the order of the colours, so that a name has the same one in every plot. */
  palette?: readonly string[];
  reference?: { name: string; value: number };
}

const HEIGHT = 280;
const BAR = 34;
const GAP = 30;
const MIN_WIDTH = 560;
const MAX_STRETCH = 1.6;
const SAMPLE = `stroke="${INK}" stroke-width="0.3"`;

const heightOf = (bar: Bar): number => bar.parts.reduce((sum, part) => sum + part.value, 0);

export function barPlot(plot: BarPlot): string {
  const bars = plot.groups.flatMap((group) => group.bars);
  const references = plot.reference === undefined ? [] : [plot.reference];
  const values = [...bars.flatMap((bar) => [heightOf(bar), bar.high]), ...references.map((each) => each.value)];
  const scale = plot.log === true ? logScale(values) : linearScale(values);
  const stacked = plot.order !== undefined;
  const names = coloured(plot, bars);
  const palette = paletteOf(plot.palette ?? [], names);
  const width = Math.max(MIN_WIDTH, bars.length * BAR + plot.groups.length * GAP);
  const head = heading(plot, LEFT + width, [...names, ...references.map((each) => each.name)], (index, x, y) =>
    index < names.length ? box(x - 6, y - 6, 12, 12, colourOf(palette(names[index] ?? '')), SAMPLE) : dashSample(x, y),
  );
  const frame = { left: LEFT, top: head.bottom, width, height: HEIGHT };
  const below = 24 + (stacked ? turnedHeight(bars.map((bar) => bar.name)) : 0);
  return svg(LEFT + width + 16, frame.top + HEIGHT + below + 10, plot.title, [
    ...head.parts,
    ...verticalAxis(frame, scale, plot.y),
    ...drawGroups(plot, frame, scale, palette, below),
    ...references.map((each) => referenceLine(frame, scale, each.value)),
  ]);
}

/** What has a colour of its own: parts of stacks, or bars. */
function coloured(plot: BarPlot, bars: readonly Bar[]): string[] {
  const parts = new Set(bars.flatMap((bar) => bar.parts.map((part) => part.name)));
  if (plot.order !== undefined) return plot.order.filter((name) => parts.has(name));
  return [...new Set(bars.map((bar) => bar.name))];
}

type Palette = ReturnType<typeof paletteOf>;

function drawGroups(plot: BarPlot, frame: Frame, scale: Scale, palette: Palette, below: number): string[] {
  const count = plot.groups.reduce((sum, group) => sum + group.bars.length, 0);
  const natural = count * BAR + plot.groups.length * GAP;
  const stretch = Math.min(MAX_STRETCH, frame.width / Math.max(1, natural));
  const bottom = frame.top + frame.height;
  const drawn: string[] = [];
  let x = frame.left + (frame.width - natural * stretch) / 2 + (GAP * stretch) / 2;
  for (const group of plot.groups) {
    const from = x;
    for (const bar of group.bars) {
      drawn.push(...drawBar(bar, x, BAR * stretch, frame, scale, plot.order, palette));
      x += BAR * stretch;
    }
    drawn.push(text((from + x) / 2, bottom + below - 4, group.name, { anchor: 'middle', bold: true }));
    x += GAP * stretch;
  }
  return drawn;
}

function drawBar(
  bar: Bar,
  x: number,
  width: number,
  frame: Frame,
  scale: Scale,
  order: readonly string[] | undefined,
  palette: Palette,
): string[] {
  const bottom = frame.top + frame.height;
  const at = (value: number): number => bottom - scale.place(value) * frame.height;
  const drawn: string[] = [];
  const parts =
    order === undefined ? bar.parts : bar.parts.toSorted((a, b) => order.indexOf(a.name) - order.indexOf(b.name));
  let top = 0;
  for (const part of parts) {
    const [low, high] = [top === 0 ? bottom : at(top), at(top + part.value)];
    const colour = colourOf(palette(order === undefined ? bar.name : part.name));
    drawn.push(box(x + 3, high, width - 6, low - high, colour));
    top += part.value;
  }
  const middle = x + width / 2;
  drawn.push(whisker(middle, at(bar.low), at(bar.high)));
  if (order !== undefined)
    drawn.push(text(middle + 4, bottom + 8, bar.name, { anchor: 'end', size: 11, turned: true }));
  return drawn;
}

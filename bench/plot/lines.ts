import { dashSample, type Frame, heading, LEFT, referenceLine, verticalAxis } from './frame.ts';
import { linearScale, logScale, pointScale, type Scale, tickText } from './scale.ts';
import { colourOf, FAINT, line, marker, number, paletteOf, svg, text, whisker } from './svg.ts';

/** Lines over a chosen quantity, in panels side by side that share their axes; points are medians with their spread. */
export interface Point {
  x: number;
  y: number;
  low: number;
  high: number;
}

export interface LinePlot {
  title: string;
  subtitle: string;
  /** Both with their units. */
  x: string;
  y: string;
  log?: boolean;
  panels: readonly {
    name: string;
    series: readonly { name: string; points: readonly Point[] }[];
    reference?: number;
  }[];
  /** Names in the order of the colours, so that a name has the same one in every plot. */
  palette?: readonly string[];
  reference?: string;
}

const HEIGHT = 260;
const WIDTH = 240;
const GAP = 24;
const MIN_WIDTH = 560;
const PANEL_NAME_HEIGHT = 20;

export function linePlot(plot: LinePlot): string {
  const points = plot.panels.flatMap((panel) => panel.series.flatMap((series) => series.points));
  const references = plot.panels.flatMap((panel) => (panel.reference === undefined ? [] : [panel.reference]));
  const values = [...points.flatMap((point) => [point.low, point.high]), ...references];
  const y = plot.log === true ? logScale(values) : linearScale(values);
  const x = pointScale(points.map((point) => point.x));
  const names = [...new Set(plot.panels.flatMap((panel) => panel.series.map((series) => series.name)))];
  const palette = paletteOf(plot.palette ?? [], names);
  const panelWidth = Math.max(WIDTH, x.ticks.length * 40);
  const width = Math.max(MIN_WIDTH, LEFT + plot.panels.length * (panelWidth + GAP));
  const shown = [...names, ...(plot.reference === undefined ? [] : [plot.reference])];
  const head = heading(plot, width, shown, (index, sx, sy) =>
    index < names.length ? sampleOf(palette(names[index] ?? ''), sx, sy) : dashSample(sx, sy),
  );
  const top = head.bottom + PANEL_NAME_HEIGHT;
  const drawn = plot.panels.flatMap((panel, at) => {
    const frame = { left: LEFT + at * (panelWidth + GAP), top, width: panelWidth, height: HEIGHT };
    const axis = at === 0 ? verticalAxis(frame, y, plot.y) : gridOf(frame, y);
    const compared = panel.reference === undefined ? [] : [referenceLine(frame, y, panel.reference)];
    return [
      text(frame.left + panelWidth / 2, top - 8, panel.name, { anchor: 'middle', bold: true }),
      ...axis,
      ...horizontalTicks(frame, x),
      ...panel.series.flatMap((series) =>
        drawSeries(
          frame,
          x,
          y,
          series.points,
          palette(series.name),
          (names.indexOf(series.name) - (names.length - 1) / 2) * BESIDE,
        ),
      ),
      ...compared,
    ];
  });
  return svg(width, top + HEIGHT + 52, plot.title, [
    ...head.parts,
    ...drawn,
    text((LEFT + width - GAP) / 2, top + HEIGHT + 42, plot.x, { anchor: 'middle' }),
  ]);
}

function sampleOf(index: number, x: number, y: number): string {
  return marker(index, x, y, colourOf(index));
}

function gridOf(frame: Frame, scale: Scale): string[] {
  return scale.ticks.map((tick) => {
    const y = frame.top + frame.height - scale.place(tick) * frame.height;
    return line(frame.left, y, frame.left + frame.width, y, FAINT);
  });
}

/** Points keep a distance from the panel's edges, so that marks and whiskers are not cut. */
function across(frame: Frame, scale: Scale, value: number): number {
  return frame.left + 16 + scale.place(value) * (frame.width - 32);
}

function horizontalTicks(frame: Frame, scale: Scale): string[] {
  const bottom = frame.top + frame.height;
  return [
    line(frame.left, bottom, frame.left + frame.width, bottom),
    ...scale.ticks.map((tick) =>
      text(across(frame, scale, tick), bottom + 16, tickText(tick), { anchor: 'middle', size: 11 }),
    ),
  ];
}

/** Lines stand a little beside each other, so that equal values do not hide one another. */
const BESIDE = 5;

function drawSeries(
  frame: Frame,
  x: Scale,
  y: Scale,
  points: readonly Point[],
  index: number,
  beside: number,
): string[] {
  const colour = colourOf(index);
  const up = (value: number) => frame.top + frame.height - y.place(value) * frame.height;
  const at = (value: number) => across(frame, x, value) + beside;
  const sorted = points.toSorted((a, b) => a.x - b.x);
  const path = sorted.map((point) => `${number(at(point.x))},${number(up(point.y))}`).join(' ');
  return [
    `<polyline points="${path}" fill="none" stroke="${colour}" stroke-width="2"/>`,
    ...sorted.flatMap((point) => [
      whisker(at(point.x), up(point.low), up(point.high)),
      marker(index, at(point.x), up(point.y), colour),
    ]),
  ];
}

import type { Floor } from '../baselines/floor.ts';
import { TECHNIQUES } from '../cases.ts';
import { median, summarise } from '../measure/statistics.ts';
import { type Bar, barPlot } from '../plot/bars.ts';
import { linePlot, type Point } from '../plot/lines.ts';
import { groupsOf, type Moved } from './judge.ts';

/** Plots of `bench downtime`, by the ending of their file's name. */
export function plotsOf(moves: readonly Moved[], floors: readonly Floor[], mib: number): Record<string, string> {
  const groups = groupsOf(moves).filter(({ cell }) => cell.link === 'fast');
  const engines = [...new Set(groups.map(({ cell }) => cell.engine))];
  return Object.fromEntries(
    engines.flatMap((engine) => {
      const own = groups.filter(({ cell }) => cell.engine === engine);
      return [
        [`dirty.${engine}.svg`, byDirtying(own, floors, mib, engine)],
        [`size.${engine}.svg`, bySize(own, floors, engine)],
      ];
    }),
  );
}

type Groups = ReturnType<typeof groupsOf>;

function floorOf(floors: readonly Floor[]): number | undefined {
  return floors.length === 0 ? undefined : median(floors.map((floor) => floor.downtime_ms)) / 1000;
}

const FLOOR = 'local floor: runc, 8 MiB, one host';

function repetitionsOf(groups: Groups): number {
  return Math.max(0, ...groups.map(({ outcomes }) => outcomes.length));
}

function byDirtying(groups: Groups, floors: readonly Floor[], mib: number, engine: string): string {
  const own = groups.filter(({ cell }) => cell.mib === mib);
  const rates = [...new Set(own.map(({ cell }) => cell.dirty_kb_s))].toSorted((a, b) => a - b);
  const floor = floorOf(floors);
  return barPlot({
    title: `Downtime of a service of ${mib} MiB in ${engine}, by how fast it writes`,
    subtitle: `as its own log says; medians of ${repetitionsOf(own)} with least and most; the link carries 1 Gbit/s`,
    y: 'downtime, seconds (logarithmic)',
    log: true,
    palette: TECHNIQUES,
    groups: rates.map((rate) => ({
      name: `${rate / 1000} MB/s`,
      bars: own
        .filter(({ cell }) => cell.dirty_kb_s === rate)
        .map(({ cell, outcomes }): Bar => {
          const { median: value, min, max } = summarise(outcomes.map((one) => one.downtime_ms / 1000));
          return { name: cell.technique, parts: [{ name: cell.technique, value }], low: min, high: max };
        }),
    })),
    ...(floor === undefined ? {} : { reference: { name: FLOOR, value: floor } }),
  });
}

/** A panel for each rate of writing. */
function bySize(groups: Groups, floors: readonly Floor[], engine: string): string {
  const rates = [...new Set(groups.map(({ cell }) => cell.dirty_kb_s))].toSorted((a, b) => a - b);
  const floor = floorOf(floors);
  return linePlot({
    title: `Downtime by the size of a service in ${engine}`,
    subtitle: `as its own log says; medians of ${repetitionsOf(groups)} with least and most; the link carries 1 Gbit/s`,
    x: 'MiB of memory',
    y: 'downtime, seconds (logarithmic)',
    log: true,
    palette: TECHNIQUES,
    panels: rates.map((rate) => {
      const own = groups.filter(({ cell }) => cell.dirty_kb_s === rate);
      const techniques = [...new Set(own.map(({ cell }) => cell.technique))];
      const series = techniques.map((technique) => ({
        name: technique,
        points: own.filter(({ cell }) => cell.technique === technique).map(pointOf),
      }));
      return { name: `${rate / 1000} MB/s written`, series, ...(floor === undefined ? {} : { reference: floor }) };
    }),
    reference: FLOOR,
  });
}

function pointOf({ cell, outcomes }: Groups[number]): Point {
  const { median: y, min, max } = summarise(outcomes.map((one) => one.downtime_ms / 1000));
  return { x: cell.mib, y, low: min, high: max };
}

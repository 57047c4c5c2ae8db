import { describe, expect, it } from 'vitest';
import { barPlot } from './bars.ts';
import { linePlot } from './lines.ts';
import { linearScale, logScale, pointScale, tickText } from './scale.ts';

describe('scales', () => {
  it('ends at round numbers above all values', () => {
    expect(linearScale([3, 17, 42]).ticks).toEqual([0, 10, 20, 30, 40, 50]);
    expect(linearScale([]).max).toBe(1);
    expect(linearScale([0.13]).max).toBeCloseTo(0.15);
    expect(logScale([3, 4000]).ticks).toEqual([1, 10, 100, 1000, 10_000]);
    expect(logScale([100, 1000]).ticks).toEqual([100, 200, 500, 1000]);
    expect(logScale([]).ticks.length).toBeGreaterThan(1);
    expect(logScale([10, 1000]).place(100)).toBeCloseTo(0.5);
    expect(pointScale([1024, 8, 128]).place(128)).toBe(0.5);
    expect([tickText(1024), tickText(0.25), tickText(0)]).toEqual(['1,024', '0.25', '0']);
  });
});

describe('plots', () => {
  it('draws every bar and says what it shows', () => {
    const bars = [{ name: 'a & b', parts: [{ name: 'a & b', value: 2 }], low: 1, high: 3 }];
    const drawn = barPlot({
      title: 'T',
      subtitle: 'S',
      y: 'seconds',
      groups: [{ name: 'G', bars }],
      reference: { name: 'R', value: 1 },
    });
    for (const words of ['<title>T</title>', '>seconds<', '>G<', '>R<', 'a &amp; b']) expect(drawn).toContain(words);
    expect(drawn).not.toContain('NaN');
  });

  it('draws lines in panels, also with nothing to show', () => {
    const series = [
      {
        name: 's',
        points: [
          { x: 1, y: 2, low: 1, high: 3 },
          { x: 2, y: 4, low: 4, high: 5 },
        ],
      },
    ];
    const drawn = linePlot({
      title: 'T',
      subtitle: 'S',
      x: 'MiB',
      y: 'ms',
      log: true,
      panels: [{ name: 'P', series }],
    });
    expect(drawn).toContain('<polyline');
    expect(drawn).not.toContain('NaN');
    expect(linePlot({ title: 'T', subtitle: '', x: '', y: '', panels: [] })).not.toContain('NaN');
  });
});

import { expect, test } from 'vitest';
import { cutRules } from './network.ts';

const macOf = (place: string): string => `mac-of-${place}`;

test('each destination gets one chain that drops what comes from those cut off', () => {
  const cuts = [
    { from: 'alpha', to: 'beta' },
    { from: 'gamma', to: 'beta' },
    { from: 'beta', to: 'alpha' },
  ];
  const rules = cutRules(cuts, macOf, ['alpha', 'beta', 'gamma']);
  expect(rules.match(/chain /g)).toHaveLength(2);
  expect(rules).toContain('device "w-beta"');
  expect(rules).toContain('ether saddr { mac-of-alpha, mac-of-gamma } drop');
});

test('the list is complete: earlier cuts end, and hosts that are down get no rule', () => {
  expect(cutRules([], macOf, ['alpha'])).toBe('table netdev cuts\ndelete table netdev cuts\ntable netdev cuts {\n}\n');
  expect(cutRules([{ from: 'alpha', to: 'beta' }], macOf, ['alpha'])).not.toContain('w-beta');
});

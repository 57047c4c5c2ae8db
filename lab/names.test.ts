import { expect, test } from 'vitest';
import { checkHostNames, checkLabName, hostAddress, hostMac, labPaths, wirePort } from './names.ts';

test("a host's port on the wire fits into an interface name", () => {
  expect(wirePort('alpha')).toBe('w-alpha');
  checkHostNames(['a-13-letters1']);
  expect(wirePort('a-13-letters1')).toHaveLength(15);
});

test.each(['outside', 'Alpha', '1a', 'a-', 'fourteen-lettr', '', '../x'])('"%s" cannot be a host', (name) => {
  expect(() => checkHostNames([name])).toThrow('cannot be the name');
});

test.each(['', 'a/b', '..', 'UMS', '.x'])('"%s" cannot be a lab', (name) => {
  expect(() => checkLabName(name)).toThrow('cannot be the name');
});

test('there is an end to the number of hosts', () => {
  expect(() => checkHostNames(Array.from({ length: 33 }, (_, index) => `h${index}`))).toThrow('more than 32');
});

test('addresses follow the numbers', () => {
  expect([hostAddress(1), hostMac(1), hostMac(32)]).toEqual(['10.77.0.1', '02:75:6d:73:00:01', '02:75:6d:73:00:20']);
});

test("a lab's files lie beneath its own directory", () => {
  const paths = labPaths('mine', { UMS_LAB_DIR: '/somewhere' });
  expect([paths.root, paths.state]).toEqual(['/somewhere/mine', '/somewhere/mine/state.json']);
  expect(paths.lock.startsWith(paths.root)).toBe(false);
});

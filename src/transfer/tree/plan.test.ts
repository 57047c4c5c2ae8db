import * as fc from 'fast-check';
import { expect, test } from 'vitest';
import { describeTree, ModelCopy, ModelTree, type Operation } from './model.test-support.ts';
import { planPass } from './plan.ts';

// Few names, some of which sort between a directory and what is below it.
const name = fc.constantFrom('a', 'b', 'a.', 'a-b');
const path = fc.array(name, { minLength: 1, maxLength: 3 }).map((parts) => parts.join('/'));
const operation: fc.Arbitrary<Operation> = fc.record({
  kind: fc.constantFrom('file', 'directory', 'directory', 'socket', 'write', 'touch', 'remove', 'link', 'rename'),
  a: path,
  b: path,
});
const operations = fc.array(operation, { maxLength: 40 });
const none = new Set<string>();

test('after any number of passes the other side holds the same tree', () => {
  fc.assert(
    fc.property(fc.array(operations, { minLength: 1, maxLength: 5 }), (rounds) => {
      const tree = new ModelTree();
      const copy = new ModelCopy();
      let before: ReturnType<ModelTree['snapshot']> | undefined;
      for (const round of rounds) {
        for (const step of round) tree.apply(step);
        const now = tree.snapshot();
        const plan = planPass(now, before, none, none);
        copy.apply(plan, now, tree);
        expect(copy.describe()).toEqual(describeTree(tree));
        // The same pass once more changes nothing.
        copy.apply(plan, now, tree);
        expect(copy.describe()).toEqual(describeTree(tree));
        before = now;
      }
    }),
    { numRuns: 400 },
  );
});

test('an unchanged tree needs nothing', () => {
  fc.assert(
    fc.property(operations, (round) => {
      const tree = new ModelTree();
      for (const step of round) tree.apply(step);
      const before = tree.snapshot();
      const plan = planPass(tree.snapshot(), before, none, none);
      expect(plan).toEqual({ full: false, send: [], sockets: [], patches: [], deletions: [] });
    }),
  );
});

function treeOf(...steps: [Operation['kind'], string, string?][]): ModelTree {
  const tree = new ModelTree();
  for (const [kind, a, b] of steps) tree.apply({ kind, a, b: b ?? '' });
  return tree;
}

test('a write that moves no time is found through the mapped files', () => {
  const tree = treeOf(['file', 'mapped'], ['file', 'other']);
  const before = tree.snapshot();
  tree.apply({ kind: 'sneak', a: 'mapped', b: '' });
  const now = tree.snapshot();
  expect(planPass(now, before, none, none).send).toEqual([]);
  const plan = planPass(now, before, new Set([tree.identity('mapped')]), none);
  expect(plan.send.map((entry) => now.pathAt(entry))).toEqual(['', 'mapped']);
});

test('an entry whose time is as young as the earlier walk goes again', () => {
  const tree = treeOf(['file', 'young']);
  const before = tree.snapshot();
  expect(planPass(tree.snapshot(), before, none, none).send).toEqual([]);
  // As if the walk had begun a second after the file was written, within what a clock tick may hide.
  Object.assign(before, { startedNs: (tree.names.get('young')?.ctimeNs ?? 0n) + 1_000_000_000n });
  const now = tree.snapshot();
  expect(planPass(now, before, none, none).send.map((entry) => now.pathAt(entry))).toEqual(['', 'young']);
});

test('what an earlier pass did not carry as seen goes again', () => {
  const tree = treeOf(['file', 'a'], ['file', 'b']);
  const before = tree.snapshot();
  before.stale.add(before.index.get('b') ?? -1);
  const now = tree.snapshot();
  expect(planPass(now, before, none, none).send.map((entry) => now.pathAt(entry))).toEqual(['', 'b']);
});

test('a directory that must be made anew goes with all below it', () => {
  const tree = treeOf(['directory', 'd'], ['file', 'd/f'], ['directory', 'd/e'], ['file', 'd/e/g'], ['file', 'd.x']);
  const before = tree.snapshot();
  const now = tree.snapshot();
  const plan = planPass(now, before, none, new Set(['d', 'd/e']));
  expect(plan.deletions).toEqual(['d']);
  expect(plan.send.map((entry) => now.pathAt(entry))).toEqual(['', 'd', 'd/e', 'd/e/g', 'd/f']);
});

test('when one name of a file goes, all its names go', () => {
  const tree = treeOf(['file', 'a'], ['link', 'a', 'b'], ['file', 'c']);
  const before = tree.snapshot();
  before.stale.add(before.index.get('b') ?? -1);
  const now = tree.snapshot();
  expect(planPass(now, before, none, none).send.map((entry) => now.pathAt(entry))).toEqual(['', 'a', 'b']);
});

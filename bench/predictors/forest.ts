export interface Example {
  readonly features: readonly number[];
  readonly target: number;
}

type Tree =
  | { readonly value: number }
  | { readonly feature: number; readonly at: number; readonly low: Tree; readonly high: Tree };

const TREES = 40;
const DEPTH_MAX = 9;
const LEAF_MIN = 8;
const CUTS = 16;
const FEATURES_TRIED = 3;

/**
 * Regression forest: trees grown on samples drawn with replacement, each split the best of some random cuts of some
 * features. Its chance is seeded, so the figures can be repeated.
 */
export function growForest(examples: readonly Example[]): (features: readonly number[]) => number {
  const random = seeded(12_345);
  const trees = Array.from({ length: TREES }, () => {
    const drawn = examples.flatMap(() => examples[Math.floor(random() * examples.length)] ?? []);
    return grow(drawn, 0, random);
  });
  return (features) => trees.reduce((sum, tree) => sum + answer(tree, features), 0) / TREES;
}

function grow(examples: readonly Example[], depth: number, random: () => number): Tree {
  const leaf = { value: mean(examples) };
  if (depth >= DEPTH_MAX || examples.length < 2 * LEAF_MIN) return leaf;
  const cut = bestCut(examples, random);
  if (cut === undefined) return leaf;
  const [low, high] = parted(examples, cut.feature, cut.at);
  return { ...cut, low: grow(low, depth + 1, random), high: grow(high, depth + 1, random) };
}

function bestCut(examples: readonly Example[], random: () => number): { feature: number; at: number } | undefined {
  const width = examples[0]?.features.length ?? 0;
  let best: { feature: number; at: number; gain: number } | undefined;
  for (let tried = 0; tried < FEATURES_TRIED; tried += 1) {
    const feature = Math.floor(random() * width);
    for (let each = 0; each < CUTS; each += 1) {
      const at = examples[Math.floor(random() * examples.length)]?.features[feature] ?? 0;
      const gain = gainOf(examples, feature, at);
      if (gain > (best?.gain ?? 0)) best = { feature, at, gain };
    }
  }
  return best === undefined ? undefined : { feature: best.feature, at: best.at };
}

/** By how much a cut lowers the squared error; 0 when a side would be too small. */
function gainOf(examples: readonly Example[], feature: number, at: number): number {
  let [count, sum, all] = [0, 0, 0];
  for (const { features, target } of examples) {
    all += target;
    if ((features[feature] ?? 0) > at) continue;
    count += 1;
    sum += target;
  }
  const others = examples.length - count;
  if (count < LEAF_MIN || others < LEAF_MIN) return 0;
  return sum ** 2 / count + (all - sum) ** 2 / others - all ** 2 / examples.length;
}

function parted(examples: readonly Example[], feature: number, at: number): [Example[], Example[]] {
  const isLow = (example: Example) => (example.features[feature] ?? 0) <= at;
  return [examples.filter(isLow), examples.filter((example) => !isLow(example))];
}

function mean(examples: readonly Example[]): number {
  return examples.reduce((sum, { target }) => sum + target, 0) / Math.max(1, examples.length);
}

function answer(tree: Tree, features: readonly number[]): number {
  let at = tree;
  while ('feature' in at) at = (features[at.feature] ?? 0) <= at.at ? at.low : at.high;
  return at.value;
}

function seeded(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 32;
  };
}

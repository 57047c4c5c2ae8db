import assert from 'node:assert/strict';
import { scenarios } from './lazy-scenarios.ts';

/** One scenario inside of a host: `node lazy-command.ts NAME`. The answer is one line of JSON. */
const scenario = scenarios[process.argv[2] ?? ''];
assert.ok(scenario !== undefined, `one of ${Object.keys(scenarios).join(', ')}`);
process.stdout.write(`${JSON.stringify(await scenario())}\n`);
process.exit(0);

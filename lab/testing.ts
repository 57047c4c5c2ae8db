import { spawn } from 'node:child_process';
import {
  closeSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { once } from 'node:events';
import { tmpdir } from 'node:os';
import { basename, delimiter, dirname, join, resolve } from 'node:path';
import { z } from 'zod';
import { run } from '#src/telemetry/exec.ts';
import { toUmsError, UmsError } from '#src/telemetry/errors.ts';
import { buildKubernetes } from './kubernetes/binaries.ts';
import { Lab } from './lab.ts';
import { cacheDir } from './names.ts';
import { installPrerequisites } from './prerequisites.ts';
import { buildRootFileSystem } from './rootfs.ts';
import { sayToPerson as say } from './say.ts';

/** One line of the summary: a check, the unit tests, or a file of end-to-end tests. */
export interface Outcome {
  name: string;
  passed: number;
  failed: number;
  duration_ms: number;
  /** What failed and why, a line each, so that whoever sees only the end of a long output knows. */
  failures?: string[];
}

const root = resolve(import.meta.dirname, '..');
const bin = join(realModules(), '.bin');
const CHECK_LIMIT_MS = 180_000;
const UNIT_LIMIT_MS = 300_000;
const E2E_FILE_LIMIT_MS = 1_500_000;
/** Those that take longest begin first, so that no lane is left alone with one of them. */
const LONGEST = ['kill', 'page-faults.e2e', 'soft-dirty', 'conformance', 'kubernetes'];
/** These measure: throughput, or how soon something is done. */
const MEASURING = /performance|cancel|^lab\./;
/** Files of end-to-end tests that run at once. */
const LANES = 2;
const KILL_AFTER_MS = 10_000;
const ROOMS = ['src', 'lab', 'bench', 'test', 'tools'];

function realModules(): string {
  const beside = join(root, 'node_modules');
  return existsSync(beside) ? beside : join(root, '..', 'node_modules');
}

/** Tools that are scripts shall find this Node, not an older one that comes first in the PATH. */
function toolEnv(): Record<string, string> {
  const plain: Record<string, string> = process.stderr.isTTY ? {} : { NO_COLOR: '1', FORCE_COLOR: '0' };
  return { ...plain, PATH: [dirname(process.execPath), process.env['PATH'] ?? ''].join(delimiter) };
}

const rooms = (): string[] => ROOMS.filter((room) => existsSync(join(root, room)));

export async function runStaticChecks(signal: AbortSignal): Promise<Outcome[]> {
  const checks: [string, string, string[]][] = [
    ['format', join(bin, 'biome'), ['format', ...rooms()]],
    ['lint', join(bin, 'oxlint'), ['--type-aware', ...rooms()]],
    ['types', join(bin, 'tsc'), ['-p', '.']],
    ['imports', process.execPath, ['--disable-warning=ExperimentalWarning', join('tools', 'check-imports.ts')]],
  ];
  const outcomes: Outcome[] = [];
  for (const [name, command, args] of checks) outcomes.push(await check(name, command, args, signal));
  return outcomes;
}

async function check(name: string, command: string, args: readonly string[], signal: AbortSignal): Promise<Outcome> {
  const started = Date.now();
  // A failed check is a result here, not an error, so every exit code is taken.
  const anyExit = Array.from({ length: 256 }, (_, code) => code);
  const options = { cwd: root, timeout_ms: CHECK_LIMIT_MS, env: toolEnv(), okExitCodes: anyExit, signal };
  const { exitCode, stdout, stderr } = await run(command, args, options);
  const ok = exitCode === 0;
  say(`${ok ? 'ok  ' : 'FAIL'} ${name}`);
  if (!ok) say(`${stdout}${stderr}`);
  return { name, passed: ok ? 1 : 0, failed: ok ? 0 : 1, duration_ms: Date.now() - started };
}

const vitestSchema = z.object({
  numPassedTests: z.int(),
  numFailedTests: z.int(),
  numTotalTests: z.int(),
  success: z.boolean(),
});

export async function runUnitTests(pattern: string, signal: AbortSignal): Promise<Outcome[]> {
  return inWorkspace(async (directory) => {
    const started = Date.now();
    const report = join(directory, 'unit.json');
    const filter = pattern === '' ? [] : [pattern];
    const reporters = ['--reporter=dot', '--reporter=json', `--outputFile.json=${report}`];
    const exitCode = await runInView(join(bin, 'vitest'), ['run', ...filter, ...reporters], {
      limit_ms: UNIT_LIMIT_MS,
      signal,
    });
    const duration_ms = Date.now() - started;
    if (!existsSync(report)) return [{ name: 'unit tests', passed: 0, failed: 1, duration_ms }];
    const parsed = vitestSchema.parse(JSON.parse(readFileSync(report, 'utf8')));
    // A file that cannot be loaded holds no failed test, but its tests did not pass.
    const failed = Math.max(parsed.numFailedTests, exitCode === 0 && parsed.success ? 0 : 1);
    return [{ name: 'unit tests', passed: parsed.numPassedTests, failed, duration_ms }];
  });
}

function rank(file: string): number {
  const at = LONGEST.findIndex((each) => file.startsWith(each));
  return at < 0 ? LONGEST.length : at;
}

/**
 * Each file gets a fresh lab: what one leaves behind must not decide about another. Most of a test's time is waiting, so
 * two files run at once, each in a lab of its own; those that measure run alone, at the end.
 */
export async function runEndToEnd(pattern: string, signal: AbortSignal): Promise<Outcome[]> {
  const files = readdirSync(join(root, 'test', 'e2e'))
    .filter((file) => file.endsWith('.e2e.ts') && file.includes(pattern))
    .sort();
  if (files.length === 0) {
    throw new UmsError('UMS_E_USAGE', { message: `No end-to-end test is named like "${pattern}"`, fault: 'user' });
  }
  // What is missing is installed and built once, outside of any test's time.
  await installPrerequisites(say);
  await buildRootFileSystem(say);
  if (files.some((file) => file.includes('kubernetes'))) await buildKubernetes(say);
  const name = process.env['UMS_LAB'] ?? 'test';
  const together = files.filter((file) => !MEASURING.test(file)).toSorted((a, b) => rank(a) - rank(b));
  const alone = files.filter((file) => MEASURING.test(file));
  const lanes = Math.min(LANES, together.length);
  const outcomes = await Promise.all(
    Array.from({ length: lanes }, (_, lane) => inLab(`${name}-${lane + 1}`, together, lanes > 1, signal)),
  );
  const last = await inLab(`${name}-1`, alone, false, signal);
  return [...outcomes.flat(), ...last].sort((left, right) => files.indexOf(left.name) - files.indexOf(right.name));
}

/** Takes file after file off the list, which lanes share, and runs it in the lab of that name. */
async function inLab(name: string, files: string[], quiet: boolean, signal: AbortSignal): Promise<Outcome[]> {
  const lab = Lab.open(name, say);
  const outcomes: Outcome[] = [];
  let file = files.shift();
  if (file === undefined) return outcomes;
  try {
    while (file !== undefined && !signal.aborted) {
      await lab.down();
      outcomes.push(await runFile(file, lab, quiet, signal));
      file = files.shift();
    }
  } finally {
    await lab.down();
  }
  return outcomes;
}

async function runFile(file: string, lab: Lab, quiet: boolean, signal: AbortSignal): Promise<Outcome> {
  return inWorkspace(async (directory) => {
    const started = Date.now();
    say(`Running ${file}`);
    const tap = join(directory, 'report.tap');
    const output = join(directory, 'output');
    const reporters = [
      '--test-reporter=spec',
      '--test-reporter-destination=stderr',
      '--test-reporter=tap',
      `--test-reporter-destination=${tap}`,
    ];
    const node = ['--disable-warning=ExperimentalWarning', '--test', '--test-concurrency=1'];
    const fd = quiet ? openSync(output, 'w') : 2;
    const how = { limit_ms: E2E_FILE_LIMIT_MS, signal, env: { UMS_LAB: lab.name }, output: fd };
    const exitCode = await runInView(process.execPath, [...node, ...reporters, join('test', 'e2e', file)], how);
    if (quiet) {
      closeSync(fd);
      say(`${file}:\n${readFileSync(output, 'utf8')}`);
    }
    const report = existsSync(tap) ? readFileSync(tap, 'utf8') : '';
    const counts = countTap(report);
    const failed = exitCode === 0 ? counts.failed : Math.max(1, counts.failed);
    if (failed > 0) keepLogs(file, lab, report);
    return {
      name: file,
      passed: counts.passed,
      failed,
      duration_ms: Date.now() - started,
      failures: failuresInTap(report),
    };
  });
}

/** The counts at the end of a TAP report. Cancelled, skipped and to-do tests did not pass either. */
export function countTap(text: string): { passed: number; failed: number } {
  const count = (name: string): number => Number(new RegExp(`^# ${name} (\\d+)$`, 'm').exec(text)?.[1] ?? 0);
  return { passed: count('pass'), failed: count('fail') + count('cancelled') + count('skipped') + count('todo') };
}

const FAILURES_LIMIT = 20;
const FAILURE_LINE_LIMIT = 300;

/** "name: first line of the error" for each test that failed by itself, not because one inside of it did. */
export function failuresInTap(text: string): string[] {
  const found: string[] = [];
  const reports = text.matchAll(/^ *not ok \d+ - (.*)\n(?: *---\n)?((?: {2,}.*\n)*?) *\.\.\.$/gm);
  for (const [, name = '', details = ''] of reports) {
    if (/^ *failureType: 'subtestsFailed'$/m.test(details)) continue;
    const error = /^ *error: (?:\|-\n)? *'?(.*?)'?$/m.exec(details)?.[1] ?? '';
    found.push(`${name}: ${error}`.slice(0, FAILURE_LINE_LIMIT));
  }
  return found.slice(0, FAILURES_LIMIT);
}

/** What failed is told once, and may be wanted later; the hosts are gone by then. */
function keepLogs(file: string, lab: Lab, report: string): void {
  const kept = join(cacheDir(), 'test-logs', basename(file, '.e2e.ts'));
  rmSync(kept, { recursive: true, force: true });
  mkdirSync(kept, { recursive: true });
  writeFileSync(join(kept, 'report.tap'), report);
  if (!existsSync(lab.paths.root)) return;
  const hosts = readdirSync(lab.paths.root).filter((name) => !name.startsWith('.'));
  for (const host of hosts) {
    const logs = join(lab.paths.root, host, 'log');
    if (existsSync(logs)) cpSync(logs, join(kept, host), { recursive: true });
  }
  say(`The report and the hosts' logs are kept in ${kept}`);
}

async function inWorkspace<T>(work: (directory: string) => Promise<T>): Promise<T> {
  const directory = mkdtempSync(join(tmpdir(), 'ums-test-'));
  try {
    return await work(directory);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

interface InView {
  limit_ms: number;
  signal: AbortSignal;
  env?: Record<string, string>;
  /** Descriptor for both its outputs; without it, the person watches them on standard error as they come. */
  output?: number;
}

async function runInView(command: string, args: readonly string[], how: InView): Promise<number> {
  const output = how.output ?? 2;
  const env = { ...process.env, ...toolEnv(), ...how.env };
  const child = spawn(command, args, { cwd: root, env, stdio: ['ignore', output, output] });
  const end = (reason: string): void => {
    say(`Ending ${basename(command)}: ${reason}`);
    child.kill('SIGTERM');
    setTimeout(() => child.kill('SIGKILL'), KILL_AFTER_MS).unref();
  };
  const timer = setTimeout(() => end(`it ran longer than ${how.limit_ms / 1000} s`), how.limit_ms);
  const onAbort = (): void => end('interrupted');
  how.signal.addEventListener('abort', onAbort, { once: true });
  try {
    const [code] = await once(child, 'exit');
    return typeof code === 'number' ? code : 1;
  } catch (error) {
    throw toUmsError(error);
  } finally {
    clearTimeout(timer);
    how.signal.removeEventListener('abort', onAbort);
  }
}

export function summaryLines(outcomes: readonly Outcome[]): string[] {
  const width = Math.max(...outcomes.map((outcome) => outcome.name.length), 0);
  return outcomes.flatMap(({ name, passed, failed, duration_ms, failures = [] }) => {
    const verdict = failed > 0 ? 'FAIL' : 'ok';
    const seconds = (duration_ms / 1000).toFixed(1);
    const line = `${verdict.padEnd(4)} ${name.padEnd(width)} ${String(passed).padStart(5)} passed ${String(failed).padStart(3)} failed ${seconds.padStart(7)} s`;
    return [line, ...failures.map((failure) => `       ${failure}`)];
  });
}

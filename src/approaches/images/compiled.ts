import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { run } from '#src/telemetry/exec.ts';

/**
 * Node's cache of compiled programs, made along with an image: without it the start of an agent spends most of its time on
 * reading TypeScript and compiling, each time anew, because a container begins with what its image has. Portable: Node
 * then names programs by their way from the cache, so that it may be made elsewhere than it is used (Node's documentation
 * of `module.enableCompileCache`).
 */
const LIMIT_MS = 120_000;
const OF_COMMAND_LINE = ['src/cli/program.ts'];
const OF_AGENT = ['src/agent/agent.ts', ...OF_COMMAND_LINE];
const COMMAND_LINE_FLAGS = ['--disable-warning=ExperimentalWarning'];

/** What must be in the environment of a Node that shall use the cache. */
export function compiledEnvironment(directory: string): Record<string, string> {
  return { NODE_COMPILE_CACHE: directory, NODE_COMPILE_CACHE_PORTABLE: '1' };
}

/** The same for a shell, as words of `export`. */
export function compiledExports(directory: string): string {
  return Object.entries(compiledEnvironment(directory))
    .map(([name, value]) => `${name}=${value}`)
    .join(' ');
}

/**
 * Fills `directory`, which is to lie beside the copy of ums in `app`, for an agent with these flags and for command lines;
 * `more` are modules that these have in common beyond ums's own, none of which may do anything by being loaded.
 */
export async function compileAhead(
  app: string,
  directory: string,
  agentFlags: readonly string[],
  more: readonly string[] = [],
): Promise<void> {
  // What V8 compiles under other flags it does not take.
  for (const [flags, modules] of [
    [agentFlags, OF_AGENT],
    [COMMAND_LINE_FLAGS, [...OF_COMMAND_LINE, ...more]],
  ] as const) {
    const urls = modules.map((path) => pathToFileURL(join(app, path)).href);
    const script = `for (const url of ${JSON.stringify(urls)}) await import(url);`;
    const args = [...flags, '--input-type=module', '--eval', script];
    await run(process.execPath, args, { timeout_ms: LIMIT_MS, env: compiledEnvironment(directory) });
  }
}

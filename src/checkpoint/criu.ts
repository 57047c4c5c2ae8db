import { run } from '#src/telemetry/exec.ts';

/** CRIU's version as it says it, `4.2.1`; undefined when there is no CRIU that starts. */
let cached: string | undefined;

export async function criuVersion(): Promise<string | undefined> {
  if (cached !== undefined) return cached;
  try {
    const { stdout } = await run('criu', ['--version'], { timeout_ms: 10_000 });
    cached = /^Version:\s*(\S+)/m.exec(stdout)?.[1];
  } catch {
    // Whoever asks reports the absence in their own words.
    return undefined;
  }
  return cached;
}

/** Compares dotted versions number by number; an unknown version is older than any. */
export function versionAtLeast(version: string | undefined, wanted: string): boolean {
  if (version === undefined) return false;
  const have = numbers(version);
  for (const [index, want] of numbers(wanted).entries()) {
    const part = have[index] ?? 0;
    if (part !== want) return part > want;
  }
  return true;
}

function numbers(version: string): number[] {
  return (/^\d+(\.\d+)*/.exec(version)?.[0] ?? '0').split('.').map(Number);
}

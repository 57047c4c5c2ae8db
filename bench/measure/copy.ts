import { once } from 'node:events';
import { setTimeout as delay } from 'node:timers/promises';
import type { Host } from '#lab/host.ts';
import { UmsError } from '#src/telemetry/errors.ts';

/**
 * How the baseline's archive travels: plain HTTP from busybox httpd to curl, over the lab's link. It has no encryption
 * and its server runs beforehand, so ssh or rsync could only be slower: what it costs speaks for the baseline.
 */
const PORT = 9009;
const DIRECTORY = '/srv';
const COPY_LIMIT_MS = 300_000;
const START_LIMIT_MS = 5000;

export interface FileServer {
  stop(): Promise<void>;
}

export async function serveFiles(host: Host): Promise<FileServer> {
  const child = host.spawn('busybox', ['httpd', '-f', '-p', String(PORT), '-h', DIRECTORY], { stdio: 'ignore' });
  const gone = once(child, 'exit');
  const limit = Date.now() + START_LIMIT_MS;
  for (;;) {
    const { exitCode } = await host.exec('curl', ['--silent', '--output', '/dev/null', `http://127.0.0.1:${PORT}/`], {
      okExitCodes: Array.from({ length: 100 }, (_, code) => code),
    });
    if (exitCode === 0) break;
    if (child.exitCode !== null || Date.now() > limit) {
      throw new UmsError('UMS_E_LAB', { message: `No file server starts on ${host.name}.`, fault: 'ums' });
    }
    await delay(10);
  }
  return {
    stop: async () => {
      child.kill('SIGTERM');
      await gone;
    },
  };
}

export async function fetchFile(from: Host, to: Host, path: string): Promise<void> {
  const url = `http://${from.address}:${PORT}/${path.slice(DIRECTORY.length + 1)}`;
  await to.exec('curl', ['--fail', '--silent', '--show-error', '--output', path, url], { timeout_ms: COPY_LIMIT_MS });
}

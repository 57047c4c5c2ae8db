import { spawn } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Duplex } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { criuErrorLines } from '#src/checkpoint/errors.ts';
import { UmsError } from '#src/telemetry/errors.ts';

/**
 * The destination's end of the page path: CRIU's own page server, reading from a socket pair instead of the network,
 * writes pages-*.img and pagemap-*.img into the images directory as they arrive. Resolves when it has everything;
 * a stream that ends too early makes the page server, and so this, fail.
 */
export async function receivePages(stream: Duplex, imagesDir: string, workDir: string): Promise<void> {
  // Output goes to a file: the child must not die of a broken pipe if this agent does.
  const output = openSync(join(workDir, 'page-server.out'), 'a');
  const child = spawn(
    'criu',
    // `pipe` at descriptor 3 is a socket pair, which is what --ps-socket wants.
    [
      'page-server',
      '--images-dir',
      imagesDir,
      '--work-dir',
      workDir,
      '--ps-socket',
      '3',
      '-o',
      'page-server.log',
      '-v2',
    ],
    { stdio: ['ignore', output, output, 'pipe'] },
  );
  closeSync(output);
  const exit = new Promise<number | string>((resolve) => {
    child.once('error', (error) => resolve(error.message));
    child.once('exit', (code, signal) => resolve(code ?? signal ?? 'unknown'));
  });
  const socket = child.stdio[3];
  if (!(socket instanceof Duplex)) throw pageError('its socket could not be made', '');
  // Whether the bytes arrived is the page server's to say: it knows its protocol's end from a cut.
  const broken: string[] = [];
  const note = (error: unknown) => broken.push(error instanceof Error ? error.message : String(error));
  pipeline(stream, socket, { end: true }).catch(note);
  pipeline(socket, stream, { end: true }).catch(note);
  const code = await exit;
  socket.destroy();
  if (code === 0) return;
  stream.destroy();
  const lines = criuErrorLines(await readLog(join(workDir, 'page-server.log')));
  throw pageError(lines[0] ?? broken[0] ?? `exit ${code}`, lines.join('\n'));
}

async function readLog(path: string): Promise<string> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    return `(no log: ${error instanceof Error ? error.message : String(error)})`;
  }
}

function pageError(reason: string, detail: string): UmsError {
  const full = /No space left on device|ENOSPC/.test(`${reason}\n${detail}`);
  return new UmsError(full ? 'UMS_E_NO_ROOM' : 'UMS_E_TRANSFER', {
    message: `The destination could not receive memory pages: ${reason}.`,
    fault: 'destination',
    mend: 'See the detail; free memory at the destination if it ran out.',
    ...(detail === '' ? {} : { detail }),
  });
}

import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { setTimeout as delay } from 'node:timers/promises';
import type { Host } from '#lab/host.ts';
import { UmsError } from '#src/telemetry/errors.ts';

/** rsync over ssh between two lab hosts, set up beforehand as an operator would have it. */
const PORT = 2222;
const AREA = '/run/bench-ssh';
const START_LIMIT_MS = 10_000;
const COPY_LIMIT_MS = 900_000;
const KEYS = `
mkdir -p ${AREA} /run/sshd
chmod 700 ${AREA}
[ -e ${AREA}/key ] || ssh-keygen -q -t ed25519 -N '' -f ${AREA}/key
[ -e ${AREA}/host ] || ssh-keygen -q -t ed25519 -N '' -f ${AREA}/host
`;
const SSH = [
  `ssh -p ${PORT} -i ${AREA}/key`,
  '-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR',
].join(' ');

export class Rsync {
  readonly #from: Host;
  readonly #to: Host;
  readonly #daemon: ChildProcess;

  private constructor(from: Host, to: Host, daemon: ChildProcess) {
    this.#from = from;
    this.#to = to;
    this.#daemon = daemon;
  }

  static async open(from: Host, to: Host): Promise<Rsync> {
    for (const host of [from, to]) await host.exec('sh', ['-ec', KEYS]);
    to.writeFile(`${AREA}/authorized`, from.readFile(`${AREA}/key.pub`));
    const settings = ['UsePAM=no', 'StrictModes=no', 'PidFile=none', `AuthorizedKeysFile=${AREA}/authorized`];
    const args = ['-D', '-e', '-f', '/dev/null', '-h', `${AREA}/host`, '-p', String(PORT)];
    const options = settings.flatMap((setting) => ['-o', setting]);
    const daemon = to.spawn('/usr/sbin/sshd', [...args, ...options], { stdio: 'ignore' });
    const opened = new Rsync(from, to, daemon);
    try {
      await opened.#answers();
      return opened;
    } catch (thrown) {
      await opened.close();
      throw thrown;
    }
  }

  async #answers(): Promise<void> {
    const limit = Date.now() + START_LIMIT_MS;
    const args = ['-c', `exec ${SSH} root@${this.#to.address} true`];
    for (;;) {
      const { exitCode, stderr } = await this.#from.exec('sh', args, { okExitCodes: [0, 255] });
      if (exitCode === 0) return;
      if (this.#daemon.exitCode !== null || Date.now() > limit) {
        const message = `ssh does not reach ${this.#to.name}: ${stderr.trim()}`;
        throw new UmsError('UMS_E_LAB', { message, fault: 'ums' });
      }
      await delay(50);
    }
  }

  /** Copies files and directories to the same places on the other host. */
  async copy(paths: readonly string[]): Promise<void> {
    const args = ['--archive', '--whole-file', '--relative', '--rsh', SSH];
    const limit = { timeout_ms: COPY_LIMIT_MS };
    await this.#from.exec('rsync', [...args, ...paths, `root@${this.#to.address}:/`], limit);
  }

  async close(): Promise<void> {
    if (this.#daemon.exitCode !== null || this.#daemon.signalCode !== null) return;
    const gone = once(this.#daemon, 'exit');
    this.#daemon.kill('SIGTERM');
    await gone;
  }
}

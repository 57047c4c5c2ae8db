import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, mkdirSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { UmsError } from '#src/telemetry/errors.ts';
import type { Say } from '../say.ts';
import { type MachineDisks, prepareDisks } from './prepare.ts';

/**
 * A virtual machine with a stock kernel, emulated without any help of the processor's, so that it runs wherever Node
 * runs: for what this machine's kernel does not have. Its root is that of the test hosts, with this checkout; it has no
 * network and writes to no disk.
 */
const BOOT_LIMIT_MS = 180_000;
const STOP_LIMIT_MS = 10_000;
const CONNECT_POLL_MS = 50;
const MEMORY_MIB = 3072;
const PROCESSORS = 2;
const OUTPUT_BYTES_MAX = 8 * 1024 * 1024;
/** `-cpu max` has been seen to crash. */
const PROCESSOR = 'Skylake-Server-v1';
const KERNEL_ARGUMENTS = 'console=ttyS0 quiet panic=-1 mitigations=off nowatchdog random.trust_cpu=on cgroup_no_v1=all';
const SEPARATOR = '\u001e';

export interface GuestResult {
  exitCode: number;
  output: string;
}

export class Machine {
  readonly #directory: string;
  readonly #process: ChildProcess;
  readonly #line: Socket;
  readonly #say: Say;
  #received = '';
  #wake: () => void = () => undefined;
  #commands = 0;
  #ended = false;

  private constructor(directory: string, process: ChildProcess, line: Socket, say: Say) {
    this.#directory = directory;
    this.#process = process;
    this.#line = line;
    this.#say = say;
    line.setEncoding('utf8');
    line.on('data', (text: string) => {
      this.#received += text;
      this.#wake();
    });
    line.on('error', () => undefined);
    line.on('close', () => {
      this.#ended = true;
      this.#wake();
    });
  }

  static async boot(say: Say): Promise<Machine> {
    const disks = await prepareDisks(say);
    const directory = mkdtempSync(join(tmpdir(), 'ums-vm-'));
    const socketPath = join(directory, 'line.sock');
    const process = start(directory, socketPath, disks);
    try {
      const line = await connected(socketPath, process);
      const machine = new Machine(directory, process, line, say);
      await machine.#answer('ready', BOOT_LIMIT_MS);
      return machine;
    } catch (error) {
      process.kill('SIGKILL');
      const detail = readFileSync(join(directory, 'console.log'), 'utf8').slice(-4000);
      rmSync(directory, { recursive: true, force: true });
      throw new UmsError('UMS_E_LAB', {
        message: 'The virtual machine did not boot',
        fault: 'ums',
        cause: error,
        detail,
      });
    }
  }

  /** What the kernel said. */
  get console(): string {
    return readFileSync(join(this.#directory, 'console.log'), 'utf8');
  }

  /** Runs a shell script in the machine, in the checkout. Whatever it prints is also said. */
  async run(script: string, limit_ms: number): Promise<GuestResult> {
    this.#commands += 1;
    const number = String(this.#commands);
    this.#received = '';
    this.#line.write(`${number} ${Buffer.from(script).toString('base64')}\n`);
    const { code, output } = await this.#answer(number, limit_ms);
    if (output.trim() !== '') this.#say(output.trimEnd());
    return { exitCode: Number(code), output };
  }

  async #answer(number: string, limit_ms: number): Promise<{ code: string; output: string }> {
    const limit = Date.now() + limit_ms;
    const pattern = new RegExp(`${SEPARATOR}${number} (\\d+)\\r?\\n`);
    for (;;) {
      const match = pattern.exec(this.#received);
      if (match !== null) return { code: match[1] ?? '', output: this.#received.slice(0, match.index) };
      const rest = limit - Date.now();
      if (this.#ended || rest <= 0 || this.#received.length > OUTPUT_BYTES_MAX) {
        const why = this.#ended ? 'ended' : rest <= 0 ? `did not answer within ${limit_ms / 1000} s` : 'said too much';
        throw new UmsError('UMS_E_LAB', {
          message: `The virtual machine ${why}`,
          fault: 'ums',
          detail: `${this.#received.slice(-4000)}\n${this.console.slice(-2000)}`,
        });
      }
      const woken = new Promise<void>((resolve) => (this.#wake = resolve));
      await Promise.race([woken, sleep(Math.min(rest, 1000))]);
    }
  }

  async stop(): Promise<void> {
    if (this.#process.exitCode === null && this.#process.signalCode === null) {
      const exited = once(this.#process, 'exit');
      this.#line.write('end\n');
      const graceful = await Promise.race([exited.then(() => true), sleep(STOP_LIMIT_MS).then(() => false)]);
      if (!graceful) {
        this.#process.kill('SIGKILL');
        await exited;
      }
    }
    this.#line.destroy();
    rmSync(this.#directory, { recursive: true, force: true });
  }
}

function start(directory: string, socketPath: string, disks: MachineDisks): ChildProcess {
  mkdirSync(directory, { recursive: true });
  writeFileSync(join(directory, 'initrd'), disks.initrd);
  const drives = disks.images.flatMap((image) => [
    '-drive',
    `file=${image},if=virtio,format=raw,readonly=on,cache=unsafe`,
  ]);
  const flags = [
    '-machine q35 -nodefaults -no-user-config -display none -no-reboot -nic none',
    `-accel tcg,thread=multi -cpu ${PROCESSOR} -smp ${PROCESSORS} -m ${MEMORY_MIB}M`,
    `-kernel ${disks.kernel} -initrd ${join(directory, 'initrd')}`,
    `-serial file:${join(directory, 'console.log')}`,
    `-chardev socket,id=line,path=${socketPath},server=on,wait=off -serial chardev:line`,
  ].flatMap((row) => row.split(' '));
  const args = [...flags, '-append', KERNEL_ARGUMENTS, ...drives];
  const { qemu } = disks;
  const log = openSync(join(directory, 'qemu.log'), 'w');
  // It ends when this process does, however that ends.
  const child = spawn('setpriv', ['--pdeathsig', 'KILL', qemu.command, ...qemu.args, ...args], {
    env: { ...process.env, ...qemu.env },
    stdio: ['ignore', log, log],
  });
  closeSync(log);
  return child;
}

async function connected(path: string, child: ChildProcess): Promise<Socket> {
  const limit = Date.now() + BOOT_LIMIT_MS;
  while (Date.now() < limit && child.exitCode === null) {
    const socket = connect(path);
    const up = await Promise.race([
      once(socket, 'connect').then(() => true),
      once(socket, 'error').then(() => false),
    ]).catch(() => false);
    if (up) return socket;
    socket.destroy();
    await sleep(CONNECT_POLL_MS);
  }
  throw new Error('qemu ended or does not listen');
}

import { z } from 'zod';
import { lines, PROGRAM, Side } from './conformance-side.ts';

const IMAGE = 'localhost/memhog:latest';
const infoSchema = z.object({ Labels: z.record(z.string(), z.string()) });

export class ContainerdSide extends Side {
  async startService(name: string): Promise<void> {
    // The hosts' control groups have no controller for shares of the processor.
    const options = ['--env', 'A=b c', '--cpu-shares', '0', '--label', 'purpose=conformance'];
    await this.host.exec('ctr', ['run', '--detach', ...options, IMAGE, name, ...PROGRAM]);
    // Not before it runs: between its making and its start the restart monitor would find it to be down, and end it.
    await this.host.exec('ctr', ['containers', 'label', name, 'containerd.io/restart.status=running']);
    await this.runs(name);
  }

  async makeForeign(name: string): Promise<void> {
    await this.host.exec('ctr', ['containers', 'create', '--label', 'owner=somebody', IMAGE, name, 'true']);
  }

  async foreignIsUntouched(name: string): Promise<boolean> {
    const { stdout } = await this.host.exec('ctr', ['containers', 'info', name]);
    const [tasks = '0'] = await lines(this.host, 'ctr tasks ls --quiet | grep -cx "$1" || true', name);
    const [snapshots = '0'] = await lines(this.host, 'ctr snapshots ls | grep -c "^$1 " || true', name);
    return infoSchema.parse(JSON.parse(stdout)).Labels['owner'] === 'somebody' && tasks === '0' && snapshots === '1';
  }

  async removeForeign(name: string): Promise<void> {
    await this.removeBehindDriver(name);
  }

  async removeBehindDriver(name: string): Promise<void> {
    await lines(
      this.host,
      `ctr containers label "$1" containerd.io/restart.status= >/dev/null 2>&1
      ctr tasks rm --force "$1" >/dev/null 2>&1
      ctr containers rm "$1" >/dev/null 2>&1; true`,
      name,
    );
  }

  async remains(name: string): Promise<string[]> {
    return await lines(
      this.host,
      `ctr containers ls --quiet | grep -x "$1"; ctr tasks ls --quiet | grep -x "$1"
      ctr snapshots ls | grep "^$1 "; ctr leases ls --quiet
      find /run/ums-conformance/containerd -mindepth 2 -maxdepth 2 ! -name .runc 2>/dev/null
      find /var/lib/ums-conformance/created -type f 2>/dev/null
      ls -d /run/containerd/runc/default/"$1" /sys/fs/cgroup/default/"$1" /run/containerd/fifo/*/"$1"-* 2>/dev/null
      ls -d /run/containerd/io.containerd.runtime.v2.task/default/"$1" 2>/dev/null
      ps -eo args | grep "^/usr/bin/containerd-shim.* -id $1 "; true`,
      name,
    );
  }
}

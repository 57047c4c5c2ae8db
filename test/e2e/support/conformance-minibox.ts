import { lines, PROGRAM, Side } from './conformance-side.ts';

const MINIBOX = '/opt/ums/app/test/e2e/support/minibox/minibox.sh';
const ROOTFS = '/opt/bundles/memhog/rootfs';

export class MiniboxSide extends Side {
  async startService(name: string): Promise<void> {
    await this.host.exec(MINIBOX, ['run', '--env', 'A=b c', name, ROOTFS, ...PROGRAM]);
    await this.runs(name);
  }

  async makeForeign(name: string): Promise<void> {
    await this.host.exec(MINIBOX, ['create', '--env', 'OWNER=somebody', name, '-', 'true']);
  }

  async foreignIsUntouched(name: string): Promise<boolean> {
    const script = `minibox=$2; $minibox ls | cut -f 2,3 | grep "^$1[[:space:]]"; tr '\\0' ' ' <"/srv/minibox/$1/env"; echo
      cat "/srv/minibox/$1/command" | tr '\\0' ' '; echo; ls -A "/srv/minibox/$1/rootfs"`;
    const seen = await lines(this.host, script, name, MINIBOX);
    return seen.join('|') === `${name}\tcreated|OWNER=somebody |true `;
  }

  async removeForeign(name: string): Promise<void> {
    await this.removeBehindDriver(name);
  }

  async removeBehindDriver(name: string): Promise<void> {
    await lines(
      this.host,
      `group=/sys/fs/cgroup/minibox/$1
      if [ -d "$group" ]; then
        echo 1 >"$group/cgroup.kill"
        until grep -qx "populated 0" "$group/cgroup.events"; do sleep 0.01; done
        rmdir "$group"
      fi
      rm -rf "/srv/minibox/$1"`,
      name,
    );
  }

  async remains(name: string): Promise<string[]> {
    return await lines(
      this.host,
      `ls -A /srv/minibox 2>/dev/null | grep -F -e "$1" -e .new-; ls -d "/sys/fs/cgroup/minibox/$1" 2>/dev/null
      for id in $(ls /run/ums-conformance/restore 2>/dev/null); do echo "restore $id"; done
      find /var/lib/ums-conformance/created -type f 2>/dev/null; grep "/srv/minibox" /proc/mounts
      ps -eo args | grep -e "minibox[.]sh" -e "^criu "; true`,
      name,
    );
  }
}

#!/bin/sh
# The virtual machine's first process after early.sh. Makes of it what a test host's machine is, then runs the commands
# that come in on the second serial line: one line each, "NUMBER BASE64-OF-A-SCRIPT"; after the script's output comes a
# record separator, the number and the exit code.
export PATH=/opt/ums/packages/node/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
# Emulated, compiling a program again and again is what takes longest.
export NODE_COMPILE_CACHE=/opt/ums/compiled NODE_COMPILE_CACHE_PORTABLE=1
mount -t proc -o nosuid,nodev,noexec proc /proc
mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 /sys/fs/cgroup
mkdir -p /dev/pts /dev/shm /dev/mqueue
mount -t devpts -o mode=620,gid=5 devpts /dev/pts
mount -t tmpfs -o nosuid,nodev,mode=1777 tmpfs /dev/shm
mount -t mqueue mqueue /dev/mqueue
mount -t tmpfs -o nosuid,nodev,mode=755 tmpfs /run
mount -t tmpfs -o nosuid,nodev,mode=1777 tmpfs /tmp
mkdir -p /var/lib/ums-lab /run/lock /run/netns
# Not on the root's overlay: a lab host's own overlay needs another file system beneath.
mount -t tmpfs -o mode=755 tmpfs /var/lib/ums-lab
modprobe -a veth bridge tun vxlan fuse nf_tables nft_compat nft_chain_nat nft_nat nft_ct nft_reject_inet \
  inet_diag tcp_diag udp_diag raw_diag unix_diag netlink_diag af_packet_diag sch_tbf sch_netem
ip link set lo up
hostname ums-vm

mount -t ext4 -o ro,noload /dev/vdb /opt/ums/packages
# Where the lab's hosts have them: what was compiled ahead is found by its way from there, with no links on it.
mkdir -p /opt/ums/node_modules
mount --bind /opt/ums/packages/node_modules /opt/ums/node_modules
ln -sfn /opt/ums/node_modules /opt/ums/app/node_modules
mv /opt/ums/app/compiled /opt/ums/compiled
mkdir -p /var/cache/ums
ln -sfn /opt/ums/compiled /var/cache/ums/compile
# The layers of the lab's root file system, under the names that this checkout gives them (names.env).
. /opt/ums/app/lab/vm/names.env
export PATH="$PATH:/var/cache/ums/rootfs/$WORK/usr/local/bin"
mkdir -p "/var/cache/ums/rootfs/$BASE" "/var/cache/ums/rootfs/$WORK" "/var/cache/ums/rootfs/$TOOLS"
mount -t ext4 -o ro,noload /dev/vda "/var/cache/ums/rootfs/$BASE"
mount -t ext4 -o ro,noload /dev/vdc "/var/cache/ums/rootfs/$WORK"
mount --bind /opt/ums/app/lab/vm/tools "/var/cache/ums/rootfs/$TOOLS"

exec 3<>/dev/ttyS1
stty raw -echo <&3
printf '\036ready 0\n' >&3
while read -r number script <&3; do
  [ "$number" = end ] && break
  printf %s "$script" | base64 -d >/run/command.sh
  (cd /opt/ums/app && exec sh /run/command.sh </dev/null >&3 2>&1)
  printf '\036%s %s\n' "$number" "$?" >&3
done
sync
echo o >/proc/sysrq-trigger
exec sleep infinity

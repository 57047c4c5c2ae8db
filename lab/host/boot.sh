#!/bin/sh
# Boots a test host. It runs as the first process of fresh mount, pid, network, UTS, IPC and cgroup namespaces, already
# in the host's cgroup, builds the host's file tree, makes it the root and becomes the host's reaper.
#
# pivot_root and not chroot: CRIU refuses to dump what runs under a chroot ("No parent found for mountpoint").
# All mounts are made in the host's own namespace, so they end with its processes and never show on the machine.
#
#   boot.sh NAME DISK LOWER APP MODULES NODE KUBERNETES COMPILED
#     DISK     directory on the machine that survives a restart: upper, work, containers, docker, containerd, ums, srv, api
#     LOWER    lower directories of the root's overlay, colon-separated
#     APP      the checkout, seen read-only at /opt/ums/app
#     MODULES  its node_modules, seen read-only at /opt/ums/node_modules
#     NODE     the node binary, seen at /opt/ums/node/bin/node
#     KUBERNETES  directory on the machine with the programs of Kubernetes, seen read-only at /opt/kubernetes
#     COMPILED directory on the machine where node keeps what it has compiled, seen at /opt/ums/compiled
set -eu
name=$1 disk=$2 lower=$3 app=$4 modules=$5 node=$6 kubernetes=$7 compiled=$8

mount --make-rprivate /
root=$disk/root
mount -t overlay overlay -o "lowerdir=$lower,upperdir=$disk/upper,workdir=$disk/work" "$root"

# A directory on an overlay cannot be the upper directory of another overlay, which is what engines need.
for pair in containers:/var/lib/containers docker:/var/lib/docker containerd:/var/lib/containerd \
  kubelet:/var/lib/kubelet ums:/var/lib/ums srv:/srv; do
  mkdir -p "$root${pair#*:}"
  mount --bind "$disk/${pair%%:*}" "$root${pair#*:}"
done

mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount -t sysfs -o nosuid,nodev,noexec sysfs "$root/sys"
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o nosuid,nodev,mode=755 tmpfs "$root/run"
mount -t tmpfs -o nosuid,nodev,mode=1777 tmpfs "$root/tmp"
mkdir -p "$root/run/ums/api" "$root/run/lock"
mount --bind "$disk/api" "$root/run/ums/api"

mount -t tmpfs -o nosuid,mode=755 tmpfs "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm" "$root/dev/net" "$root/dev/mqueue"
for device in null zero full random urandom tty kmsg fuse net/tun; do
  [ -e "/dev/$device" ] || continue
  : >"$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$root/dev/pts"
mount -t tmpfs -o nosuid,nodev,mode=1777 tmpfs "$root/dev/shm"
mount -t mqueue mqueue "$root/dev/mqueue"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
ln -s /proc/self/fd/0 "$root/dev/stdin"
ln -s /proc/self/fd/1 "$root/dev/stdout"
ln -s /proc/self/fd/2 "$root/dev/stderr"

mkdir -p "$root/opt/ums/app" "$root/opt/ums/node_modules" "$root/opt/ums/node/bin" "$root/opt/ums/compiled"
mount --bind "$app" "$root/opt/ums/app"
mount -o remount,bind,ro "$root/opt/ums/app"
mount --bind "$modules" "$root/opt/ums/node_modules"
mount -o remount,bind,ro "$root/opt/ums/node_modules"
: >"$root/opt/ums/node/bin/node"
mount --bind "$node" "$root/opt/ums/node/bin/node"
mount -o remount,bind,ro "$root/opt/ums/node/bin/node"
mount --bind "$compiled" "$root/opt/ums/compiled"

mkdir -p "$root/opt/kubernetes"
mount --bind "$kubernetes" "$root/opt/kubernetes"
mount -o remount,bind,ro "$root/opt/kubernetes"

cd "$root"
mkdir -p .old
pivot_root . .old
umount -l /.old
rmdir /.old
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root

hostname "$name"
echo "$name" >/etc/hostname
# The root of a cgroup tree that has children may hold no processes, or its controllers could not be handed down.
mkdir -p /sys/fs/cgroup/init /sys/fs/cgroup/agent
echo 0 >/sys/fs/cgroup/init/cgroup.procs
sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.disable_ipv6=0
ip link set lo up
exec tini -s -- sleep infinity

#!/bin/sh
# Runs one step of receiving a tree where nothing but that tree can be written:
#
#   unshare --mount --net --ipc --pid --fork --kill-child sh confine.sh TARGET apply|empty|extract [program, tar's options]
#
# The root directory becomes an empty file system in memory with the system's programs (read-only) and TARGET at /tree,
# so that no name, symbolic link or hard link in the tree or in the stream leads anywhere else. All mounts are of this
# process's own namespace and vanish with it; killing the first process of its pid namespace ends all others.
set -eu
LC_ALL=C
PATH=/usr/sbin:/usr/bin:/sbin:/bin
export LC_ALL PATH
umask 077
# Four GiB of address space: far above what tar needs for five million entries, far below harm.
ulimit -v 4194304

target=$1
step=$2
shift 2
cd -- "$target"

# /sys is a directory on every host, nothing of ours lies below it, and only this namespace sees it covered.
mount -t tmpfs -o size=512m,mode=0755,nosuid,nodev ums-confine /sys
mkdir /sys/tree /sys/proc
# --no-canonicalize: "." stays the directory entered above, even if its path is covered or replaced by now.
mount --no-canonicalize --bind . /sys/tree
mount -o remount,bind,rw,nosuid,nodev,noexec /sys/tree
for directory in usr bin sbin lib lib32 lib64 libx32; do
  if [ -L "/$directory" ]; then
    cp -P "/$directory" "/sys/$directory"
  elif [ -d "/$directory" ]; then
    mkdir "/sys/$directory"
    mount --bind "/$directory" "/sys/$directory"
    mount -o remount,bind,ro,nosuid,nodev "/sys/$directory"
  fi
done
# The C library and tar reach files without following links through /proc/self/fd; nothing else is shown of it.
mount -t proc -o ro,nosuid,nodev,noexec,subset=pid proc /sys/proc
cd /sys
pivot_root . .
umount -l .
cd /tree

case $step in
  empty)
    exec find . -xdev -mindepth 1 -delete
    ;;
  apply)
    # The program came as an argument, as its file lies outside of what can be seen here.
    printf '%s' "$1" >/apply.pl
    exec perl /apply.pl
    ;;
  extract)
    exec tar --extract --file=- "$@"
    ;;
  *)
    echo "unknown step $step" >&2
    exit 2
    ;;
esac

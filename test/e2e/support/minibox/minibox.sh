#!/bin/sh
# minibox: an engine of containers that is small enough to be read at once, over plain namespaces and without an OCI runtime.
# It is there so that a driver can be written for it by docs/writing-a-driver.md (index.ts, beside this).
#
#   minibox create [--id ID] [--env NAME=VALUE]... NAME ROOTFS COMMAND [ARGUMENT]...   ROOTFS is copied; - is an empty one
#   minibox run    (the same words: creates and starts)
#   minibox start NAME | stop NAME | rm NAME
#   minibox ls     ID, NAME, STATE, seconds since 1970 when it was made; separated by tabs
#
# A box is a directory, $boxes/NAME:
#
#   id            another one for each box that is made, also under the same name
#   command, env  its words, and what is in its environment beside a PATH; each ended by a zero byte
#   rootfs        its root file system; its output goes to minibox.log in there
#   started       there once it has been started
#   start.log     what went wrong before its program began
#
# and a control group, $groups/NAME, which holds its processes and no others. It has process ids, mounts, a host name and
# System V objects of its own, and the network of the host.
set -eu
boxes=/srv/minibox groups=/sys/fs/cgroup/minibox
# Of the host, in every box.
devices='null zero urandom'
start_limit=100 stop_limit=20 # twentieths of a second

fail() { printf 'minibox: %s\n' "$*" >&2 && exit 1; }
need() { [ -e "$boxes/$1/id" ] || fail "there is no box $1"; }
runs() { grep -qsx 'populated 1' "$groups/$1/cgroup.events"; }

create() {
    id=''
    [ "${1-}" != --id ] || { id=$2 && shift 2; }
    [ -n "$id" ] || read -r id </proc/sys/kernel/random/uuid
    # Made beside its place, and moved there whole.
    draft=$boxes/.new-$id
    trap 'rm -rf "$draft"' EXIT
    mkdir -p "$draft/rootfs"
    printf '%s\n' "$id" >"$draft/id"
    : >"$draft/env"
    while [ "${1-}" = --env ]; do
        printf '%s\0' "$2" >>"$draft/env"
        shift 2
    done
    [ $# -ge 3 ] || fail "a box needs a name, a root file system and a command"
    name=$1 rootfs=$2
    shift 2
    case $name in '' | [.-]* | *[!a-zA-Z0-9_.-]*) fail "$name is no name for a box" ;; esac
    printf '%s\0' "$@" >"$draft/command"
    [ "$rootfs" = - ] || cp -a "$rootfs/." "$draft/rootfs"
    # Fails where there is such a directory, unless that is empty.
    mv -T "$draft" "$boxes/$name" 2>/dev/null || fail "there is a box $name already"
}

start() { # NAME
    need "$1"
    ! runs "$1" || fail "$1 runs already"
    mkdir -p "$groups/$1"
    # One that was stopped while it was frozen has left its group so.
    echo 0 >"$groups/$1/cgroup.freeze"
    : >"$boxes/$1/started"
    setsid unshare --mount --uts --ipc --pid --fork "$0" enter "$1" </dev/null >"$boxes/$1/start.log" 2>&1 &
    tries=0
    until runs "$1"; do
        [ "$((tries += 1))" -le "$start_limit" ] && kill -0 $! 2>/dev/null || fail "$1 does not run: $(cat "$boxes/$1/start.log")"
        sleep 0.05
    done
}

# The first process of the new namespaces: makes the box's mounts, and becomes its program. The last steps are one process's,
# because a box need not have programs for them: the host's mounts go, the output becomes a file of the box (CRIU finds no
# other), and nothing else that was open stays so. pivot_root and umount2 are called by their numbers on x86-64.
enter() { # NAME
    box=$boxes/$1
    mount --bind "$box/rootfs" "$box/rootfs"
    cd "$box/rootfs"
    mkdir -p proc dev tmp
    mount -t proc -o nosuid,nodev,noexec proc proc
    for device in $devices; do
        [ -e "dev/$device" ] || : >"dev/$device"
        mount --bind "/dev/$device" "dev/$device"
    done
    hostname "$1"
    # shellcheck disable=SC2016 # Perl's own variables
    exec perl -e '
        use strict; use warnings; use POSIX ();
        my ($box, $group) = @ARGV;
        sub words { local $/ = "\0"; open(my $file, "<", "$box/$_[0]") or die "$!\n"; chomp(my @all = <$file>); return @all }
        my @command = words("command");
        my %given = map { split(/=/, $_, 2) } words("env");
        open(my $procs, ">", "$group/cgroup.procs") or die "$group: $!\n";
        my ($new, $old) = (".", ".");
        syscall(155, $new, $old) == 0 or die "pivot_root: $!\n";
        syscall(166, $old, 2) == 0 or die "umount2: $!\n";
        chdir("/") or die "chdir: $!\n";
        POSIX::setsid();
        open(STDIN, "<", "/dev/null") or die "/dev/null: $!\n";
        open(STDOUT, ">>", "/minibox.log") or die "/minibox.log: $!\n";
        syswrite($procs, "0\n") or die "$group: $!\n";
        open(STDERR, ">&", \*STDOUT) or die "$!\n";
        POSIX::close($_) for 3 .. 255;
        %ENV = (PATH => "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", %given);
        exec {$command[0]} @command or die "$command[0]: $!\n";
    ' "$box" "$groups/$1"
}

stop() { # NAME
    need "$1"
    ! runs "$1" || while read -r pid; do kill -TERM "$pid" 2>/dev/null || true; done <"$groups/$1/cgroup.procs"
    tries=0
    while runs "$1"; do
        [ "$((tries += 1))" -ne "$stop_limit" ] || echo 1 >"$groups/$1/cgroup.kill"
        [ "$tries" -le $((stop_limit + start_limit)) ] || fail "$1 does not end"
        sleep 0.05
    done
}

remove() { # NAME
    need "$1"
    ! runs "$1" || fail "$1 runs: stop it first"
    rm -rf "${boxes:?}/$1"
    [ ! -d "$groups/$1" ] || rmdir "$groups/$1"
}

list() {
    for box in "$boxes"/*/id; do
        [ -e "$box" ] || continue
        box=${box%/id} state=created && name=${box##*/}
        [ ! -e "$box/started" ] || state=stopped
        ! runs "$name" || state=running
        printf '%s\t%s\t%s\t%s\n' "$(cat "$box/id")" "$name" "$state" "$(stat -c %Y "$box/id")"
    done
}

case "${1-} $#" in
    'ls 1') list ;;
    'rm 2') remove "$2" ;;
    'start 2' | 'stop 2' | 'enter 2') "$1" "$2" ;;
    'create '* | 'run '*)
        verb=$1 && shift
        create "$@"
        [ "$verb" = create ] || start "$name"
        ;;
    *) fail "the head of $0 says how it is called" ;;
esac

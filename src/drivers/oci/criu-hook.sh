#!/bin/sh
# CRIU calls this at every stage of a restore. It lies (as a link) in the restore's own directory, beside its settings.
#
# post-setup-namespaces: a new network namespace has its loopback interface down, so that sockets bound to it could not be
# made again; it is brought up before CRIU makes them.
# pre-resume: every process exists but none has run. The container's cgroup is frozen here, so that CRIU, when it lets
# go, leaves the processes as they are. CRIU must not sit in that cgroup: the gate has taken it out, or it is done here.
# CRIU ignores the exit status of this stage. If freezing fails the restored processes are killed: two running
# copies of one service are worse than none.
#
# The service stands still meanwhile, so nothing here starts another process without need.
case ${CRTOOLS_SCRIPT_ACTION:-} in
    pre-resume | post-setup-namespaces) ;;
    *) exit 0 ;;
esac
set -u
dir=${0%/*}

group_of() { # PID SELECTOR: puts the path of the process's cgroup in one hierarchy into $group
    while IFS= read -r line; do
        case $line in $2) group=${line#*:*:}; return 0 ;; esac
    done 2>/dev/null <"/proc/$1/cgroup"
    return 1
}

parent_of() { # PID: puts its parent into $parent
    while read -r field parent; do
        [ "$field" != PPid: ] || return 0
    done 2>/dev/null <"/proc/$1/status"
    return 1
}

leave_group() { # SELECTOR GROUP TARGET: moves this script and its ancestors that are in GROUP to TARGET
    process=$$
    while [ "$process" -gt 1 ]; do
        group_of "$process" "$1" || return 0
        [ "$group" != "$2" ] || echo "$process" >"$3/cgroup.procs" || return 1
        parent_of "$process" || return 0
        process=$parent
    done
}

freeze_v2() { # ROOT
    group_of "$CRTOOLS_INIT_PID" '0::*' || return 1
    inner=$group
    [ "$inner" != / ] && [ -w "$1$inner/cgroup.freeze" ] || return 1
    read -r home <"$dir/home-v2" || return 1
    leave_group '0::*' "$inner" "$1$home" || return 1
    echo 1 >"$1$inner/cgroup.freeze" || return 1
    read -r state <"$1$inner/cgroup.freeze" && [ "$state" = 1 ] || return 1
}

freeze_v1() {
    group_of "$CRTOOLS_INIT_PID" '*:freezer:*' || return 1
    inner=$group root=/sys/fs/cgroup/freezer
    [ "$inner" != / ] && [ -w "$root$inner/freezer.state" ] || return 1
    read -r home <"$dir/home-v1" || return 1
    leave_group '*:freezer:*' "$inner" "$root$home" || return 1
    echo FROZEN >"$root$inner/freezer.state" || return 1
    read -r state <"$root$inner/freezer.state" || return 1
    case $state in FROZEN | FREEZING) ;; *) return 1 ;; esac
}

case $CRTOOLS_SCRIPT_ACTION in
    post-setup-namespaces)
        if [ -e "$dir/own-network" ]; then
            # By path: with --target, nsenter 2.41 stays where it is here, and reports success.
            nsenter --net="/proc/$CRTOOLS_INIT_PID/ns/net" ip link set lo up || exit 1
        fi
        ;;
    pre-resume)
        freeze_v2 /sys/fs/cgroup || freeze_v2 /sys/fs/cgroup/unified || freeze_v1 || {
            echo "the restored processes could not be frozen" >"$dir/failed"
            kill -9 "$CRTOOLS_INIT_PID"
            exit 1
        }
        ;;
esac
exit 0

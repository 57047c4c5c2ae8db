#!/bin/sh
# Stands in for runc while an engine brings a migrated container to life, and only then. The engine calls it as it
# would call runc; it lies (as a link) in the restore's own directory, beside its settings:
#
#   runc     path of the real runtime         id      the container this restore belongs to
#   images   CRIU's images                    work    directory for CRIU's logs
#   criu.conf                                 settings for CRIU, to which the container's cgroup is added here
#   lazy     there when memory comes later    bin     what stands in for criu and tar
#   local-connections there when connections are restored and not closed
#   hooked-network   there when a hook of the engine furnishes the network namespace
#   stays-frozen     there when the engine creates and starts in one step
#
# `create` becomes `restore`, after which every process exists, frozen; `start` becomes nothing, where the engine starts what
# it creates in one step: the agent lets the processes go. Everything else, and everything about another container, goes to the real runtime unchanged.
set -eu
dir=${0%/*}
runc=$(cat "$dir/runc")
id=$(cat "$dir/id")

# The subcommand is the first word that is neither a global option nor an option's value; the container is the last.
command='' bundle='' last='' previous='' before=0 position=0
for word in "$@"; do
    position=$((position + 1))
    if [ -z "$command" ]; then
        case $previous in
            --root | --log | --log-format | --criu | --rootless) ;;
            *) case $word in -*) ;; *) command=$word before=$position ;; esac ;;
        esac
    fi
    case $previous in --bundle | -b) bundle=$word ;; esac
    case $word in --bundle=*) bundle=${word#--bundle=} ;; esac
    previous=$word last=$word
done
[ "$last" = "$id" ] || exec "$runc" "$@"

# systemd's form "slice:prefix:name" is the scope prefix-name.scope inside a path made of the slice's own name.
cgroup_path() {
    path=$(sed -n 's/.*"cgroupsPath": *"\([^"]*\)".*/\1/p' "$1" | head -n 1)
    case $path in
        '') printf '/%s\n' "$id" ;;
        /*) printf '%s\n' "$path" ;;
        *:*:*)
            slice=${path%%:*} scope=${path#*:}
            slice=${slice:-system.slice} name=${slice%.slice} below='' done_part=''
            while [ -n "$name" ] && [ "$name" != - ]; do
                done_part=$done_part${done_part:+-}${name%%-*}
                below=$below/$done_part.slice
                case $name in *-*) name=${name#*-} ;; *) name='' ;; esac
            done
            printf '%s/%s-%s.scope\n' "$below" "${scope%%:*}" "${scope#*:}"
            ;;
        *) printf '/%s\n' "$path" ;;
    esac
}

own_group() { # SELECTOR: where this script runs, and so where CRIU goes before the container's cgroup is frozen
    while IFS= read -r line; do
        case $line in $1) printf '%s\n' "${line#*:*:}"; return 0 ;; esac
    done </proc/self/cgroup
    printf '/\n'
}

case $command in
    create)
        own_group '0::*' >"$dir/home-v2"
        own_group '*:freezer:*' >"$dir/home-v1"
        # The leading colon keeps CRIU to the second version of control groups; without it the processes would go
        # to the path they had at the source.
        echo "cgroup-root :$(cgroup_path "$bundle/config.json")" >>"$dir/criu.conf"
        export CRIU_CONFIG_FILE="$dir/criu.conf" PATH="$dir/bin:$PATH"
        lazy='' hooked='' connections=''
        [ ! -e "$dir/lazy" ] || lazy=yes
        [ ! -e "$dir/hooked-network" ] || hooked=yes
        [ ! -e "$dir/local-connections" ] || connections=yes
        count=$# position=0
        while [ "$position" -lt "$count" ]; do
            position=$((position + 1)) word=$1
            shift
            if [ "$position" -eq "$before" ]; then
                set -- "$@" restore --detach --image-path "$(cat "$dir/images")" --work-path "$(cat "$dir/work")" \
                    --file-locks ${lazy:+--lazy-pages} ${hooked:+--empty-ns network} ${connections:+--tcp-established}
            else
                set -- "$@" "$word"
            fi
        done
        exec "$runc" "$@"
        ;;
    start) [ ! -e "$dir/stays-frozen" ] || exit 0 ;;
esac
exec "$runc" "$@"

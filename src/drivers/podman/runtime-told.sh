#!/bin/sh
# Stands in for runc while Podman writes down that a container was paused, goes on or was started: that has been done
# before, and here it is only looked whether it is so. It lies (as a link) beside a file `runc` with the path of the real runtime, to which
# everything else goes.
set -eu
read -r runc <"${0%/*}/runc" || [ -n "$runc" ]

# The subcommand is the first word that is neither a global option nor an option's value.
command='' previous='' before=0 position=0
for word in "$@"; do
    position=$((position + 1))
    case $previous in
        --root | --log | --log-format | --criu | --rootless) ;;
        *) case $word in -*) ;; *) command=$word before=$position; break ;; esac ;;
    esac
    previous=$word
done
case $command in
    pause | resume | start) ;;
    *) exec "$runc" "$@" ;;
esac

count=$# position=0
while [ "$position" -lt "$count" ]; do
    position=$((position + 1)) word=$1
    shift
    [ "$position" -ne "$before" ] || word=state
    set -- "$@" "$word"
done
state=$("$runc" "$@")
case $command:$state in
    pause:*'"status": "paused"'*) exit 0 ;;
    resume:*'"status": "running"'* | start:*'"status": "running"'*) exit 0 ;;
esac
echo "$command: the container is not in that state" >&2
exit 1

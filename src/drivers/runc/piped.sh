#!/bin/sh
# Starts or restores a container whose output was a pipe: its output goes through new pipes to small loggers that live as
# long as the container, and its input is a pipe that is at its end. Where both outputs go to the same place they share
# a pipe, so that lines keep their order.
#
# usage: piped.sh STATUS OUT ERR COMMAND [ARGUMENT...]   (the command's exit status is written to the file STATUS)
set -u
status=$1 out=$2 err=$3
shift 3
start() {
    : | "$@"
    echo $? >"$status.new"
    mv "$status.new" "$status"
}
logger() {
    trap '' HUP INT TERM
    exec cat >>"$1"
}
if [ "$out" = "$err" ]; then
    start "$@" 2>&1 | logger "$out" &
else
    { start "$@" 2>&3 3>&- | logger "$out" 3>&-; } 3>&1 | logger "$err" &
fi

#!/bin/sh
# Starts or restores a container whose output was a pipe: its output goes through a new pipe to a small logger that
# lives as long as the container, and its input is a pipe that is at its end.
#
# usage: piped.sh STATUS LOG COMMAND [ARGUMENT...]   (the command's exit status is written to the file STATUS)
set -u
status=$1 log=$2
shift 2
{
    : | "$@"
    echo $? >"$status.new"
    mv "$status.new" "$status"
} 2>&1 | {
    trap '' HUP INT TERM
    exec cat >>"$log"
} &

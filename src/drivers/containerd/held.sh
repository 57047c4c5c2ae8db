#!/bin/sh
# The hook of a container that must not start (hold.ts): what it says is what the person reads who tried.
echo 'ums is moving this service, or has moved it away: see `ums ls` and `ums migrations`' >&2
exit 1

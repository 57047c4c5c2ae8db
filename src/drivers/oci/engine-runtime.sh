#!/bin/sh
# The OCI runtime `ums` of engines that must be told of a runtime by their own configuration (Docker). It is runc, except
# that a container whose restore is prepared under its id goes to that restore's runtime-wrapper.sh.
last=''
for last; do :; done
case $last in
    '' | *[!a-zA-Z0-9_.-]*) ;;
    *)
        wrapper=/run/ums-runtime/$last/runtime
        [ ! -x "$wrapper" ] || exec "$wrapper" "$@"
        ;;
esac
PATH=${PATH:+$PATH:}/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
exec runc "$@"

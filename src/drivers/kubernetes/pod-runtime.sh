#!/bin/sh
# The OCI runtime of Kubernetes' runtime class `ums`: runc, except that the container of a pod that a migration has made waits
# here, created but for its processes, until they have arrived, and is then restored.
#
# Which migration it is says the pod's annotation ums.migration, which containerd hands on (pod_annotations). As long as the
# migration has not handed over the service there is /var/lib/ums-runtime/MIGRATION, also after a boot: a pod whose
# service may still be elsewhere must not begin anew. Afterwards the annotation means nothing. In it lie
#
#   held   ID and PID of what waits here        go   a pipe on which the agent says `go` or `no`
#
# `go` comes when a restore of this container has been prepared, as engine-runtime.sh looks for it.
set -u
here=$(dirname "$(readlink -f "$0")")
PATH=${PATH:+$PATH:}/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
# Less than the kubelet waits for a container to start (runtimeRequestTimeout, two minutes): it tries again by itself.
wait_s=100

command='' bundle='' previous='' last=''
for word; do
    case $word in create | start) [ -n "$command" ] || command=$word ;; esac
    case $previous in --bundle | -b) bundle=$word ;; esac
    case $word in --bundle=*) bundle=${word#--bundle=} ;; esac
    previous=$word last=$word
done

annotation() { # NAME
    sed -n 's/.*"'"$1"'": *"\([^"]*\)".*/\1/p' "$bundle/config.json" | head -n 1
}

if [ "$command" = create ] && [ "$(annotation io.kubernetes.cri.container-type)" = container ]; then
    migration=$(annotation ums.migration)
    case $migration in
        '' | *[!a-zA-Z0-9_-]*) ;;
        *)
            directory=/var/lib/ums-runtime/$migration
            if [ -d "$directory" ]; then
                echo "$last $$" >"$directory/held.new" && mv "$directory/held.new" "$directory/held" || exit 1
                word=$(timeout "$wait_s" head -n 1 "$directory/go")
                rm -f "$directory/held"
                if [ "$word" != go ]; then
                    echo "ums: the service of this pod has not arrived (migration $migration)" >&2
                    exit 1
                fi
                "$here/../oci/engine-runtime.sh" "$@"
                status=$?
                echo "$status" >"$directory/ended.new" && mv "$directory/ended.new" "$directory/ended"
                exit "$status"
            fi
            ;;
    esac
fi
area=/run/ums-runtime/$last
if [ "$command" = start ] && [ -e "$area/stays-frozen" ]; then
    "$here/../oci/engine-runtime.sh" "$@" && : >"$area/started"
    exit
fi
exec "$here/../oci/engine-runtime.sh" "$@"

#!/bin/sh
# Prepares a test host for Kubernetes, on the host, each time before its daemons start.
#
#   host.sh PROGRAMS
#     PROGRAMS   directory of what lab/kubernetes/binaries.ts built
set -eu
programs=$1

for name in kubectl conntrack; do ln -sf "$programs/$name" "/usr/local/bin/$name"; done

# The kubelet sets some of the kernel's parameters that are one for the whole machine, unless they have its values already.
# The machine's stay as they are: the host is shown what the kubelet wants to see.
shown=/run/kubernetes/parameters
mkdir -p "$shown"
while read -r path value; do
    [ "$(cat "/proc/sys/$path")" != "$value" ] || continue
    file=$shown/$(echo "$path" | tr / .)
    echo "$value" >"$file"
    mount --bind "$file" "/proc/sys/$path"
done <<EOF
vm/overcommit_memory 1
vm/panic_on_oom 0
kernel/panic 10
kernel/panic_on_oops 1
kernel/keys/root_maxkeys 1000000
kernel/keys/root_maxbytes 25000000
EOF

# Pods get a copy of it, and a host may have none.
[ -e /etc/resolv.conf ] || : >/etc/resolv.conf

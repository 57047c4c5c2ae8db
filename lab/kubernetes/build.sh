#!/bin/sh
# Compiles one program of Kubernetes from Debian 12's source package. It runs as the root of a Debian 12 file system that
# holds Go and the source (lab/kubernetes/binaries.ts makes it), and needs no network.
#
#   build.sh SOURCE VERSION NAME
#     SOURCE   the unpacked source package
#     VERSION  what the program shall say that it is: the source has no history to ask
#     NAME     one of its commands, such as kubelet
set -eu
source=$1 version=$2 name=$3

export HOME=/root LC_ALL=C PATH=/usr/lib/go/bin:/usr/sbin:/usr/bin:/sbin:/bin
# As the source's own packaging does: a vendored tree in GOPATH mode, linked statically.
export GOPATH="$source/.go" CGO_ENABLED=0
mkdir -p "$GOPATH/src/k8s.io"
[ -L "$GOPATH/src/k8s.io/kubernetes" ] || ln -s ../../.. "$GOPATH/src/k8s.io/kubernetes"

numbers=${version#v}
cat >/root/version <<EOF
KUBE_GIT_COMMIT='debian'
KUBE_GIT_TREE_STATE='clean'
KUBE_GIT_VERSION='$version'
KUBE_GIT_MAJOR='${numbers%%.*}'
KUBE_GIT_MINOR='$(echo "$numbers" | cut -d. -f2)'
EOF
export KUBE_GIT_VERSION_FILE=/root/version

cd "$GOPATH/src/k8s.io/kubernetes"
make WHAT="cmd/$name" GOLDFLAGS='-s -w'

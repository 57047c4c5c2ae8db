#!/bin/sh
# Makes the certificates and the kubeconfigs of one host's cluster, on the host, what there is already left as it is.
#
#   pki.sh NAME ADDRESS SERVICE
#     NAME      of the host, and of its node
#     ADDRESS   of the host
#     SERVICE   address of the API server within the cluster
set -eu
name=$1 address=$2 service=$3
pki=/etc/kubernetes/pki
umask 077
mkdir -p "$pki"
cd "$pki"

new_key() {
    openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"
}

if [ ! -e ca.crt ]; then
    new_key ca
    openssl req -x509 -new -key ca.key -subj "/CN=kubernetes-$name" -days 3650 -out ca.new
    mv ca.new ca.crt
fi

# FILE SUBJECT USAGE [ALTERNATIVE NAMES]
certificate() {
    [ ! -e "$1.crt" ] || return 0
    new_key "$1"
    {
        printf 'basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=%s\n' "$3"
        [ -z "${4-}" ] || printf 'subjectAltName=%s\n' "$4"
    } >"$1.ext"
    openssl req -new -key "$1.key" -subj "$2" -out "$1.csr"
    openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -set_serial "0x$(openssl rand -hex 8)" -days 3650 \
        -extfile "$1.ext" -out "$1.new" 2>/dev/null
    mv "$1.new" "$1.crt"
    rm "$1.csr" "$1.ext"
}

# Pods' own tokens are signed with a key that is no certificate.
[ -e sa.pub ] || { new_key sa && openssl ec -in sa.key -pubout -out sa.new 2>/dev/null && mv sa.new sa.pub; }

certificate apiserver /CN=kube-apiserver serverAuth \
    "DNS:$name,DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,IP:127.0.0.1,IP:$address,IP:$service"
certificate kubelet "/O=system:nodes/CN=system:node:$name" 'serverAuth,clientAuth' "DNS:$name,IP:$address"
certificate apiserver-to-kubelet /O=system:masters/CN=kube-apiserver-to-kubelet clientAuth
certificate admin /O=system:masters/CN=admin clientAuth
certificate restricted /CN=restricted clientAuth
certificate controller-manager /CN=system:kube-controller-manager clientAuth
certificate scheduler /CN=system:kube-scheduler clientAuth
certificate proxy /CN=system:kube-proxy clientAuth

# USER...: the first is the one that is meant when none is named
kubeconfig() {
    printf 'apiVersion: v1\nkind: Config\ncurrent-context: %s\n' "$1"
    printf 'clusters:\n- name: %s\n  cluster:\n    server: https://%s:6443\n    certificate-authority: %s/ca.crt\n' \
        "$name" "$address" "$pki"
    printf 'users:\n'
    for user; do
        printf -- '- name: %s\n  user:\n    client-certificate: %s/%s.crt\n    client-key: %s/%s.key\n' \
            "$user" "$pki" "$user" "$pki" "$user"
    done
    printf 'contexts:\n'
    for user; do printf -- '- name: %s\n  context: {cluster: %s, user: %s}\n' "$user" "$name" "$user"; done
}

cd ..
for user in kubelet controller-manager scheduler proxy; do kubeconfig "$user" >"$user.conf"; done
kubeconfig admin restricted >admin.conf
mkdir -p /root/.kube
ln -sf /etc/kubernetes/admin.conf /root/.kube/config

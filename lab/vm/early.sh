#!/bin/busybox sh
# First process of the virtual machine, in its initial RAM file system: mounts the disks and hands over to guest.sh.
#   vda  root of the test hosts with the kernel's modules    vdb  Node and npm packages
#   vdc  workloads and their images                          vdd  a tar of the checkout
# Disks are never written to; what the machine writes is in memory.
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
for module in virtio_blk overlay; do insmod /modules/$module.ko; done
mount -t ext4 -o ro,noload /dev/vda /lower
mount -t tmpfs -o mode=755,size=75% tmpfs /writable
mkdir /writable/upper /writable/work
mount -t overlay -o lowerdir=/lower,upperdir=/writable/upper,workdir=/writable/work overlay /root
mkdir -p /root/opt/ums/app /root/opt/ums/packages /root/var/cache/ums/rootfs
tar -xf /dev/vdd -C /root/opt/ums/app
umount /proc
mount --move /dev /root/dev
exec switch_root /root /bin/sh /opt/ums/app/lab/vm/guest.sh

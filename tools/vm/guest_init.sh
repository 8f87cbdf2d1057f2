#!/bin/busybox sh
# SPDX-License-Identifier: MIT
#
# The first process of a test machine, twice:
#
#  - in the initrd (no argument): loads what 9p needs, mounts the host's root read-only and
#    the run's folder on /mnt, and starts this file again in the host's root;
#  - there (argument "root"): makes what programs expect of a machine, runs /mnt/command with
#    its output in /mnt/output, writes its exit status to /mnt/status, and switches off.
#
# /mnt/modules, where it exists, is a link to the modules of this kernel; /mnt/tree is a copy
# of the tree under test, whose path is in /mnt/tree.path. No udev, no service: a stock kernel is up in 7 s without KVM.

set -u

if [ "${1:-}" != root ]; then
	/bin/busybox mount -t proc proc /proc
	for module in $(/bin/busybox cat /modules/order); do
		/bin/busybox insmod "/modules/$module"
	done
	options=version=9p2000.L,trans=virtio,msize=524288
	/bin/busybox mount -t 9p -o $options,ro,cache=loose root /sysroot
	/bin/busybox mount -t 9p -o $options share /sysroot/mnt
	/bin/busybox umount /proc
	exec /bin/busybox switch_root /sysroot /bin/sh /mnt/guest_init.sh root
fi

: >/mnt/started # from here on, what goes wrong is not the boot

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/run LANG=C.UTF-8 TERM=dumb

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /var/tmp
mount -t debugfs debugfs /sys/kernel/debug
mount -t tracefs tracefs /sys/kernel/tracing
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ln -s /proc/self/fd /dev/fd
ln -s /proc/self/fd/0 /dev/stdin
ln -s /proc/self/fd/1 /dev/stdout
ln -s /proc/self/fd/2 /dev/stderr
echo "+memory +cpuset" >/sys/fs/cgroup/cgroup.subtree_control 2>/dev/null
ip link set lo up 2>/dev/null

if [ -L /mnt/modules ]; then
	modules=$(readlink /mnt/modules)
	mkdir -p /run/modules
	mount --bind "$modules" /run/modules
	mount -t tmpfs tmpfs /lib/modules
	mkdir "/lib/modules/$(uname -r)"
	mount --move /run/modules "/lib/modules/$(uname -r)"
fi

# The tree is the copy in the run's folder, at the path it has on the host, with the host's
# .venv in it; a tmpfs on /tmp may hide neither.
tree=$(cat /mnt/tree.path)
mkdir /run/venv
mount --bind "$tree/.venv" /run/venv
mount -t tmpfs -o mode=1777 tmpfs /tmp
mkdir -p "$tree" 2>/dev/null
mount --bind /mnt/tree "$tree"
mount --move /run/venv "$tree/.venv"

cd "$tree" || cd /
setsid -w sh /mnt/command </dev/null >/mnt/output 2>&1
echo $? >/mnt/status
sync
echo o >/proc/sysrq-trigger
# Not sleep: the file system it is on goes down before we do, and init may not end.
while :; do :; done

#!/bin/sh
# SPDX-License-Identifier: MIT
#
# Builds the debug kernel (KASAN, lockdep, kmemleak, DMA-API debugging, fault injection,
# udmabuf, vgem) from Debian's linux-source-6.12 and debug.config, once:
#
#   tools/kernel/debug_kernel.sh           builds it unless it is there
#   tools/kernel/debug_kernel.sh --where   prints the folder, builds nothing
#
# The folder is ${XDG_CACHE_HOME:-~/.cache}/dmaplane/kernel-KEY, where KEY changes with the
# source package, the configuration and the compiler. In it: bzImage, modules/RELEASE (as
# below /lib/modules), build/ (for Kbuild of other modules), and "complete" when it is.
#
# A first build takes 15 to 30 minutes on two cores and 4 GB of disk, of which 100 MB stay;
# with a warm ccache 6 minutes. DMAPLANE_KERNEL_WORK keeps the unpacked source and the
# objects in that folder instead of removing them, for work on debug.config.

set -eu
here=$(cd "$(dirname "$0")" && pwd)
series=6.12
config=$here/debug.config
archive=/usr/src/linux-source-$series.tar.xz
cache=${XDG_CACHE_HOME:-$HOME/.cache}/dmaplane

package=$(dpkg-query -W -f '${Version}' linux-source-$series 2>/dev/null || :)
[ -n "$package" ] && [ -e "$archive" ] || {
	echo "no kernel source: linux-source-$series is not installed" >&2
	exit 1
}
key=$({
	echo "$package"
	gcc --version | head -n 1
	cat "$config"
} | sha256sum | cut -c 1-16)
home=$cache/kernel-$key

if [ "${1:-}" = --where ]; then
	echo "$home"
	exit 0
fi

mkdir -p "$cache"
exec 9>"$home.lock"
flock 9
if [ -e "$home/complete" ]; then
	echo "debug kernel: ready"
	exit 0
fi

for tool in flex bison bc cpio depmod; do
	command -v $tool >/dev/null 2>&1 || missing="${missing:-} $tool"
done
[ -z "${missing:-}" ] || {
	echo "debug kernel: cannot be built without$missing" >&2
	exit 1
}

work=${DMAPLANE_KERNEL_WORK:-$cache/work-$key}
tree=$work/linux-source-$series
log=$work/build.log
mkdir -p "$work"
echo "debug kernel: building it once; 15 to 30 minutes on two cores (log: $log)"
[ -e "$tree/Makefile" ] || {
	echo "debug kernel: unpacking $series"
	tar xf "$archive" -C "$work"
}

# Paths below the work folder are no part of what ccache remembers.
export CCACHE_BASEDIR="$work"
export KBUILD_BUILD_TIMESTAMP='Thu Jan 1 00:00:00 UTC 1970'
export KBUILD_BUILD_USER=dmaplane KBUILD_BUILD_HOST=dmaplane
compiler=gcc
! command -v ccache >/dev/null 2>&1 || compiler="ccache gcc"

kbuild() { make -s -C "$tree" O="$work/kb" CC="$compiler" "$@" >>"$log" 2>&1; }

failed() {
	tail -n 30 "$log" >&2
	echo "debug kernel: it does not build" >&2
	exit 1
}

# A sign of life twice a minute: how far it is.
heartbeat() {
	while sleep 30; do
		objects=$(find "$work/kb" -name '*.o' 2>/dev/null | wc -l)
		echo "debug kernel: $objects objects of about 2300"
	done
}

: >"$log"
kbuild KCONFIG_ALLCONFIG="$config" alldefconfig || failed
heartbeat &
beat=$!
trap 'kill $beat 2>/dev/null || :' EXIT
kbuild "-j$(nproc)" bzImage modules || failed
kill $beat 2>/dev/null || :

rm -rf "$home"
mkdir -p "$home/modules" "$home/stage"
kbuild INSTALL_MOD_PATH="$home/stage" INSTALL_MOD_STRIP=1 modules_install || failed
cp "$work/kb/arch/x86/boot/bzImage" "$home/bzImage"
mv "$home"/stage/lib/modules/* "$home/modules/"
rm -rf "$home/stage"
rm -f "$home"/modules/*/build "$home"/modules/*/source
(
	cd "$work/kb"
	export srctree="$tree" SRCARCH=x86 CC=gcc HOSTCC=gcc MAKE=make KCONFIG_CONFIG=.config
	"$tree/scripts/package/install-extmod-build" "$home/build"
) >>"$log" 2>&1 || failed
touch "$home/complete"
[ -n "${DMAPLANE_KERNEL_WORK:-}" ] || rm -rf "$work"
echo "debug kernel: done, $(du -sh "$home" | cut -f 1) in $home"

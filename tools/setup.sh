#!/bin/sh
# SPDX-License-Identifier: MIT
#
# Makes this checkout ready on a machine where nothing was prepared.
#
#   tools/setup.sh demo   compiler, CMake, Python, .venv with the package in it
#   tools/setup.sh test   that, and all that `make test` uses: cross compiler, QEMU, kernels
#   tools/setup.sh debug  that, and what tools/kernel/debug_kernel.sh builds its kernel with
#
# Whatever is already there is left alone: a second run changes nothing and takes a
# second. Missing programs are installed by apt-get, as root or through sudo. PYTHON
# names the interpreter to use.

set -eu
cd "$(dirname "$0")/.."

goal=${1:-demo}
case $goal in
demo | test | debug) ;;
*)
	echo "usage: tools/setup.sh demo | test | debug" >&2
	exit 2
	;;
esac

kernel_source=no
if [ "$goal" = debug ]; then
	goal=test
	kernel_source=yes
elif [ "$goal" = test ] && [ "${CI:-}" = true ]; then
	kernel_source=yes # checkpatch is in it
fi

PATH=$PATH:/usr/sbin:/sbin
venv=.venv
say() { echo "setup: $*"; }
have() { command -v "$1" >/dev/null 2>&1; }

# ---- programs of the system

python_fits() {
	"$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null
}

find_python() {
	for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10}; do
		if have "$candidate" && python_fits "$candidate"; then
			echo "$candidate"
			return
		fi
	done
}

cmake_fits() {
	have cmake && cmake --version | awk 'NR == 1 {
		split($3, v, "."); exit !(v[1] > 3 || (v[1] == 3 && v[2] >= 18)) }'
}

compiles() { # compiles COMPILER LANGUAGE: is there a compiler, and its headers?
	have "$1" && echo '#include <errno.h>
#include <linux/types.h>' | "$1" -x "$2" -fsyntax-only - 2>/dev/null
}

lists=old
wanted=
want() { wanted="$wanted $*"; }

missing_programs() {
	wanted=
	compiles cc c || want gcc libc6-dev linux-libc-dev
	have make || want make
	cmake_fits || want cmake
	python=$(find_python)
	if [ -z "$python" ]; then
		want python3 python3-venv
	elif ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
		want python3-venv
	fi
	[ "$goal" = test ] || return 0
	missing_test_programs
	[ "$kernel_source" = no ] || missing_kernel_source
}

missing_test_programs() {
	[ -e /usr/include/infiniband/verbs.h ] || want libibverbs-dev
	[ -e /usr/include/rdma/rdma_cma.h ] || want librdmacm-dev
	[ -e /etc/libibverbs.d/rxe.driver ] || want ibverbs-providers
	have rdma || want iproute2
	compiles g++ c++ || want g++ # the contract compiles as C++ too
	have clang || want clang
	have setarch || want util-linux
	have ip || want iproute2 # tests/endpoint: network namespaces
	if [ "$(uname -m)" != aarch64 ]; then
		have aarch64-linux-gnu-gcc || want gcc-aarch64-linux-gnu
		[ -e /usr/aarch64-linux-gnu/include/errno.h ] || want libc6-dev-arm64-cross
		have qemu-aarch64 || want qemu-user
	fi
	[ "$(uname -m)" = x86_64 ] || return 0
	have qemu-system-x86_64 || want qemu-system-x86
	have busybox && ! ldd "$(command -v busybox)" >/dev/null 2>&1 || want busybox-static
	have modprobe || want kmod
	have ib_write_bw || want perftest # tests/pair
	[ -e /etc/libibverbs.d/rxe.driver ] || want ibverbs-providers
	have sparse || want sparse
	have perl || want perl
	for series in 6.12 6.1; do
		has_kernel $series || want_kernel $series
	done
}

# The debug kernel's source, what compiles it, and checkpatch.
missing_kernel_source() {
	[ -e /usr/src/linux-source-6.12.tar.xz ] || want linux-source-6.12
	have flex || want flex
	have bison || want bison
	have bc || want bc
	have cpio || want cpio
	have xz || want xz-utils
	have perl || want perl
	have ccache || want ccache
	[ -e /usr/include/gelf.h ] || want libelf-dev
	[ -e /usr/include/openssl/opensslv.h ] || want libssl-dev
}

has_kernel() { # has_kernel SERIES: an image, its modules, and headers to build against
	for modules in /lib/modules/"$1".*-amd64; do
		[ -e "$modules/build" ] && [ -e "/boot/vmlinuz-${modules##*/}" ] && return 0
	done
	return 1
}

# Only Debian has these. The exact name of an older series is known to apt's lists alone.
want_kernel() {
	grep -qs '^ID=debian' /etc/os-release || return 0
	package=linux-image-$1-amd64
	apt-cache show "$package" >/dev/null 2>&1 || {
		pattern="^linux-image-$(echo "$1" | sed 's/[.]/[.]/g')[.][0-9]+[^-]*(-[0-9]+)?-amd64\$"
		package=$(apt-cache search --names-only "$pattern" | cut -d ' ' -f 1 |
			sort -V | tail -n 1)
	}
	if [ -n "$package" ]; then
		want "$package" "linux-headers-${package#linux-image-}"
	elif [ "$lists" = old ]; then
		want "linux-image-$1" # looked up again after apt-get update
	fi
}

as_root() {
	if [ "$(id -u)" = 0 ]; then
		"$@"
	elif have sudo; then
		sudo "$@"
	else
		say "not root and no sudo: cannot run: $*" >&2
		return 1
	fi
}

install_programs() {
	if ! have apt-get; then
		say "no apt-get here; please install the equivalent of:$wanted" >&2
		return 1
	fi
	log=$(mktemp)
	as_root apt-get -qq update >"$log" 2>&1 || :
	lists=new
	missing_programs
	say "installing$wanted"
	# shellcheck disable=SC2086 # a list of package names
	if as_root env DEBIAN_FRONTEND=noninteractive INITRD=No apt-get -qq install -y \
		--no-install-recommends $wanted >>"$log" 2>&1; then
		rm -f "$log"
	else
		tail -n 20 "$log" >&2
		rm -f "$log"
		return 1
	fi
}

# One at a time: two would install into the same .venv.
mkdir -p build
exec 8>build/setup.lock
! have flock || flock 8

missing_programs
if [ -n "$wanted" ]; then
	install_programs || say "apt-get failed; going on with what is here" >&2
	missing_programs
fi
compiles cc c || {
	say "no working C compiler (cc)" >&2
	exit 1
}
[ -n "$python" ] || {
	say "no Python 3.10 or newer; set PYTHON to one" >&2
	exit 1
}
# What only `make test` uses and could not be had is named there: as a skip, or in
# CI as a failure.

# ---- the Python side

if [ -d $venv ] && ! python_fits $venv/bin/python; then
	say "$venv is broken or too old, making it again"
	rm -rf $venv
fi
if [ ! -d $venv ]; then
	say "making $venv with $("$python" --version)"
	"$python" -m venv $venv
fi
pip() { $venv/bin/python -m pip --disable-pip-version-check -qq "$@"; }

if ! PATH="$PWD/$venv/bin:$PATH" cmake_fits; then
	say "no CMake 3.18 or newer in the system; taking it from PyPI"
	pip install "cmake>=3.18" ninja
fi

# One line a file, so that a rename counts as a change.
fingerprint() {
	{
		find include core embedded bench python -type f \
			! -name '*.pyc' ! -path '*/results/*' -print
		echo CMakeLists.txt
		echo pyproject.toml
		echo tests/programs.cmake
	} | LC_ALL=C sort | xargs sha256sum | sha256sum | cut -d ' ' -f 1
}

stamp=$venv/installed
now=$(fingerprint)
installed=$(cat $stamp 2>/dev/null || :)
if [ "$installed" = "$now test" ] || [ "$installed" = "$now $goal" ]; then
	say "ready"
	exit 0
fi

# The tests' tools stay once they were installed.
case $installed in *" test") goal=test ;; esac
what='.[serve]' # what the demo's servers and its picture use
[ "$goal" = demo ] || what='.[test,serve]'
say "building and installing dmaplane (goal: $goal)"
rm -f $stamp
CMAKE_BUILD_PARALLEL_LEVEL=$(nproc) PATH="$PWD/$venv/bin:$PATH" pip install "$what"
# Tensor views are tested where PyTorch is, and the second engine where transformers is. CI
# fetches the one version that has a small build for CPUs; elsewhere nobody is made to fetch
# gigabytes for some tests.
if [ "$goal" = test ] && [ "${CI:-}" = true ]; then
	pip install "torch==2.13.0" "transformers==5.23.0" ||
		say "no PyTorch or transformers to be had: their tests will be skipped" >&2
	# NVRTC compiles what a GPU will run, without one: a hundred megabytes.
	pip install "cuda-bindings==13.5.0" "cuda-toolkit[nvrtc]==13.5.0"
fi
echo "$now $goal" >$stamp
say "ready"

#!/bin/sh
# SPDX-License-Identifier: MIT
#
# Makes this checkout ready on a machine where nothing was prepared.
#
#   tools/setup.sh demo   compiler, CMake, Python, .venv with the package in it
#   tools/setup.sh test   that, and all that `make test` uses
#
# Whatever is already there is left alone: a second run changes nothing and takes a
# second. Missing programs are installed by apt-get, as root or through sudo. PYTHON
# names the interpreter to use.

set -eu
cd "$(dirname "$0")/.."

goal=${1:-demo}
case $goal in
demo | test) ;;
*)
	echo "usage: tools/setup.sh demo | test" >&2
	exit 2
	;;
esac

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
	compiles g++ c++ || want g++ # the contract compiles as C++ too
	have clang || want clang
	have setarch || want util-linux
	if [ "$(uname -m)" != aarch64 ]; then
		have aarch64-linux-gnu-gcc || want gcc-aarch64-linux-gnu
		[ -e /usr/aarch64-linux-gnu/include/errno.h ] || want libc6-dev-arm64-cross
		have qemu-aarch64 || want qemu-user
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
	say "installing$wanted"
	log=$(mktemp)
	# shellcheck disable=SC2086 # a list of package names
	if as_root apt-get -qq update >"$log" 2>&1 &&
		as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y \
			--no-install-recommends $wanted >>"$log" 2>&1; then
		rm -f "$log"
	else
		tail -n 20 "$log" >&2
		rm -f "$log"
		return 1
	fi
}

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
what=.
[ "$goal" = demo ] || what='.[test]'
say "building and installing dmaplane (goal: $goal)"
rm -f $stamp
CMAKE_BUILD_PARALLEL_LEVEL=$(nproc) PATH="$PWD/$venv/bin:$PATH" pip install "$what"
# Tensor views are tested where PyTorch is. CI fetches the one version that has a small
# build for CPUs; elsewhere nobody is made to fetch gigabytes for one test.
if [ "$goal" = test ] && [ "${CI:-}" = true ]; then
	pip install "torch==2.13.0" || say "no PyTorch to be had: its test will be skipped" >&2
fi
echo "$now $goal" >$stamp
say "ready"

#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Builds dmaplane.ko, out of the tree, against one kernel.

  tools/kernel/build.py 6.12 [--sparse] [--standin]

Kbuild writes beside the sources, so include/, core/ and kernel/ (and tests/kernel/standin/)
are copied to build/kernel/NAME/ and built there; only what changed is built again. A
warning is an error: W=1 for the module. One build of a kernel at a time.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "vm"))

import kernels

TREE = kernels.TREE
SOURCES = ("include", "core", "kernel")
STANDIN = "tests/kernel/standin"
SUFFIXES = {".c", ".h", ".S"}
NAMES = {"Kbuild", "Makefile"}


class BuildError(Exception):
    """Kbuild or the compiler said no; what they said was printed."""


def _sources(top: Path) -> Iterator[Path]:
    for path in sorted(top.rglob("*")):
        is_source = path.suffix in SUFFIXES or path.name in NAMES
        if is_source and not path.name.endswith(".mod.c"):
            yield path


def mirror(source: Path, target: Path) -> None:
    """Makes the sources below @target those below @source; keeps the age of what is equal."""
    wanted = {path.relative_to(source) for path in _sources(source)}
    for path in _sources(target):
        if path.relative_to(target) not in wanted:
            path.unlink()
    for name in wanted:
        old, new = target / name, source / name
        if not old.exists() or old.read_bytes() != new.read_bytes():
            old.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(new, old)


def _make(kernel: kernels.Kernel, folder: Path, *words: str) -> None:
    jobs = min(os.cpu_count() or 1, 4)
    command = ["make", "-s", "-C", str(kernel.build), f"M={folder}", f"-j{jobs}", *words, "modules"]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print(done.stdout, end="", flush=True)
    # Not all that modpost remarks ends with a status.
    if done.returncode or re.search(r"(?i)\bwarning:", done.stdout):
        raise BuildError(f"{folder.name} does not build for {kernel.release}")


@contextlib.contextmanager
def _home(kernel: kernels.Kernel) -> Iterator[Path]:
    """The folder of one kernel's objects, empty of another release's, for one of us."""
    home = TREE / "build/kernel" / kernel.name
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        release = home / "release"
        if not release.exists() or release.read_text() != kernel.release:
            for name in (*SOURCES, STANDIN):
                shutil.rmtree(home / name, ignore_errors=True)
            release.write_text(kernel.release)
        for name in SOURCES:
            mirror(TREE / name, home / name)
        yield home


def build(kernel: kernels.Kernel, *, sparse: bool = False) -> list[Path]:
    """Builds dmaplane.ko, strictly; with @sparse all its files are checked by it, too."""
    strict = ["W=1", "KCFLAGS=-Werror"]
    if sparse:
        strict += ["C=2", "CF=-Wsparse-error"]
    with _home(kernel) as home:
        _make(kernel, home / "kernel", *strict)
        return [home / "kernel/dmaplane.ko"]


def build_standins(kernel: kernels.Kernel) -> list[Path]:
    """Builds the modules of tests/kernel/standin."""
    with _home(kernel) as home:
        mirror(TREE / STANDIN, home / STANDIN)
        _make(kernel, home / STANDIN, "KCFLAGS=-Werror")
        return sorted((home / STANDIN).glob("*.ko"))


def main() -> int:
    parser = argparse.ArgumentParser(description="build dmaplane.ko against one kernel")
    parser.add_argument("kernel", choices=kernels.NAMES)
    parser.add_argument("--sparse", action="store_true", help="and check every file with sparse")
    parser.add_argument("--standin", action="store_true", help="and the stand-ins of the tests")
    arguments = parser.parse_args()
    try:
        kernel = kernels.find(arguments.kernel)
        built = build(kernel, sparse=arguments.sparse)
        if arguments.standin:
            built += build_standins(kernel)
    except (kernels.NoKernelError, BuildError) as error:
        print(f"build: {error}", file=sys.stderr)
        return 1
    for path in built:
        print(path.relative_to(TREE))
    return 0


if __name__ == "__main__":
    sys.exit(main())

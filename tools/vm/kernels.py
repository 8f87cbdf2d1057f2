# SPDX-License-Identifier: MIT
"""Kernels that can be booted here: where their image, modules and build tree are.

"6.12" and "6.1" are Debian's, from the packages tools/setup.sh installs. "debug" is the
one tools/kernel/debug_kernel.sh builds into a cache outside the tree.

  tools/vm/kernels.py NAME     prints its release, or what is missing, with exit status 3
"""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
NAMES = ("6.12", "6.1", "debug")
FLAVOUR = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)


class NoKernelError(Exception):
    """A kernel, or a part of it, is not installed."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One bootable kernel."""

    name: str
    release: str
    image: Path
    modules: Path  # what belongs at /lib/modules/RELEASE
    build: Path  # what Kbuild is run against
    is_debug: bool = False


def _numbers(release: str) -> list[int]:
    return [int(word) for word in re.findall(r"\d+", release)]


def installed(name: str) -> Kernel:
    """The newest installed Debian kernel of the series @name."""
    found = [
        path
        for path in Path("/lib/modules").glob(f"{name}.*-{FLAVOUR}")
        if re.fullmatch(rf"{re.escape(name)}\.[\w.+]+(-\d+)?-{FLAVOUR}", path.name)
        and (path / "build").exists()
        and Path(f"/boot/vmlinuz-{path.name}").exists()
    ]
    if not found:
        raise NoKernelError(f"no kernel {name} with headers (linux-headers-, linux-image-)")
    modules = max(found, key=lambda path: _numbers(path.name))
    image = Path(f"/boot/vmlinuz-{modules.name}")
    return Kernel(name, modules.name, image, modules, (modules / "build").resolve())


def debug() -> Kernel:
    """The debug kernel from its cache; NoKernelError if it was not built yet."""
    script = TREE / "tools/kernel/debug_kernel.sh"
    asked = subprocess.run([script, "--where"], capture_output=True, text=True, check=False)
    if asked.returncode:
        raise NoKernelError(asked.stderr.strip() or "no debug kernel")
    home = Path(asked.stdout.strip())
    releases = sorted((home / "modules").glob("*")) if (home / "complete").exists() else []
    if not releases:
        raise NoKernelError("the debug kernel is not built: tools/kernel/debug_kernel.sh")
    modules = releases[0]
    return Kernel("debug", modules.name, home / "bzImage", modules, home / "build", True)


def find(name: str) -> Kernel:
    """The kernel called @name, one of NAMES."""
    return debug() if name == "debug" else installed(name)


if __name__ == "__main__":
    try:
        print(find(sys.argv[1]).release)
    except NoKernelError as error:
        print(error)
        sys.exit(3)

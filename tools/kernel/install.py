#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Installs the module: `make install-module`, as root.

  tools/kernel/install.py [--release RELEASE] [--root DIR]
  tools/kernel/install.py --check SERIES      the same into build/, and looks at what came of it

With DKMS the sources go to /usr/src/dmaplane-VERSION and every later kernel gets its
module by itself; without it the module of one kernel is built and installed. Either way
the group dmaplane exists afterwards and udev gives it the device.
"""

from __future__ import annotations

import argparse
import grp
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "vm"))

import build
import kernels

TREE = kernels.TREE
GROUP = "dmaplane"
RULE = TREE / "kernel/60-dmaplane.rules"
DKMS = TREE / "kernel/dkms.conf"
# depmod is called after it; no key of ours would be known to any kernel.
QUIET = ("DEPMOD=true", "CONFIG_MODULE_SIG_ALL=")
TRIAL = TREE / "build/install"


def version() -> str:
    found = re.search(r'^PACKAGE_VERSION="(.+)"$', DKMS.read_text(), re.MULTILINE)
    assert found, f"{DKMS} names no version"
    return found[1]


def run(*words: str | Path) -> None:
    subprocess.run(words, check=True)


def lay_out(target: Path) -> None:
    """Puts at @target what DKMS builds from."""
    for name in build.SOURCES:
        build.mirror(TREE / name, target / name)
    shutil.copyfile(DKMS, target / DKMS.name)


def build_plain(home: Path, kernel_build: Path) -> None:
    lay_out(home)
    run("make", "-s", "-C", kernel_build, f"M={home / 'kernel'}", "modules")


def install_plain(release: str, root: Path, home: Path) -> None:
    """Builds the module for one kernel at @home, installs it, and tells modprobe."""
    kernel_build = Path(f"/lib/modules/{release}/build")
    build_plain(home, kernel_build)
    where = (f"M={home / 'kernel'}", f"INSTALL_MOD_PATH={root}")
    run("make", "-s", "-C", kernel_build, *where, *QUIET, "modules_install")
    run("depmod", "-b", root, release)


def install_dkms(release: str) -> None:
    lay_out(Path(f"/usr/src/dmaplane-{version()}"))
    name = f"dmaplane/{version()}"
    subprocess.run(["dkms", "remove", name, "--all"], capture_output=True, check=False)
    run("dkms", "add", name)
    run("dkms", "install", name, "-k", release)


def install_rule(root: Path) -> None:
    target = root / "etc/udev/rules.d"
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(RULE, target / RULE.name)
    if root == Path("/"):
        try:
            grp.getgrnam(GROUP)
        except KeyError:
            run("groupadd", "--system", GROUP)
        if shutil.which("udevadm"):
            # Where udev does not run the rule counts from the next boot.
            subprocess.run(["udevadm", "control", "--reload"], check=False)


def install(release: str, root: Path) -> None:
    if root == Path("/") and shutil.which("dkms"):
        install_dkms(release)
    else:
        install_plain(release, root, TREE / "build/kernel" / f"install-{release}")
    install_rule(root)


# ---- the check: one line and one count for each thing that has to be so


def versions_agree() -> bool:
    python = re.search(r'^version = "(.+)"', (TREE / "pyproject.toml").read_text(), re.MULTILINE)
    module = re.search(r'DMP_VERSION\s+"(.+)"', (TREE / "kernel/plane.h").read_text())
    return bool(python and module and python[1] == module[1] == version())


def dkms_home() -> Path:
    return TRIAL / "dkms/dmaplane" / version() / "build"


def dkms_builds(kernel: kernels.Kernel) -> bool:
    """Lays the sources out as DKMS would and runs what dkms.conf says, in its environment."""
    home = dkms_home()
    lay_out(home)
    settings = {"dkms_tree": str(TRIAL / "dkms"), "kernel_source_dir": str(kernel.build)}
    script = '. "$0" && eval "${MAKE[0]}" && test -e "$1/$BUILT_MODULE_LOCATION/dmaplane.ko"'
    command = ["bash", "-c", script, str(home / DKMS.name), str(home)]
    return subprocess.run(command, env=os.environ | settings, check=False).returncode == 0


def installs(kernel: kernels.Kernel) -> bool:
    root = TRIAL / "root"
    shutil.rmtree(root, ignore_errors=True)
    modules = root / "lib/modules" / kernel.release
    modules.mkdir(parents=True)
    for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        if (kernel.modules / name).exists():
            shutil.copyfile(kernel.modules / name, modules / name)
    install_plain(kernel.release, root, dkms_home())
    install_rule(root)
    known = "dmaplane.ko" in (modules / "modules.dep").read_text()
    return known and (root / "etc/udev/rules.d" / RULE.name).exists()


def check(series: str) -> int:
    kernel = kernels.find(series)
    results = {
        "the version is the same everywhere": versions_agree(),
        "dkms.conf builds the module": dkms_builds(kernel),
        "an installed module is known to modprobe": installs(kernel),
    }
    for what, good in results.items():
        print(f"{'ok' if good else 'FAILED':8}{what}")
    failed = sum(not good for good in results.values())
    print(f"{len(results) - failed} passed, {failed} failed")
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="install dmaplane.ko")
    parser.add_argument("--release", default=os.uname().release, help="of the kernel")
    parser.add_argument("--root", type=Path, default=Path("/"), help="where / is")
    parser.add_argument("--check", metavar="SERIES", choices=kernels.NAMES)
    arguments = parser.parse_args()
    try:
        if arguments.check:
            return check(arguments.check)
        install(arguments.release, arguments.root)
    except (kernels.NoKernelError, build.BuildError, OSError, subprocess.SubprocessError) as error:
        print(f"install-module: {error}", file=sys.stderr)
        return 1
    print(
        f"install-module: dmaplane {version()} for {arguments.release}; load it: modprobe dmaplane"
    )
    print(f"install-module: who may use it: usermod -aG {GROUP} USER")
    return 0


if __name__ == "__main__":
    sys.exit(main())

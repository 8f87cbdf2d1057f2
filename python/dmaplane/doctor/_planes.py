# SPDX-License-Identifier: MIT
"""Is there a plane, and does it move bytes? Both planes are really opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dmaplane.doctor._check import Finding, lack, ok, warn

if TYPE_CHECKING:
    from dmaplane.doctor._machine import Machine

DEVICE: Final = "/dev/dmaplane"
MODULE: Final = "dmaplane"
NUMPY_MIN: Final = (1, 23)
KERNEL_MIN: Final = (6, 1)
"""Oldest kernel the module is built and tested on."""


def embedded_plane(machine: Machine) -> Finding:
    """Opened, and a copy with checksum done through a channel."""
    trial = machine.try_embedded()
    if trial.worked:
        return ok(trial.detail)
    return lack(
        "the embedded plane does not work",
        cause=trial.detail,
        fix="pip install --force-reinstall dmaplane"
        if machine.package_version("dmaplane")
        else "make demo",
    )


def kernel_plane(machine: Machine) -> Finding:
    """Module, device, rights, version, and then the same copy."""
    if machine.exists(DEVICE):
        if not machine.usable(DEVICE):
            return _not_allowed(machine)
        return _tried(machine)
    if machine.module_loaded(MODULE):
        return lack(
            f"the module is loaded, but {DEVICE} is missing",
            cause="the device node of the host is not visible in this container"
            if machine.container
            else "udev has not made the device node",
            fix=f"docker run --device {DEVICE} ..."
            if machine.container
            else machine.as_root("udevadm trigger --subsystem-match=misc"),
        )
    if machine.module_installed(MODULE):
        locked = machine.selected("/sys/kernel/security/lockdown") not in (None, "none")
        return lack(
            "the kernel module is installed and not loaded",
            cause=f"nothing has loaded dmaplane.ko, so there is no {DEVICE}"
            + ("; Secure Boot is on and refuses a module it has no key for" if locked else ""),
            fix=machine.on_host("modprobe dmaplane")
            if not locked
            else machine.on_host("mokutil --import /var/lib/dkms/mok.pub"),
        )
    if machine.kernel_version < KERNEL_MIN:
        return lack(
            "no kernel plane",
            cause=f"the module needs Linux {_dotted(KERNEL_MIN)}; this is {machine.kernel_release}",
            fix="Nothing has to be done: the embedded plane answers the same calls.",
        )
    return lack(
        "no kernel plane",
        cause=f"no dmaplane.ko is installed for kernel {machine.kernel_release}",
        fix="Nothing has to be done: the embedded plane answers the same calls. Where the module "
        "is wanted: make install-module, as root, in a checkout of dmaplane.",
    )


def _not_allowed(machine: Machine) -> Finding:
    group, user = machine.group_of(DEVICE), machine.user_name()
    if machine.container:
        fix = f"docker run --device {DEVICE} --group-add $(stat -c %g {DEVICE}) ..."
    elif group is not None:
        fix = machine.as_root(f"usermod -aG {group} {user}  # log in again afterwards")
    else:
        fix = machine.as_root(
            f"sh -c 'groupadd -f dmaplane && chgrp dmaplane {DEVICE} && chmod 660 {DEVICE} && "
            f"usermod -aG dmaplane {user}'  # log in again afterwards"
        )
    return lack(
        f"{DEVICE} is there, and this user may not open it",
        cause=f"user {user} has no read and write right to {DEVICE}, "
        + (f"which is group {group}'s" if group is not None else "which is root's alone"),
        fix=fix,
    )


def _tried(machine: Machine) -> Finding:
    trial = machine.try_kernel()
    if trial.worked:
        return ok(trial.detail)
    if trial.other_abi:
        return lack(
            "the module and this package speak different versions of the contract",
            cause=trial.detail,
            fix="pip install --upgrade dmaplane  # the module and the package are of one release",
        )
    return lack(
        f"{DEVICE} is there and does not work",
        cause=trial.detail,
        fix=machine.on_host("sh -c 'modprobe -r dmaplane; modprobe dmaplane'"),
    )


def kernel_headers(machine: Machine) -> Finding:
    """What building the module takes; nothing where it is there already."""
    release = machine.kernel_release
    if machine.module_loaded(MODULE) or machine.module_installed(MODULE):
        return ok("the module is there: nothing to build")
    if machine.kernel_version < KERNEL_MIN:
        return warn(
            f"the module cannot be built for kernel {release}",
            cause=f"it needs Linux {_dotted(KERNEL_MIN)}",
            fix="Nothing has to be done: the embedded plane answers the same calls.",
        )
    if machine.exists(f"/lib/modules/{release}/build/Makefile"):
        return ok(f"the module can be built for {release}")
    package = (
        "dnf install kernel-devel-"
        if machine.exists("/usr/bin/dnf")
        else ("apt-get install linux-headers-")
    )
    return warn(
        f"no headers of kernel {release}",
        cause=f"/lib/modules/{release}/build is missing, so the module cannot be built here",
        fix=machine.on_host(package + release),
    )


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def python(machine: Machine) -> Finding:
    """Interpreter and the packages we import."""
    version = ".".join(map(str, machine.python_version()))
    if machine.python_version() < (3, 10, 0):
        return lack(
            f"Python {version} is too old",
            cause="dmaplane needs Python 3.10 or newer",
            fix=machine.install(debian="python3.11", fedora="python3.11"),
        )
    versions = {name: machine.package_version(name) for name in ("numpy", "rich", "typer")}
    missing = [name for name, found in versions.items() if found is None]
    if missing:
        return lack(
            f"Python {version} without {', '.join(missing)}",
            cause="dmaplane was installed without its dependencies",
            fix=f"pip install {' '.join(missing)}",
        )
    numpy = versions["numpy"] or "0"
    parts = tuple(int(part) for part in numpy.split(".")[:2] if part.isdigit())
    if parts < NUMPY_MIN:
        return lack(
            f"numpy {numpy} is too old",
            cause="dmaplane needs numpy 1.23 or newer",
            fix="pip install --upgrade 'numpy>=1.23'",
        )
    named = ", ".join(f"{name} {found}" for name, found in versions.items())
    return ok(f"Python {version}; {named}")


def kernel(machine: Machine) -> Finding:
    """Old kernels lack calls that sealed, tracked buffers rest on."""
    release = machine.kernel_release
    numbers = machine.kernel_version
    if not numbers:
        return warn(
            f"kernel {release}",
            cause="/proc/sys/kernel/osrelease does not say which version this is",
            fix="mount -t proc proc /proc",
        )
    if numbers < (4, 14):
        return lack(
            f"kernel {release} is too old",
            cause="sealed memfds with huge pages came with 4.14",
            fix="Boot a kernel of 5.10 or newer.",
        )
    if numbers < (5, 10):
        return warn(
            f"kernel {release} is older than what dmaplane is tested on",
            cause="the tests run on 6.1 and newer",
            fix="Boot a kernel of 6.1 or newer where you can.",
        )
    return ok(f"Linux {release}, {machine.architecture()}")

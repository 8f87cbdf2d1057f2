# SPDX-License-Identifier: MIT
"""Is there a plane, and does it move bytes? Both planes are really opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dmaplane.doctor._check import Finding, lack, ok, warn

if TYPE_CHECKING:
    from dmaplane.doctor._machine import Machine

DEVICE: Final = "/dev/dmaplane"
NUMPY_MIN: Final = (1, 23)


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
    """Module, device, rights, and then the same copy."""
    if machine.exists(DEVICE):
        if not machine.usable(DEVICE):
            return lack(
                f"{DEVICE} is there, and this user may not open it",
                cause=f"user {machine.user_id()} has no read and write right to {DEVICE}",
                fix=machine.as_root(f"setfacl -m u:{machine.user_id()}:rw {DEVICE}"),
            )
        trial = machine.try_kernel()
        if trial.worked:
            return ok(trial.detail)
        return lack(
            f"{DEVICE} is there and does not work",
            cause=trial.detail,
            fix=machine.on_host("modprobe -r dmaplane && modprobe dmaplane"),
        )
    if machine.module_loaded("dmaplane"):
        return lack(
            f"the module is loaded, but {DEVICE} is missing",
            cause="the device node of the host is not visible in this container"
            if machine.container
            else "udev has not made the device node",
            fix=f"docker run --device {DEVICE} ..."
            if machine.container
            else machine.as_root("udevadm trigger --subsystem-match=misc"),
        )
    if machine.module_installed("dmaplane"):
        return lack(
            "the kernel module is installed and not loaded",
            cause=f"nothing has loaded dmaplane.ko, so there is no {DEVICE}",
            fix=machine.on_host("modprobe dmaplane"),
        )
    return lack(
        "no kernel plane",
        cause=f"no dmaplane.ko is installed for kernel {machine.kernel_release}",
        fix="Nothing has to be done: the embedded plane answers the same calls.",
    )


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
    numbers = tuple(int(part) for part in release.split(".")[:2] if part.isdigit())
    if len(numbers) < 2:
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

# SPDX-License-Identifier: MIT
"""CUDA: what `open_device("cuda")` needs, in the order in which it is missed.

The driver's library, the packages, and then a device: it is opened, in a child process, so
that looking leaves no context and no library behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dmaplane.doctor._check import Finding, lack, ok

if TYPE_CHECKING:
    from dmaplane.doctor._machine import Machine

_LIBRARY: Final = "libcuda.so.1"
_PACKAGE: Final = "cuda-bindings"
_SIM: Final = 'Nothing has to be done: open_device("sim") has the same interface, simulated.'


def cuda(machine: Machine) -> Finding:
    """Copy streams on a GPU: driver, packages, device."""
    missing = machine.open_library(_LIBRARY)
    if missing:
        if machine.names("/dev") and any(
            name.startswith("nvidia") for name in machine.names("/dev")
        ):
            fix = (
                "docker run --gpus all ..."
                if machine.container
                else machine.install(debian="libcuda1", fedora="xorg-x11-drv-nvidia-cuda-libs")
            )
        else:
            fix = _SIM
        return lack("no cuda device: the driver's library is missing", cause=missing, fix=fix)
    if machine.package_version(_PACKAGE) is None:
        return lack(
            f"no cuda device: the package {_PACKAGE} is missing",
            cause="the driver is called through it, and NVRTC compiles the kernels",
            fix='pip install "dmaplane[gpu]"',
        )
    tried = machine.try_cuda()
    if tried.worked:
        return ok(tried.detail)
    return lack(
        "no cuda device: it cannot be opened",
        cause=tried.detail,
        fix="Do what the cause names; nvidia-smi shows what the driver sees.",
    )

# SPDX-License-Identifier: MIT
"""The NVIDIA driver: whether it is here, its calls, and what its answers mean.

`Driver` is one a process. What is missing (library, package, device) is an UnsupportedError
that names the fix; `lacking()` tells the same without raising, for the doctor.

Some errors are sticky: after them no call of that context succeeds (an illegal address, an
uncorrectable memory error). They are DeviceLostError; who sees one marks his device as lost.

Nothing is locked: the driver's calls may come from any thread.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
from typing import Any, Final

from dmaplane._errors import (
    DeviceLostError,
    DmaplaneError,
    InvalidError,
    LimitError,
    NoMemoryError,
    NotAllowedError,
    UnsupportedError,
)
from dmaplane.stream.cuda._entries import Entries

LIBRARY: Final = "libcuda.so.1"
PACKAGES: Final = 'pip install "dmaplane[gpu]"'
FEATURE: Final = "a cuda device"

INVALID_VALUE: Final = 1
OUT_OF_MEMORY: Final = 2
NO_DEVICE: Final = 100
NOT_READY: Final = 600
_STICKY: Final = frozenset(
    {
        4,  # deinitialized: the process ends
        46,  # device unavailable
        201,  # invalid context: somebody has reset the device, and ours went with it
        214,  # uncorrectable memory error
        220,  # uncorrectable link error
        226,  # contained error
        700,  # illegal address
        702,  # launch timeout
        709,  # context is destroyed
        710,  # assert
        714,  # hardware stack error
        715,  # illegal instruction
        716,  # misaligned address
        717,  # invalid address space
        718,  # invalid program counter
        719,  # launch failed
        721,  # tensor memory leak
        911,  # external device
        999,  # unknown
    }
)
_NEEDS: Final = {
    34: "a newer driver, or another device",  # stub library
    36: "a newer driver, or another device",  # call requires a newer driver
    200: "machine code for this device",  # invalid image
    209: "machine code for this device",  # no binary
    218: "PTX that this driver reads",
    221: "a compiler of PTX beside the driver",
    222: "PTX that this driver reads",
    223: "a driver that may compile PTX",
    500: "a newer driver, or another device",  # not found
    801: "a newer driver, or another device",  # not supported
    804: "a newer driver, or another device",  # compatibility not supported
}
_LIMITS: Final = {
    701: "it wants more registers, shared memory or threads than a processor has; fewer threads, "
    "fewer bulk_slots",
    808: "too many clients of MPS",
    809: "too many connections of MPS",
}
_REFUSED: Final = {
    INVALID_VALUE: "addresses and lengths inside live memory",
    400: "a stream, an event or a kernel that is still there",
    712: "a page of it is registered already: unregister that first",
    713: "memory that is registered",
}
_INIT_FIXES: Final = {
    NO_DEVICE: "a GPU that this process may see: look at CUDA_VISIBLE_DEVICES, and in a container "
    "at --gpus",
    101: "a device of that number",
    802: "the fabric manager of this machine running: systemctl start nvidia-fabricmanager",
    803: "a driver library and a kernel module of the same version: reboot, or reload the module",
    804: "a driver that this GPU supports: forward compatibility is for data centre GPUs only",
    999: "/dev/nvidia* and /dev/nvidia-uvm: nvidia-modprobe -u -c=0 as root",
}


class Driver:
    """The driver's calls. `api` is cuda.bindings.driver, `entries` the hot calls."""

    __slots__ = ("api", "entries", "version")

    def __init__(self) -> None:
        missing = lacking()
        if missing:
            raise UnsupportedError(FEATURE, "; and ".join(missing))
        self.api: Any = importlib.import_module("cuda.bindings.driver")
        (result,) = self.api.cuInit(0)
        if int(result):
            raise UnsupportedError(
                FEATURE,
                _INIT_FIXES.get(int(result), "a working driver; see nvidia-smi")
                + f" (cuInit: {result.name})",
                errno=int(result),
            )
        self.version = int(self.call("cuDriverGetVersion"))
        """13000 for 13.0."""
        self.entries = Entries(ctypes.CDLL(LIBRARY), self.version)

    def call(self, name: str, *arguments: Any, device: str = "cuda") -> Any:
        """What the driver's @name gives: nothing, one value, or a tuple. Raises its error."""
        code, *values = getattr(self.api, name)(*arguments)
        if int(code):
            raise self.error(int(code), name, device=device)
        return values[0] if len(values) == 1 else tuple(values)

    def name(self, code: int) -> str:
        """ "CUDA_ERROR_ILLEGAL_ADDRESS" for 700."""
        try:
            return str(self.api.CUresult(code).name)
        except ValueError:
            return f"CUresult {code}"

    def error(self, code: int, call: str, *, device: str = "cuda") -> DmaplaneError:
        """The exception for what @call answered."""
        return error_of(code, f"{call}: {self.name(code)}", device=device)


def error_of(code: int, text: str, *, device: str) -> DmaplaneError:
    """The exception for a CUresult; @text is the call and its name."""
    if code in _STICKY:
        return DeviceLostError(device, text, errno=code)
    if code == OUT_OF_MEMORY:
        return NoMemoryError(f"{text}: free some of the device's memory", errno=code)
    if code in _NEEDS:
        return UnsupportedError(text, _NEEDS[code], errno=code)
    if code == 800:
        return NotAllowedError(f"{text}: not allowed to this process", errno=code)
    if code in _LIMITS:
        return LimitError(f"{text}: {_LIMITS[code]}", errno=code)
    if code == 712:
        return InvalidError("address", text, fix=_REFUSED[code], errno=code)
    fix = _REFUSED.get(code, "what CUresult says of it in the driver's documentation")
    return InvalidError(text, "the driver refused it", fix=fix, errno=code)


def is_sticky(code: int) -> bool:
    """True if no call of that context can succeed any more."""
    return code in _STICKY


def lacking() -> tuple[str, ...]:
    """What is missing before a device can be looked for; empty if nothing."""
    missing = []
    try:
        ctypes.CDLL(LIBRARY)
    except OSError as error:
        missing.append(f"NVIDIA's driver ({error})")
    for module in ("cuda.bindings.driver", "cuda.bindings.nvrtc"):
        try:
            importlib.import_module(module)
        except ImportError as error:
            missing.append(f"the package cuda-bindings: {PACKAGES} ({error})")
            break
    return tuple(missing)


@functools.cache
def driver() -> Driver:
    """The driver of this process; UnsupportedError says what is missing."""
    return Driver()

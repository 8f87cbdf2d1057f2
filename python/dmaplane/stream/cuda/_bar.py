# SPDX-License-Identifier: MIT
"""Device memory as the processor sees it: a mapping of the device's BAR, where one can be had.

The one way in that needs no privilege and no module is a dma-buf of an allocation and mmap()
of it. Drivers from 610 on (CUDA 13.3) have that for cards with memory of their own; earlier
ones export the dma-buf and refuse the mmap. So the version decides first, and then a child
process tries: it has its own context, a time limit, and takes nothing with it if it dies.

There is another way, a client of the resource manager written by hand. Its structs change
with each branch of the driver and a mistake in them is made inside the kernel; it is not
done here, and the reason of the tier says so.

The mapping is write-combined: stores are fast, loads take a round trip each. So the tier goes
up only, and blocks end at 32 KiB. Each mapping belongs to one CudaMemory, which closes it.

Stores may stay in the processor's write-combining buffers for as long as it likes. A copy has
ended only when they have left it: store_fence(), once behind the blocks of a call.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import json
import mmap
import os
import platform
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final

from dmaplane._errors import InvalidError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dmaplane.stream._copies import Copies, Direction
    from dmaplane.stream.cuda._device import CudaDevice

MAPPED_SINCE: Final = 13030
LARGEST: Final = 32 << 10
PROBE_BYTES: Final = 2 << 20
PROBE_SECONDS: Final = 30
GRANULE: Final = 2 << 20
FENCED: Final = ("x86_64", "AMD64")
"""Machines on which store_fence() is known to do what it says."""
_SEMAPHORE_BYTES: Final = 64
"""Of a sem_t, or more: 32 with glibc and musl."""
_DMABUF: Final = 1
"""CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD"""


@dataclasses.dataclass(frozen=True, slots=True)
class BarFinding:
    """What came of trying. `step` is the last one that was tried: context, export, map, bytes."""

    works: bool
    step: str
    error: str
    flags: int = 0
    """With which the dma-buf was exported: 1 asks for the PCIe mapping on coherent machines."""


class BarMapping:
    """An allocation as the processor sees it."""

    __slots__ = ("_base", "_map", "address", "length")

    def __init__(self, device: CudaDevice, address: int, length: int) -> None:
        """UnsupportedError if the driver does not export or map it."""
        if address % mmap.PAGESIZE:
            raise UnsupportedError(f"a mapping of {address:#x}", "whole pages")
        rounded = -(-length // mmap.PAGESIZE) * mmap.PAGESIZE
        descriptor = exported(device, address, rounded)
        try:
            self._map = mmap.mmap(descriptor, rounded)
        except (OSError, ValueError) as error:  # ValueError: it is shorter than was said
            raise UnsupportedError(
                f"a mapping of {length} bytes of {device.name}",
                f"a driver that maps its dma-bufs ({error})",
                errno=getattr(error, "errno", None),
            ) from error
        finally:
            os.close(descriptor)
        self.address = address
        self.length = length
        self._base: Any = ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def write(self, address: int, source: int, length: int) -> None:
        """@length bytes of host memory at @source, to the device's @address; store_fence() then."""
        offset = address - self.address
        if not 0 <= offset <= self.length - length:
            raise InvalidError("address", f"{address:#x} is not mapped", fix="an address of it")
        ctypes.memmove(self._base + offset, source, length)

    def close(self) -> None:
        """Unmaps it; idempotent."""
        self._map.close()


@functools.cache
def _fence() -> Callable[[], None]:
    """The fence of this process: a semaphore of its own, counted up and down."""
    library = ctypes.CDLL(None)
    room = ctypes.create_string_buffer(_SEMAPHORE_BYTES)
    if library.sem_init(room, 0, 0):
        raise UnsupportedError("a store fence", "a semaphore of the C library")
    post, take = library.sem_post, library.sem_trywait

    def fence() -> None:
        # Up first, so that nobody's way down can fail, and it never counts past the threads.
        if post(room) or take(room):
            raise UnsupportedError("a store fence", "a semaphore of the C library")

    return fence


def store_fence() -> None:
    """All stores of this thread have left the processor, those into write-combined memory too.

    Python has no instruction for it, and we build none for this. But on x86 any locked
    instruction empties the write-combining buffers, as sfence does (Intel SDM volume 3, "buffering
    of write combining memory locations"; AMD APM volume 2, "write-combining buffer flush"), and
    counting a semaphore is one: the C library adds to it by `lock xadd` or `lock cmpxchg`,
    whether other threads exist or not. A mutex would not do: glibc leaves the lock prefix away
    in a process of one thread. On other machines neither is said, so why_not() refuses there.
    """
    _fence()()


def store_blocks(device: CudaDevice, direction: Direction, copies: Copies) -> None:
    """@copies by the processor, now. A block a time: that is what this tier is."""
    if direction != "h2d":
        raise InvalidError("direction", "loads over a BAR take a round trip each", fix="h2d")
    try:
        for to, out, length in zip(
            copies.destinations.tolist(),
            copies.sources.tolist(),
            copies.lengths.tolist(),
            strict=True,
        ):
            mapping = getattr(device.registry.resolve(to)[0].owner, "mapping", None)
            if not isinstance(mapping, BarMapping):
                raise UnsupportedError(f"a mapping of {to:#x}", "memory of CudaDevice.memory()")
            mapping.write(to, out, length)
    finally:
        store_fence()


def exported(device: CudaDevice, address: int, length: int, flags: int = 0) -> int:
    """A dma-buf of device memory: a descriptor of ours."""
    kind = device.driver.api.CUmemRangeHandleType(_DMABUF)
    return int(device.call("cuMemGetHandleForAddressRange", address, length, kind, flags))


def why_not(device: CudaDevice) -> str:
    """Why this device has no BAR mapping; "" if it has one."""
    asked, version = device.settings.bar, device.driver.version
    if asked == "never":
        return 'it was turned off: bar="auto" looks for it'
    if asked == "auto" and version < MAPPED_SINCE:
        return (
            f"the driver is of CUDA {version // 1000}.{version % 1000 // 10}, which exports "
            "dma-bufs but does not map them; drivers from 610 (CUDA 13.3) do. The way by the "
            'resource manager has no stable interface and is not taken. bar="probe" tries anyway'
        )
    if platform.machine() not in FENCED:
        return (
            f"nothing is known on {platform.machine()} that brings stores into a mapping out of "
            "the processor; on x86-64 there is"
        )
    finding = probe(device.number)
    if finding.works:
        return ""
    return f"a child process tried to map a dma-buf; {finding.step}: {finding.error}"


def probe(number: int, *, flags: int = 0, timeout: float = PROBE_SECONDS) -> BarFinding:
    """Tries it in a child process on device @number."""
    command = [sys.executable, "-m", "dmaplane.stream.cuda._bar", str(number), str(flags)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return BarFinding(False, "child", f"no answer in {timeout:g} seconds", flags)
    return _understood(done.stdout, done.stderr, done.returncode, flags)


def _understood(output: str, complaint: str, code: int, flags: int) -> BarFinding:
    """What the child wrote: one line of JSON, or it died."""
    try:
        told = json.loads(output[:4096])
        return BarFinding(bool(told["works"]), str(told["step"]), str(told["error"]), flags)
    except (ValueError, KeyError, TypeError):
        last = complaint.strip().splitlines()[-1:] or ["it said nothing"]
        return BarFinding(False, "child", f"it ended with {code}: {last[0][:400]}", flags)


def _tried(number: int, flags: int) -> BarFinding:
    """In the child: exports, maps, writes through the mapping, and reads that back by a copy."""
    from dmaplane._errors import DmaplaneError
    from dmaplane.stream.cuda import open_cuda

    step = "context"
    try:
        with open_cuda(number, bar="never", busy="never") as device:
            step = "export"
            address = device.raw_memory(PROBE_BYTES)
            descriptor = exported(device, address, PROBE_BYTES, flags)
            step = "map"
            with mmap.mmap(descriptor, PROBE_BYTES) as view:
                os.close(descriptor)
                step = "bytes"
                pattern = os.urandom(4096)
                view[: len(pattern)] = pattern
                store_fence()
                seen = bytearray(len(pattern))
                device.call("cuMemcpyDtoH", seen, address, len(pattern))
            if bytes(seen) != pattern:
                return BarFinding(False, step, "what was written is not what is there", flags)
            device.call("cuMemFree", address)
    except (DmaplaneError, OSError, ValueError) as error:
        return BarFinding(False, step, str(error), flags)
    return BarFinding(True, step, "", flags)


if __name__ == "__main__":
    found = _tried(int(sys.argv[1]), int(sys.argv[2]))
    sys.stdout.write(json.dumps(dataclasses.asdict(found)))

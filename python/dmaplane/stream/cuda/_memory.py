# SPDX-License-Identifier: MIT
"""Memory a cuda device can touch: its own, and host memory that was made known to it.

Host memory is registered in pieces (one registration of 512 GiB fails, and a large one stops
others of the process for its whole length), whole pages of it. They begin at multiples of
piece_bytes, so an address tells by itself where the next one begins: a copy engine may not
cross from one registration into the next, so copies are cut there. Kernels see one range.

What somebody else has pinned or allocated with the driver already (a framework's tensors) is
taken as it is: nothing is registered then, and nothing is freed later.

Who owns what. `CudaMemory` owns an allocation of the driver, `Pinned` the registrations of a
range; both belong to their device. Nothing is locked here: the registry has its own lock.
"""

from __future__ import annotations

import dataclasses
import mmap
from typing import TYPE_CHECKING, Final

from dmaplane._errors import DeviceLostError, InvalidError, UnsupportedError
from dmaplane.stream._device import OwnMemory

if TYPE_CHECKING:
    from dmaplane.stream._registry import Range
    from dmaplane.stream.cuda._bar import BarMapping
    from dmaplane.stream.cuda._device import CudaDevice

PORTABLE_AND_MAPPED: Final = 3
"""CU_MEMHOSTREGISTER_PORTABLE | DEVICEMAP, and the same bits of cuMemHostAlloc."""
_HOST: Final = 1
_DEVICE: Final = 2


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Pinned:
    """Registrations behind a range: address and length of each; none if they are another's."""

    pieces: tuple[tuple[int, int], ...]


class CudaMemory(OwnMemory):
    """Memory of a cuda device. Made by CudaDevice.memory()."""

    __slots__ = ("mapping",)
    _device: CudaDevice

    def __init__(self, device: CudaDevice, length: int) -> None:
        if not 0 < length < 1 << 48:
            raise InvalidError("length", f"{length} bytes", fix="at least one, and what there is")
        self.mapping: BarMapping | None = None
        """Where the processor sees it, if it does."""
        super().__init__(device, device.raw_memory(length), length)
        try:
            self._range = device.registry.register(
                self.address, length, kind="device", owner=self, why_text="memory()"
            )
        except BaseException:
            device.call("cuMemFree", self.address)
            raise

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        """Its bytes, for NumPy's relatives on the device."""
        self._check()
        return {
            "shape": (self.length,),
            "typestr": "|u1",
            "data": (self.address, False),
            "version": 3,
        }

    def free(self) -> None:
        """Gives it back to the driver."""
        self._device._forget(self)
        if self.mapping is not None:
            self.mapping.close()
            self.mapping = None
        try:
            self._device.call("cuMemFree", self.address)
        except DeviceLostError:
            return  # it went with the context


def register(device: CudaDevice, address: int, length: int) -> Range:
    """Makes memory known to @device, whosever it is."""
    if address <= 0 or length <= 0:
        raise InvalidError("address, length", f"{length} bytes at {address:#x}", fix="memory")
    kind = _kind(device, address)
    if kind == _DEVICE:
        base, size = device.call("cuMemGetAddressRange", address)
        if address + length > int(base) + int(size):
            raise InvalidError(
                "length",
                f"{length} bytes from {address:#x} leave the allocation of {int(size)}",
                fix="memory of one allocation",
            )
        return device.registry.register(
            address, length, kind="device", owner=Pinned(()), why_text="of another owner"
        )
    if kind == _HOST:
        _same_address(device, address)
        _same_address(device, address + length - 1)
        return device.registry.register(
            address, length, kind="host", owner=Pinned(()), why_text="pinned by another owner"
        )
    pinned = _pin(device, address, length)
    try:
        return device.registry.register(
            address, length, kind="host", owner=pinned, why_text="register()"
        )
    except BaseException:
        unpin(device, pinned)
        raise


def _pin(device: CudaDevice, address: int, length: int) -> Pinned:
    step = device.settings.piece_bytes
    first = address - address % mmap.PAGESIZE
    end = -(-(address + length) // mmap.PAGESIZE) * mmap.PAGESIZE
    pieces: list[tuple[int, int]] = []
    try:
        for edge in range(first - first % step, end, step):
            start = max(edge, first)
            piece = start, min(edge + step, end) - start
            device.call("cuMemHostRegister", *piece, PORTABLE_AND_MAPPED)
            pieces.append(piece)
            _same_address(device, start)
    except BaseException:
        unpin(device, Pinned(tuple(pieces)))
        raise
    return Pinned(tuple(pieces))


def unpin(device: CudaDevice, pinned: Pinned) -> None:
    """Ends its registrations."""
    try:
        for address, _ in reversed(pinned.pieces):
            device.call("cuMemHostUnregister", address)
    except DeviceLostError:
        return  # they went with the context


def _kind(device: CudaDevice, address: int) -> int:
    """CUmemorytype of an address; 0 if the driver does not know it."""
    api = device.driver.api
    wanted = api.CUpointer_attribute.CU_POINTER_ATTRIBUTE_MEMORY_TYPE
    with device.current():
        code, kind = api.cuPointerGetAttribute(wanted, address)
    if int(code) == 1:  # CUDA_ERROR_INVALID_VALUE: it does not know the address
        return 0
    if int(code):
        raise device.failed(int(code), "cuPointerGetAttribute")
    return int(kind)


def _same_address(device: CudaDevice, address: int) -> None:
    wanted = device.driver.api.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_POINTER
    seen = int(device.call("cuPointerGetAttribute", wanted, address))
    if seen != address:
        raise UnsupportedError(
            f"host memory at {address:#x}, which {device.name} sees at {seen:#x}",
            "a device that uses host addresses as they are (unified addressing)",
        )

# SPDX-License-Identifier: MIT
"""The calls of the driver that carry bytes, by ctypes, and the structs they are given.

Everything else goes through cuda-bindings. These do not, because a binding makes a Python
object for each address: the batched copy takes three arrays of thousands of them, which NumPy
holds as the driver wants them. ctypes lets other threads run meanwhile.

The batched copy has two forms under one name. Since 12.8 it takes nine arguments, the eighth
tells which copy failed; since 13.0 it takes eight. The driver gives the form of the version
that is asked for, and neither can be told from the other by its address: the wrong one would
read a stack slot as a stream. So what is asked for and how it is called stand in one row here.

Invariants: arrays handed over are contiguous uint64 of one length, and stay until the call
returns (the driver has read them by then). Nothing is locked: nothing here changes.
"""

from __future__ import annotations

import ctypes
import dataclasses
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

BATCH_SINCE: Final = 12080
BATCH_OF_EIGHT_SINCE: Final = 13000
NO_INDEX: Final = (1 << 64) - 1
INLINE_BYTES: Final = 3840
"""Of descriptors that ride in the parameters; the same number is in copy.cu."""


class MemoryLocation(ctypes.Structure):
    """CUmemLocation: where memory is; all zero for "see for yourself"."""

    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class BatchAttributes(ctypes.Structure):
    """CUmemcpyAttributes: how the copies of a batch may read."""

    _fields_ = (
        ("order", ctypes.c_int),
        ("source_hint", MemoryLocation),
        ("destination_hint", MemoryLocation),
        ("flags", ctypes.c_uint),
    )


class CopyArguments(ctypes.Structure):
    """`struct Copy` of copy.cu."""

    _fields_ = (
        ("source", ctypes.c_uint64),
        ("destination", ctypes.c_uint64),
        ("source_stride", ctypes.c_uint64),
        ("destination_stride", ctypes.c_uint64),
        ("sources", ctypes.c_uint64),
        ("destinations", ctypes.c_uint64),
        ("lengths", ctypes.c_uint64),
        ("length", ctypes.c_uint32),
        ("rows", ctypes.c_uint32),
        ("count", ctypes.c_uint32),
        ("ragged", ctypes.c_uint32),
    )


class InlineArguments(ctypes.Structure):
    """`struct InlineCopy` of copy.cu."""

    _fields_ = (("copy", CopyArguments), ("inlined", ctypes.c_uint64 * (INLINE_BYTES // 8)))


class SweepArguments(ctypes.Structure):
    """`struct Sweep` of ceiling.cu."""

    _fields_ = (
        ("base", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("sink", ctypes.c_uint64),
        ("turns", ctypes.c_uint64),
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """How a kernel is laid out over the device."""

    groups: int
    threads: int
    shared_bytes: int = 0


class Entries:
    """The hot calls of one driver. Each answers a CUresult; 0 is done."""

    __slots__ = ("_batch", "_down", "_launch", "_up", "batch_form")

    def __init__(self, library: ctypes.CDLL, version: int) -> None:
        """@version: of the driver, as cuDriverGetVersion has it."""
        self.batch_form: int = 0
        """Arguments of the batched copy: 0 if this driver has none, 8 or 9."""
        self._batch: Any = None
        if version >= BATCH_SINCE:
            eight = version >= BATCH_OF_EIGHT_SINCE
            asked = BATCH_OF_EIGHT_SINCE if eight else BATCH_SINCE
            found = entry_point(library, b"cuMemcpyBatchAsync", asked)
            if found:
                self.batch_form = 8 if eight else 9
                self._batch = _batch_prototype(self.batch_form)(found)
        self._up = library.cuMemcpyHtoDAsync_v2
        self._up.argtypes = (ctypes.c_uint64, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
        self._down = library.cuMemcpyDtoHAsync_v2
        self._down.argtypes = (ctypes.c_void_p, ctypes.c_uint64, ctypes.c_size_t, ctypes.c_void_p)
        self._launch = library.cuLaunchKernel
        self._launch.argtypes = (
            ctypes.c_void_p,
            *(ctypes.c_uint,) * 7,
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_void_p,
        )
        for call in (self._up, self._down, self._launch):
            call.restype = ctypes.c_int

    def batch(
        self,
        *,
        destinations: npt.NDArray[np.uint64],
        sources: npt.NDArray[np.uint64],
        lengths: npt.NDArray[np.uint64],
        attributes: BatchAttributes,
        stream: int,
    ) -> tuple[int, int | None]:
        """Copies all of them in no order of their own. The result, and the number of the copy
        that was refused where the driver tells it.
        """
        first = ctypes.c_size_t(0)
        arguments = [
            destinations.ctypes.data,
            sources.ctypes.data,
            lengths.ctypes.data,
            len(lengths),
            ctypes.byref(attributes),
            ctypes.byref(first),  # the copy from which on attribute 0 holds
            1,
        ]
        if self.batch_form == 8:
            return int(self._batch(*arguments, stream)), None
        failed = ctypes.c_size_t(NO_INDEX)
        result = int(self._batch(*arguments, ctypes.byref(failed), stream))
        return result, None if failed.value == NO_INDEX else failed.value

    def up(self, *, destination: int, source: int, length: int, stream: int) -> int:
        """Host to device."""
        return int(self._up(destination, source, length, stream))

    def down(self, *, destination: int, source: int, length: int, stream: int) -> int:
        """Device to host."""
        return int(self._down(destination, source, length, stream))

    def launch(
        self, function: int, shape: Shape, arguments: ctypes.Structure, *, stream: int
    ) -> int:
        """Starts a kernel of one parameter, which is read before this returns."""
        slot = ctypes.c_void_p(ctypes.addressof(arguments))
        return int(
            self._launch(
                function,
                shape.groups,
                1,
                1,
                shape.threads,
                1,
                1,
                shape.shared_bytes,
                stream,
                ctypes.addressof(slot),
                None,
            )
        )


def entry_point(library: ctypes.CDLL, name: bytes, version: int) -> int:
    """The address of a driver's function as it was in @version; 0 if it has none."""
    find = library.cuGetProcAddress_v2
    find.argtypes = (
        ctypes.c_char_p,
        ctypes.c_void_p,
        ctypes.c_int,
        ctypes.c_uint64,
        ctypes.c_void_p,
    )
    find.restype = ctypes.c_int
    found, status = ctypes.c_void_p(), ctypes.c_int()
    result = find(name, ctypes.addressof(found), version, 0, ctypes.addressof(status))
    return 0 if result else found.value or 0


def _batch_prototype(form: int) -> Any:
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    common = (pointer, pointer, pointer, size, pointer, pointer, size)
    return ctypes.CFUNCTYPE(ctypes.c_int, *common, *((pointer,) * (form - 7)))

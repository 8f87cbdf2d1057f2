# SPDX-License-Identifier: MIT
"""Room for the descriptors of kernels: a ring of pinned host memory that the device reads.

Arrays are put at the head before a launch; seal() says by which mark that launch has ended,
and then they may be overwritten. The ring waits for the oldest mark when it is full, by what
its lane gave it for that: the lane knows how long a device may take.

Invariants: head and tail run freely, head - tail <= size; what lies between them belongs to
launches that have not ended. From one thread at a time, that of its lane.
"""

from __future__ import annotations

import collections
import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np

from dmaplane._errors import LimitError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from dmaplane.stream._device import Marker

_ALIGNMENT = 16


class DescriptorRing:
    """A ring of @size bytes at @address, which is the device's address of it too."""

    __slots__ = ("_address", "_free", "_head", "_reach", "_room", "_sealed", "_size", "_tail")

    def __init__(
        self,
        address: int,
        size: int,
        *,
        reach: Callable[[Marker], None],
        free: Callable[[], Any],
    ) -> None:
        """@reach: waits for a mark, or raises. @free: gives the memory back; called once, by
        close()."""
        self._reach = reach
        self._address = address
        self._size = size
        self._free: Callable[[], Any] | None = free
        self._room: npt.NDArray[np.uint8] = np.frombuffer(
            memoryview((ctypes.c_uint8 * size).from_address(address)), dtype=np.uint8
        )
        self._head = self._tail = 0
        self._sealed: collections.deque[tuple[int, Marker]] = collections.deque()

    def put(self, arrays: tuple[npt.NDArray[np.generic] | None, ...]) -> tuple[int, ...]:
        """Copies them into the ring; where each one is, 0 for None."""
        sizes = [0 if one is None else -(-one.nbytes // _ALIGNMENT) * _ALIGNMENT for one in arrays]
        needed = sum(sizes)
        if not needed:
            return (0,) * len(arrays)
        start = self._head % self._size
        skipped = self._size - start if start + needed > self._size else 0
        if needed > self._size:
            raise LimitError(f"{needed} bytes of descriptors for a ring of {self._size}")
        while self._head + skipped + needed - self._tail > self._size:
            self._retire()
        at = (self._head + skipped) % self._size
        self._head += skipped + needed
        places = []
        for array, size in zip(arrays, sizes, strict=True):
            places.append(0 if array is None else self._address + at)
            if array is not None:
                self._room[at : at + array.nbytes] = array.view(np.uint8)
            at += size
        return tuple(places)

    def seal(self, mark: Marker) -> None:
        """What was put so far may be overwritten once @mark is reached."""
        self._sealed.append((self._head, mark))

    def _retire(self) -> None:
        if not self._sealed:
            raise LimitError(
                "the descriptors of one launch fill the ring; a larger descriptor_bytes"
            )
        end, mark = self._sealed[0]
        self._reach(mark)
        self._sealed.popleft()
        self._tail = end

    def close(self) -> None:
        """Gives the memory back; whoever calls it knows that no launch reads it."""
        free, self._free = self._free, None
        self._room = self._room[:0]
        self._sealed.clear()
        if free is not None:
            free()

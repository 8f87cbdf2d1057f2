# SPDX-License-Identifier: MIT
"""A registration: memory of a buffer that a device may touch, in pieces of bounded length.

One call that registers all of a large buffer holds a driver's lock for seconds, and one of
512 GiB fails; so it is done piece by piece. Copies do not cross from one piece into the next:
pieces end where blocks end.

It owns a view of the buffer, so that the memory cannot go while a device reaches it (L3): the
buffer's holders name it. The ranges belong to the device's registry; they are given back before
the view is.
"""

from __future__ import annotations

import math
import mmap
import os
import threading
from typing import TYPE_CHECKING, Final

import numpy as np

from dmaplane._errors import ClosedError, DeviceLostError, InvalidError
from dmaplane._scope import Scope

if TYPE_CHECKING:
    from collections.abc import Callable

    from dmaplane._buffer import Buffer
    from dmaplane.stream._device import Device
    from dmaplane.stream._registry import Range

PIECE_BYTES: Final = 1 << 30
PIECE_BYTES_MAX: Final = 64 << 30
"""Drivers keep 16 bytes for each page of a registration in one allocation of less than 2 GiB."""


class Registration(Scope):
    """The whole of @buffer, registered with @device. Use it in a `with` block.

    @piece: bytes of one registration, at most; @unit: bytes no two pieces share, the block of
    who uses it. @progress: told bytes that are done.
    Raises what the device answers; then nothing stays registered.
    """

    __slots__ = (
        "_lock",
        "_process",
        "_ranges",
        "_refusal",
        "_view",
        "address",
        "buffer",
        "device",
    )

    def __init__(
        self,
        device: Device,
        buffer: Buffer,
        *,
        piece: int = PIECE_BYTES,
        unit: int = 1,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        step = piece_step(piece=piece, unit=unit)
        self.device = device
        self.buffer = buffer
        self._process = os.getpid()  # a fork may inherit the lock as somebody else held it
        self._lock = threading.Lock()  # closing: one at a time
        self._refusal: str | None = None
        self._view: memoryview | None = buffer._view(buffer.all, f"registered with {device.name}")
        self.address: int = np.frombuffer(self._view, np.uint8).ctypes.data
        self._ranges: list[Range] = []
        try:
            for start in range(0, buffer.length_bytes, step):
                length = min(step, buffer.length_bytes - start)
                self._ranges.append(device.register(self.address + start, length))
                if progress is not None:
                    progress(start + length)
        except BaseException:
            self.close()
            raise

    def _check(self) -> None:
        if self._refusal is not None:
            raise ClosedError(self._refusal)

    @property
    def closed(self) -> bool:
        """True after close()."""
        return self._refusal is not None

    @property
    def ranges(self) -> tuple[Range, ...]:
        """The pieces, as the registry of the device knows them."""
        return tuple(self._ranges)

    def close(self) -> None:
        """Takes the memory back from the device; idempotent.

        BusyError while a copy uses it: what was not taken back yet stays, and close() may be
        called again. A device that is lost or closed reaches nothing any more: that is no reason.
        In a forked child it does nothing: the registration is the parent's.
        """
        if os.getpid() != self._process:
            return
        with self._lock:
            self._refusal = f"the registration with {self.device.name} is closed"
            while self._ranges:
                try:
                    if not self.device.closed:
                        self.device.unregister(self._ranges[-1])
                except (DeviceLostError, ClosedError):
                    pass
                self._ranges.pop()
            self._view = None

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self._ranges)} pieces"
        return f"<registration with {self.device.name}, {state}>"


def piece_step(*, piece: int, unit: int) -> int:
    """Bytes of a piece: whole pages and whole units, at most @piece where that is possible."""
    page = mmap.PAGESIZE
    if not page <= piece <= PIECE_BYTES_MAX:
        raise InvalidError("piece", f"{piece} bytes", fix=f"{page} .. {PIECE_BYTES_MAX}")
    if unit < 1:
        raise InvalidError("unit", f"{unit} bytes", fix="1 or more")
    least = math.lcm(page, unit)
    if least > PIECE_BYTES_MAX:
        raise InvalidError(
            "unit",
            f"pieces that end with a page and with a unit of {unit} bytes would be {least} bytes",
            fix=f"a unit that is a multiple of a large power of two (pages have {page} bytes)",
        )
    return max(least, piece // least * least)

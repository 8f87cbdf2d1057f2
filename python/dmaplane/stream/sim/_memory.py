# SPDX-License-Identifier: MIT
"""Memory the simulated device can touch: buffers of its own embedded plane.

Its own memory is a buffer of pages; registered host memory is a buffer of kind user over
whatever the caller named, so copies are rows of a channel by buffer and offset.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from dmaplane._errors import ClosedError
from dmaplane.stream._device import DeviceMemory

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from dmaplane._buffer import Buffer
    from dmaplane._plane import Plane
    from dmaplane.stream._registry import Range
    from dmaplane.stream.sim._device import SimDevice


class Backing:
    """A buffer of the device's plane, behind a range of its registry."""

    __slots__ = ("buffer", "view")

    def __init__(self, buffer: Buffer, view: Any = None) -> None:
        self.buffer = buffer
        self.view = view

    @property
    def id(self) -> int:
        """Names it in rows."""
        return self.buffer.id

    def close(self) -> None:
        """Gives it back; views that others still have keep the memory."""
        self.view = None
        self.buffer.close()


def host_backing(plane: Plane, address: int, length: int) -> Backing:
    """Over memory that is there already, and has to stay."""
    memory = (ctypes.c_ubyte * length).from_address(address)
    return Backing(plane.buffer(user=memory))


class SimMemory(DeviceMemory):
    """Memory of the simulated device. Made by SimDevice.memory()."""

    __slots__ = ("_backing", "_device", "_range")

    def __init__(self, device: SimDevice, length: int) -> None:
        buffer = device.plane.buffer(length)
        self._range: Range | None = None
        try:
            view = buffer.numpy()
            self._backing = Backing(buffer, view)
            super().__init__(int(view.ctypes.data), length)
            self._device = device
            self._range = device.registry.register(
                self.address, length, kind="device", owner=self._backing, why_text="memory()"
            )
        except BaseException:
            buffer.close()
            raise

    @property
    def buffer(self) -> Buffer:
        """Of the device's plane, behind it."""
        return self._backing.buffer

    def numpy(self) -> npt.NDArray[np.uint8]:
        """Its bytes as they are now, which only a simulated device can show."""
        self._check()
        view: npt.NDArray[np.uint8] = self._backing.buffer.numpy()
        return view

    def _check(self) -> None:
        self._device._check()
        if self._range is None:
            raise ClosedError(f"{self.length} bytes at {self.address:#x} of sim are closed")

    def close(self) -> None:
        """Frees it; idempotent. BusyError while a copy touches it."""
        given = self._range
        if given is None or self._device.closed:
            return
        self._device.registry.release(given)
        self._range = None
        self._device._memories.discard(self)
        self._backing.close()

    def __repr__(self) -> str:
        state = "closed" if self._range is None or self._device.closed else f"{self.length} bytes"
        return f"<memory of sim at {self.address:#x}, {state}>"

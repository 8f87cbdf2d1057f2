# SPDX-License-Identifier: MIT
"""Memory the simulated device can touch: buffers of its own embedded plane.

Its own memory is a buffer of pages; registered host memory is a buffer of kind user over
whatever the caller named, so copies are rows of a channel by buffer and offset.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from dmaplane.stream._device import OwnMemory

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from dmaplane._buffer import Buffer
    from dmaplane._plane import Plane
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


class SimMemory(OwnMemory):
    """Memory of the simulated device. Made by SimDevice.memory()."""

    __slots__ = ("_backing",)
    _device: SimDevice

    def __init__(self, device: SimDevice, length: int) -> None:
        buffer = device.plane.buffer(length)
        try:
            view = buffer.numpy()
            self._backing = Backing(buffer, view)
            super().__init__(device, int(view.ctypes.data), length)
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

    def free(self) -> None:
        """Gives the buffer back."""
        self._device._memories.discard(self)
        self._backing.close()

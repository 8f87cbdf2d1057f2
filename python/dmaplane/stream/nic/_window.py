# SPDX-License-Identifier: MIT
"""Windows: the ranges a device may touch, as buffers and regions of the plane that has the card.

A range of the registry becomes a window when a card first has to reach it. Windows are found by
address, whole arrays at a time: sorted starts, one search.

Invariants: a window is used only while the very range it was made of is registered, so that memory
given back and taken again at the same address is never reached by an old one (L7). Windows do not
overlap, as ranges do not. The memory itself is the range's owner's.
Who owns what. Windows own their buffers and regions. The lock is about all of its fields.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import threading
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dmaplane._errors import ClosedError, DmaplaneError, LimitError, UnsupportedError
from dmaplane._scope import Scope

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable

    import numpy.typing as npt

    from dmaplane._buffer import Buffer
    from dmaplane._plane import Plane
    from dmaplane._region import Region
    from dmaplane.stream._registry import Range, Registry

WINDOWS_MAX: Final = 4096


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """A registered range as the card sees it."""

    range: Range
    buffer: Buffer
    region: Region
    offset: int
    """Where the range begins in its buffer; in its region it begins at 0."""


@dataclasses.dataclass(frozen=True, slots=True)
class Located:
    """Addresses as windows and offsets: entry i is `offsets[i]` bytes into `windows[which[i]]`."""

    windows: tuple[Window, ...]
    which: npt.NDArray[np.intp]
    offsets: npt.NDArray[np.uint64]
    touched: tuple[int, ...]
    """Which of the windows any address is in."""


def host_memory(plane: Plane, address: int, length_bytes: int) -> Buffer:
    """Memory of this process, wherever it came from, as a buffer of @plane; pins it."""
    return plane.buffer(user=(ctypes.c_uint8 * length_bytes).from_address(address))


def _opened(plane: Plane, made: Range, device: Any) -> tuple[Buffer, int]:
    """The range as a buffer of @plane, and where it begins there.

    Memory of a device is had by what the device offers: an fd that it exports, or the address by
    which this plane's own driver asks the device's. UnsupportedError says what was missing.
    """
    export: Callable[[int, int], tuple[int, int]] | None = getattr(device, "dmabuf", None)
    if made.kind == "host" or hasattr(made.owner, "buffer"):
        return host_memory(plane, made.address, made.length), 0
    folder: pathlib.Path | None = getattr(device, "pci_folder", None)
    refused: list[str] = []
    if folder is not None and plane.name == "kernel":
        try:
            return plane.buffer(made.length, peer=folder.name, peer_address=made.address), 0
        except DmaplaneError as failure:
            refused.append(f"peer memory: {failure}")
    if export is not None:
        try:
            fd, offset = export(made.address, made.length)
            try:
                return plane.import_buffer(fd), offset
            finally:
                os.close(fd)
        except (DmaplaneError, RuntimeError) as failure:  # or a driver without that call
            refused.append(f"dma-buf: {failure}")
    raise UnsupportedError(
        f"memory of {device.name} on a network card by the {plane.name} plane",
        "the kernel plane (modprobe dmaplane), or a driver whose dma-bufs can be mapped"
        + "".join(f"; {told}" for told in refused),
    )


class Windows(Scope):
    """All windows of a device on a plane."""

    def __init__(self, plane: Plane, registry: Registry, device: Any) -> None:
        self._plane = plane
        self._registry = registry
        self._device = device
        self._lock = threading.Lock()
        self._windows: list[Window] = []
        self._starts = np.empty(0, dtype=np.uint64)
        self._ends = np.empty(0, dtype=np.uint64)
        self._refusal: str | None = None

    def __len__(self) -> int:
        return len(self._windows)

    def _check(self) -> None:
        if self._refusal is not None:
            raise ClosedError(self._refusal)

    def locate(self, addresses: npt.NDArray[np.uint64]) -> Located:
        """Where @addresses are. Makes windows of ranges that have none.

        NotFoundError: an address is in no range. UnsupportedError: its memory cannot be reached.
        """
        with self._lock:
            self._check()
            while True:
                which = np.searchsorted(self._starts, addresses, side="right") - 1
                outside = which < 0
                if self._windows:
                    outside |= addresses >= self._ends[which]
                if outside.any():
                    self._open(int(addresses[int(outside.argmax())]))
                    continue
                counted = np.bincount(which, minlength=len(self._windows))
                touched = tuple(int(index) for index in np.flatnonzero(counted))
                stale = [self._windows[index] for index in touched if not self._holds(index)]
                if not stale:
                    break
                for window in stale:
                    self._drop(window)
            return Located(tuple(self._windows), which, addresses - self._starts[which], touched)

    def _holds(self, index: int) -> bool:
        """Is the range of that window still the one registered at its address?"""
        window = self._windows[index]
        if window.region.closed or window.buffer.closed:
            return False
        try:
            return self._registry.resolve(window.range.address)[0] is window.range
        except LookupError:
            return False

    def _open(self, address: int) -> None:
        made = self._registry.resolve(address)[0]
        for window in list(self._windows):  # of ranges that were there before this one
            if window.range.address < made.address + made.length and (
                made.address < window.range.address + window.range.length
            ):
                self._drop(window)
        if len(self._windows) >= WINDOWS_MAX:
            raise LimitError(f"{WINDOWS_MAX} ranges are with the card; unregister some")
        buffer, offset = _opened(self._plane, made, self._device)
        try:
            region = buffer[offset : offset + made.length].region("rw")
        except BaseException:
            buffer.close()
            raise
        self._windows.append(Window(made, buffer, region, offset))
        self._sort()

    def _sort(self) -> None:
        self._windows.sort(key=lambda window: window.range.address)
        starts = [window.range.address for window in self._windows]
        ends = [window.range.address + window.range.length for window in self._windows]
        self._starts = np.array(starts, dtype=np.uint64)
        self._ends = np.array(ends, dtype=np.uint64)

    def _drop(self, window: Window) -> None:
        self._windows.remove(window)
        self._sort()
        window.region.close()
        window.buffer.close()

    def forget(self, given: Range) -> None:
        """Drops the window of that range, if there is one: its memory is about to go."""
        with self._lock:
            for window in [one for one in self._windows if one.range is given]:
                self._drop(window)

    def close(self) -> None:
        """Drops all; idempotent."""
        with self._lock:
            if self._refusal is None:
                self._refusal = "the card's windows are closed with their device"
                while self._windows:
                    self._drop(self._windows[-1])

# SPDX-License-Identifier: MIT
"""Where copies are tried: a device, some of its memory, and registered host memory.

Bytes of the device are seen by copies back, so that the same cases run on any device.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from dmaplane import UnsupportedError
from dmaplane.stream import (
    Copies,
    CopyStream,
    Device,
    Direction,
    Operation,
    TierName,
    open_device,
    tier_of,
)
from dmaplane.stream.sim import SimDevice

LENGTH = 1 << 20
ORDER: tuple[TierName, ...] = ("batch", "kernel", "single", "staged", "bar", "nic")


def first_that_fits(copies: Copies, direction: Direction, device: Device) -> TierName:
    """A chooser that measures nothing, so that no calibration counts among a test's copies."""
    why = []
    for name in ORDER:
        refusal = tier_of(device, name).refusal(copies, direction)
        if not refusal:
            return name
        why.append(f"{name}: {refusal}")
    raise UnsupportedError(f"this copy on {device.name}", f"a tier; {'; '.join(why)}")


class Ground:
    """@device with LENGTH bytes on each side; `host` is what the tests read and write."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._pages = np.zeros(2 * LENGTH, dtype=np.uint8)
        self.host = self._pages[:LENGTH]
        self._shadow = self._pages[LENGTH:]
        self.range = device.register(int(self._pages.ctypes.data), 2 * LENGTH)
        self.memory = device.memory(LENGTH)
        self.at = int(self.host.ctypes.data)
        self.there = self.memory.address

    def stream(self, **settings: Any) -> CopyStream:
        return CopyStream(self.device, **{"choose": first_that_fits, **settings})

    def random(self, seed: int) -> np.ndarray:
        """The host's side, filled with noise; a copy of it."""
        self.host[:] = np.random.default_rng(seed).integers(0, 256, LENGTH, dtype=np.uint8)
        return self.host.copy()

    def up(self, offset: int, length: int, *, source: int | None = None) -> Copies:
        """Of one block, to @offset of the device's side."""
        return Copies.one(
            self.there + offset, self.at + (offset if source is None else source), length
        )

    def down(self, offset: int, length: int, *, source: int | None = None) -> Copies:
        """Of one block, to @offset of the host's side."""
        return Copies.one(
            self.at + offset, self.there + (offset if source is None else source), length
        )

    def seen(self) -> np.ndarray:
        """The bytes of the device's side now."""
        with self.stream() as looking:
            looking.copy(
                Copies.one(int(self._shadow.ctypes.data), self.there, LENGTH), require="batch"
            ).wait(60)
        return self._shadow.copy()

    def put(self, content: np.ndarray) -> None:
        """Makes the device's side that, whatever the host's is."""
        self._shadow[:] = content
        with self.stream() as filling:
            filling.copy(
                Copies.one(self.there, int(self._shadow.ctypes.data), LENGTH), require="batch"
            ).wait(60)

    def close(self) -> None:
        self.memory.close()
        self.device.unregister(self.range)


class Rig(Ground):
    """A ground on a simulated device, whose own methods are at hand."""

    def __init__(self, **settings: Any) -> None:
        opened = open_device("sim", **settings)
        assert isinstance(opened, SimDevice)
        self.sim = opened
        super().__init__(opened)


def until_begun(operation: Operation) -> Operation:
    """@operation, once it cannot be taken back any more."""
    end = time.monotonic() + 30
    while operation.state == "queued" and time.monotonic() < end:
        time.sleep(0.001)
    assert operation.state != "queued"
    return operation

# SPDX-License-Identifier: MIT
"""Staged copies: gathered or scattered inside the device, and one big copy over the link.

The host's side is one piece. It is walked in chunks (_chunks.py); each has a slot of device
memory while it crosses. Device to host: a kernel gathers the chunk's blocks into the slot,
then the copy engine takes the slot down. Host to device: the copy engine brings the chunk into
the slot, then a kernel scatters it. Kernels are on the lane's stream, big copies on one beside
it, so that chunk n crosses while n + 1 is gathered, or n - 1 scattered. Events tie them
together:

- a slot is written again only after what read it last (`freed`);
- it is read only after what wrote it (`filled`);
- what goes up begins after what the lane did before; the lane goes on after what goes down.

So to the lane the whole call is in order. Each slot has its two events for good and they are
recorded again each time: a wait is bound to what had been recorded when it was asked for.

From one thread at a time, that of its lane; copy() with the context current.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dmaplane._errors import CopyError
from dmaplane.stream.cuda._chunks import chunks
from dmaplane.stream.cuda._events import UNTIMED
from dmaplane.stream.cuda._launch import bounded

if TYPE_CHECKING:
    from dmaplane.stream._copies import Copies, Direction
    from dmaplane.stream.cuda._chunks import Chunk
    from dmaplane.stream.cuda._device import CudaDevice
    from dmaplane.stream.cuda._lane import CudaLane


class Staging:
    """Slots of one lane, and the stream beside it."""

    __slots__ = (
        "_began",
        "_device",
        "_events",
        "_filled",
        "_freed",
        "_lane",
        "_memory",
        "_side",
        "_turn",
        "_used",
    )

    def __init__(self, lane: CudaLane, device: CudaDevice) -> None:
        settings = device.settings
        self._lane = lane
        self._device = device
        self._used = [False] * settings.slots
        self._turn = 0
        self._events: list[Any] = []
        self._side: Any = device.new_stream()
        try:
            for _ in range(1 + 2 * settings.slots):
                self._events.append(device.call("cuEventCreate", UNTIMED))
            self._memory: int = device.raw_memory(settings.slots * settings.slot_bytes)
        except BaseException:
            self._release()
            raise
        self._began = self._events[0]
        self._filled = self._events[1 : 1 + settings.slots]
        self._freed = self._events[1 + settings.slots :]

    def copy(self, direction: Direction, copies: Copies) -> None:
        """Puts all of @copies at the end of the lane."""
        extent = copies.extent(direction)
        if extent is None:
            raise CopyError(
                "staged: the host's side is not in one piece; take an extent of a HostPool, or "
                "another tier"
            )
        slot_bytes, main = self._device.settings.slot_bytes, self._lane.stream
        put = self._down if direction == "d2h" else self._up
        if direction == "h2d":
            self._record(self._began, main)
            self._after(self._side, self._began)
        slot = 0
        for chunk in chunks(copies, direction, extent, slot_bytes):
            slot = self._turn % len(self._used)
            self._turn += 1
            put(slot, self._memory + slot * slot_bytes, chunk)
            self._used[slot] = True
        if direction == "d2h":
            self._after(main, self._freed[slot])

    def _down(self, slot: int, address: int, chunk: Chunk) -> None:
        main, side = self._lane.stream, self._side
        if self._used[slot]:
            self._after(main, self._freed[slot])
        self._move(address, chunk)
        self._record(self._filled[slot], main)
        self._after(side, self._filled[slot])
        self._cross("d2h", address, chunk)
        self._record(self._freed[slot], side)

    def _up(self, slot: int, address: int, chunk: Chunk) -> None:
        main, side = self._lane.stream, self._side
        if self._used[slot]:
            self._after(side, self._freed[slot])
        self._cross("h2d", address, chunk)
        self._record(self._filled[slot], side)
        self._after(main, self._filled[slot])
        self._move(address, chunk)
        self._record(self._freed[slot], main)

    def _move(self, address: int, chunk: Chunk) -> None:
        settings = self._device.settings
        whole = chunk.launch(address)
        for launch in bounded(whole, descriptor_bytes=settings.descriptor_bytes // 2):
            self._lane.start(
                launch, "d2d", groups=settings.gather_groups, threads=settings.gather_threads
            )

    def _cross(self, direction: Direction, address: int, chunk: Chunk) -> None:
        for offset, part in self._device.pieces_of(chunk.host, chunk.length):
            self._device.one_copy(
                direction,
                device_address=address + offset,
                host_address=chunk.host + offset,
                length=part,
                stream=self._side,
            )

    def _record(self, event: Any, stream: Any) -> None:
        self._device.inside("cuEventRecord", event, stream)

    def _after(self, stream: Any, event: Any) -> None:
        self._device.inside("cuStreamWaitEvent", stream, event, 0)

    def drain(self) -> None:
        """Waits for the stream beside the lane."""
        self._device.drain(self._side)

    def close(self) -> None:
        """Gives slots and stream back; nothing runs on them any more."""
        self._release()
        self._device.call("cuMemFree", self._memory)

    def _release(self) -> None:
        self._device.call("cuStreamDestroy", self._side)
        while self._events:
            self._device.call("cuEventDestroy", self._events.pop())

# SPDX-License-Identifier: MIT
"""A lane of a cuda device: one stream of the driver, and what its tiers need beside it.

A lane is one stream, not one a direction: its calls are ordered, so two streams would only
have to wait for each other at each turn. Two directions at once are two lanes.

Invariants: everything a call does ends before what is put in the lane after it begins. If a
call fails half way, what of it had been started has ended before the error is raised, so
whoever gets it may free the memory; where that does not end, DeviceLostError says so.

From one thread at a time, its stream's. The device's close() may come from another, so each
call has a turn (`_turn`), and close() waits for the one under way.

Who owns what. The lane owns its stream, its descriptors' ring and its staging slots; close()
waits for the stream and frees them, or, if the device is stuck, leaves them for ever.
"""

from __future__ import annotations

import ctypes
import threading
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from dmaplane._errors import (
    ClosedError,
    CopyError,
    DeviceLostError,
    DmaplaneError,
    InvalidError,
    UnsupportedError,
)
from dmaplane.stream.cuda import _bar
from dmaplane.stream.cuda._descriptors import DescriptorRing
from dmaplane.stream.cuda._entries import INLINE_BYTES, BatchAttributes, InlineArguments
from dmaplane.stream.cuda._events import CudaMarker
from dmaplane.stream.cuda._launch import Launch, launches
from dmaplane.stream.cuda._program import BULK, BULK_SINCE, copy_program
from dmaplane.stream.cuda._settings import ORDERS
from dmaplane.stream.cuda._staging import Staging

if TYPE_CHECKING:
    from dmaplane.stream._copies import Copies, Direction
    from dmaplane.stream._device import TierName
    from dmaplane.stream.cuda._device import CudaDevice
    from dmaplane.stream.cuda._entries import Shape

Way = Literal["h2d", "d2h", "d2d"]
_OVERLAP_SINCE: Final = 13010


def batch_attributes(*, order: str, overlap: bool, version: int) -> BatchAttributes:
    """How a batch may read. `overlap` means what it says from CUDA 13.1 on, and is left out
    before."""
    return BatchAttributes(
        order=ORDERS[order],  # type: ignore[index]
        flags=int(overlap and version >= _OVERLAP_SINCE),
    )


def inlined(launch: Launch) -> InlineArguments:
    """The arguments of a launch that carries its descriptors itself.

    Where an array begins is told as 1 + its place, so that 0 can mean that there is none.
    """
    made = InlineArguments()
    room = np.frombuffer(memoryview(made), dtype=np.uint8)[InlineArguments.inlined.offset :]
    places = [0, 0, 0]
    at = 0
    for number, array in enumerate((launch.sources, launch.destinations)):
        if array is not None:
            data = np.ascontiguousarray(array).view(np.uint8)
            room[at : at + len(data)] = data
            places[number] = 1 + at
            at += -(-len(data) // 16) * 16
    made.copy = launch.arguments((places[0], places[1], 0))
    return made


class CudaLane:
    """An ordered queue on a cuda device. Made by CudaDevice.lane()."""

    __slots__ = (
        "__weakref__",
        "_attributes",
        "_closed",
        "_device",
        "_functions",
        "_ring",
        "_staging",
        "_stream",
        "_turn",
    )

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self._closed = False
        self._turn = threading.RLock()
        self._ring: DescriptorRing | None = None
        self._staging: Staging | None = None
        self._functions: dict[str, int] = {}
        self._attributes = batch_attributes(
            order=device.settings.order,
            overlap=device.settings.overlap,
            version=device.driver.version,
        )
        self._stream: Any = device.new_stream()

    @property
    def stream(self) -> Any:
        """The driver's handle of it."""
        return self._stream

    def __cuda_stream__(self) -> tuple[int, int]:
        """So that others can put work behind ours."""
        self._check()
        return 0, int(self._stream)

    def _check(self) -> None:
        if self._closed:
            raise ClosedError(f"a lane of {self._device.name} is closed")
        self._device._check()
        self._device.raise_if_lost()

    def execute(self, tier: TierName, direction: Direction, copies: Copies) -> None:
        """Puts @copies at the end; returns before they are done."""
        with self._turn:
            self._check()
            with self._device.current():
                try:
                    self._put(tier, direction, copies)
                except DeviceLostError:
                    raise
                except DmaplaneError as error:
                    # A part of it may be on its way: nobody may free what it touches before that.
                    self.drain()
                    if isinstance(error, CopyError):
                        raise
                    raise CopyError(f"{tier}: {error}", errno=error.errno) from error

    def _put(self, tier: TierName, direction: Direction, copies: Copies) -> None:
        if tier == "single":
            self._single(direction, copies)
        elif tier == "batch":
            self._batch(direction, copies)
        elif tier == "kernel":
            self._kernel(direction, copies)
        elif tier == "staged":
            self._staged(direction, copies)
        elif tier == "bar":
            self._bar(direction, copies)
        else:
            raise UnsupportedError(f"tier {tier}", "with_network(device), for a network card")

    def _single(self, direction: Direction, copies: Copies) -> None:
        """A call of the driver a copy: the one tier whose cost is a loop, by what it is."""
        runs = self._device.registry.cut(copies.merged())
        to, out, lengths = self._device.cut(direction, runs)
        one = (
            self._device.driver.entries.up
            if direction == "h2d"
            else self._device.driver.entries.down
        )
        stream = int(self._stream)
        for destination, source, length in zip(
            to.tolist(), out.tolist(), lengths.tolist(), strict=True
        ):
            code = one(destination=destination, source=source, length=length, stream=stream)
            if code:
                raise self._device.failed(code, "cuMemcpyAsync")

    def _batch(self, direction: Direction, copies: Copies) -> None:
        runs = self._device.registry.cut(copies.merged())
        to, out, lengths = self._device.cut(direction, runs)
        entries, step = self._device.driver.entries, self._device.settings.batch_max
        if not entries.batch_form:
            raise UnsupportedError("a batched copy", "a driver of CUDA 12.8 or later")
        for first in range(0, len(lengths), step):
            code, failed = entries.batch(
                destinations=to[first : first + step],
                sources=out[first : first + step],
                lengths=lengths[first : first + step],
                attributes=self._attributes,
                stream=int(self._stream),
            )
            if code:
                which = "" if failed is None else f", copy {first + failed} of the merged ones"
                raise self._device.failed(code, f"cuMemcpyBatchAsync{which}")

    def _kernel(self, direction: Direction, copies: Copies) -> None:
        settings = self._device.settings
        self._device.note_work()
        for launch in launches(copies, descriptor_bytes=settings.descriptor_bytes // 2):
            self.start(launch, direction, groups=settings.groups, threads=settings.threads)

    def _staged(self, direction: Direction, copies: Copies) -> None:
        self._device.note_work()
        if self._staging is None:
            self._staging = Staging(self, self._device)
        self._staging.copy(direction, copies)

    def _bar(self, direction: Direction, copies: Copies) -> None:
        """By the processor, once the lane is empty: what is before it has ended then."""
        self.drain()
        _bar.store_blocks(self._device, direction, copies)

    def start(self, launch: Launch, way: Way, *, groups: int, threads: int) -> None:
        """Starts one kernel that copies @launch. Within execute()."""
        device, settings = self._device, self._device.settings
        by_bulk = (
            settings.engine == "bulk"
            and way != "d2d"
            and launch.bulk
            and device.kernels.architecture >= BULK_SINCE
        )
        small = launch.lengths is None and launch.descriptor_bytes <= INLINE_BYTES
        shape = launch.shape(groups=groups, threads=threads)
        if not launch.descriptor_bytes and not by_bulk:
            function = self._function(f"{launch.form}_{way}_{launch.word}", launch.word)
            self._run(function, shape, launch.arguments((0, 0, 0)))
            return
        if small and not by_bulk:
            function = self._function(f"{launch.form}_{way}_inline_{launch.word}", launch.word)
            self._run(function, shape, inlined(launch))
            return
        ring = self._descriptors()
        arrays = tuple(None if one is None else np.ascontiguousarray(one) for one in launch.arrays)
        first, second, third = ring.put(arrays)
        try:
            arguments = launch.arguments((first, second, third), bulk=by_bulk)
            if by_bulk:
                shape = launch.bulk_shape(groups=groups, slots=settings.bulk_slots)
                name = f"bulk_{launch.form}_{settings.bulk_slots}"
                function = device.kernels.function(BULK, name, shared_bytes=shape.shared_bytes)
            else:
                function = self._function(f"{launch.form}_{way}_{launch.word}", launch.word)
            self._run(function, shape, arguments)
        finally:
            ring.seal(CudaMarker(device, device.ties, self._stream))

    def _function(self, name: str, word: int) -> int:
        """A copying kernel's handle; a look-up by name once it is known."""
        known = self._functions.get(name)
        if known is None:
            program = copy_program(word, self._device.settings.hint)
            known = self._functions[name] = self._device.kernels.function(program, name)
        return known

    def _run(self, function: int, shape: Shape, arguments: ctypes.Structure) -> None:
        code = self._device.driver.entries.launch(
            function, shape, arguments, stream=int(self._stream)
        )
        if code:
            raise self._device.failed(code, "cuLaunchKernel")

    def _descriptors(self) -> DescriptorRing:
        if self._ring is None:
            size = self._device.settings.descriptor_bytes
            address = self._device.pinned(size)
            self._ring = DescriptorRing(
                address,
                size,
                reach=self._device.reach,
                free=lambda: self._device.call("cuMemFreeHost", address),
            )
        return self._ring

    def mark(self) -> CudaMarker:
        """A mark after all that is in it now."""
        with self._turn:
            self._check()
            return CudaMarker(self._device, self._device.events, self._stream)

    def wait_for(self, what: Any) -> None:
        """What is executed from now on begins after @what, a mark of a cuda lane."""
        if not isinstance(what, CudaMarker):
            raise InvalidError(
                "what",
                f"{type(what).__name__} is no mark of a cuda lane",
                fix="CudaDevice.capture() makes one of a stream of your own",
            )
        with self._turn:
            self._check()
            self._device.call("cuStreamWaitEvent", self._stream, what.event, 0)

    def drain(self) -> None:
        """Waits until everything in it has ended; DeviceLostError after `patience_s`."""
        with self._turn:
            self._device.drain(self._stream)
            if self._staging is not None:
                self._staging.drain()

    def close(self) -> None:
        """Ends it; what has begun ends first. Idempotent.

        If that does not end the device is lost, and nothing of the lane is freed.
        """
        if self._device.closed:  # and with it, or in a forked child
            self._closed = True
            return
        # Whoever has the turn waits at most as long for anything, but a call of the driver's
        # that never comes back would have it for ever.
        if not self._turn.acquire(timeout=self._device.settings.patience_s):
            self._closed = True
            self._device.give_up("a call that puts copies in a lane has not returned")
            return
        try:
            if self._closed:
                return
            self._closed = True
            self._device._drop(self)
            self.drain()
            if self._staging is not None:
                self._staging.close()
            if self._ring is not None:
                self._ring.close()
            self._device.call("cuStreamDestroy", self._stream)
        except DeviceLostError:
            return  # the driver freed all of it when the context died, or it is stuck
        finally:
            self._turn.release()

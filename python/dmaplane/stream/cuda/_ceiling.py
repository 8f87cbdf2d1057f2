# SPDX-License-Identifier: MIT
"""What the processors and the copy engine of a device reach at most over the link.

Every figure of a copying kernel is worth something only beside these: the same link gives
reads of a kernel 51 GB/s on one machine and 36 on another. Nothing here copies anybody's
data; the ranges have to be registered, and writes fill them with a pattern.

What has not ended after `patience_s` is DeviceLostError, as everywhere on a cuda device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dmaplane._errors import InvalidError
from dmaplane.stream.cuda._entries import Shape, SweepArguments
from dmaplane.stream.cuda._events import CudaMarker
from dmaplane.stream.cuda._program import CEILING, HINTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from dmaplane.stream.cuda._device import CudaDevice
    from dmaplane.stream.cuda._program import Hint

InFlight = Literal[2, 4, 8]


def processor_bytes_per_second(
    device: CudaDevice,
    *,
    access: Literal["read", "write"],
    address: int,
    length: int,
    groups: int,
    threads: int = 256,
    in_flight: InFlight = 8,
    hint: Hint = "streaming",
    turns: int = 4,
) -> float:
    """Bytes a second the device's processors read or write, one after the other.

    @in_flight: words of 16 bytes a lane has on its way. @turns: sweeps that are timed.
    """
    if access not in ("read", "write") or in_flight not in (2, 4, 8) or hint not in HINTS:
        raise InvalidError(
            "access, in_flight, hint",
            f"{access!r}, {in_flight}, {hint!r}",
            fix=f"read or write; 2, 4 or 8; one of {', '.join(HINTS)}",
        )
    if length < in_flight * 512 or not 0 < groups <= 1024 or threads % 32 or threads > 512:
        raise InvalidError("length, groups, threads", "too small or too large", fix="see copy.cu")
    device.registry.resolve(address)
    device.registry.resolve(address + length - 1)
    whole = length - length % (in_flight * 512)
    function = device.kernels.function(CEILING, f"{access}_{in_flight}_{hint}")
    arguments = SweepArguments(base=address, bytes=whole)

    def start(stream: int) -> int:
        return device.driver.entries.launch(
            function, Shape(groups, threads), arguments, stream=stream
        )

    return whole * turns / seconds_of(device, start, "cuLaunchKernel", turns=turns)


def engine_bytes_per_second(
    device: CudaDevice,
    *,
    direction: Literal["h2d", "d2h"],
    device_address: int,
    host_address: int,
    length: int,
    turns: int = 4,
) -> float:
    """Bytes a second of one big copy after the other by the copy engine."""
    entries = device.driver.entries

    def start(stream: int) -> int:
        if direction == "h2d":
            return entries.up(
                destination=device_address, source=host_address, length=length, stream=stream
            )
        return entries.down(
            destination=host_address, source=device_address, length=length, stream=stream
        )

    return length * turns / seconds_of(device, start, "cuMemcpyAsync", turns=turns)


def burn_seconds(device: CudaDevice, *, groups: int, turns: int) -> float:
    """Seconds of a kernel that only computes, on @groups groups of 512 threads.

    Run it in another thread beside copies to see what they cost it.
    """
    function = device.kernels.function(CEILING, "burn")
    arguments = SweepArguments(turns=turns)

    def start(stream: int) -> int:
        return device.driver.entries.launch(function, Shape(groups, 512), arguments, stream=stream)

    return seconds_of(device, start, "cuLaunchKernel", turns=1)


def seconds_of(device: CudaDevice, start: Callable[[int], int], call: str, *, turns: int) -> float:
    """Seconds, by the device's clock, of @turns starts after one that is not timed."""
    stream = device.new_stream()
    try:
        first: CudaMarker | None = None
        for turn in range(turns + 1):
            if turn == 1:
                first = CudaMarker(device, device.events, stream)
            with device.current():
                code = start(int(stream))
            if code:
                raise device.failed(code, call)
        last = CudaMarker(device, device.events, stream)
        device.reach(last)
        assert first is not None
        return last.seconds_since(first)
    finally:
        device.drain(stream)
        device.call("cuStreamDestroy", stream)

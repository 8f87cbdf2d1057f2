# SPDX-License-Identifier: MIT
"""What a stream needs of a device: memory, registration, tiers, lanes and marks.

A device is one of these protocols' classes: `sim` (dmaplane.stream.sim), `cuda`
(dmaplane.stream.cuda), or one of them with a tier more. A stream asks none which it is.

What holds for each of them:
- A lane is in order: what is executed after something begins after that has ended. Lanes of one
  device have no order among themselves but by wait_for().
- A mark is reached when all before it on its lane has ended. It raises what failed since the
  mark before it, and from the moment a device is lost every mark of it raises that.
- A tier that is not there says why.
- A device is the parent of its memory, registrations and lanes: close() ends them first.
"""

from __future__ import annotations

import abc
import dataclasses
import importlib
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, cast

from dmaplane._errors import ClosedError, InvalidError, UnsupportedError
from dmaplane._scope import Scope

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from dmaplane.stream._copies import Copies, Direction
    from dmaplane.stream._registry import Range, Registry

TierName = Literal["single", "batch", "kernel", "staged", "bar", "nic"]
TIERS: Final[tuple[TierName, ...]] = ("single", "batch", "kernel", "staged", "bar", "nic")
BLOCK_MAX: Final = 1 << 44


@dataclasses.dataclass(frozen=True, slots=True)
class Tier:
    """A way to copy, and whether this device has it."""

    name: TierName
    available: bool
    reason: str = ""
    """Why it is not available; "" if it is."""
    directions: tuple[Direction, ...] = ("h2d", "d2h")
    needs_extent: bool = False
    """The host's side must be one piece."""
    busy_penalty: float = 1.0
    """Times as long while the device's processors are busy with something else."""
    smallest: int = 1
    """Bytes of the shortest block it takes."""
    largest: int = BLOCK_MAX
    """Bytes of the longest block it takes."""
    merges: bool = False
    """Neighbours on both sides are one block to it: it costs what merged() would."""

    def refusal(self, copies: Copies, direction: Direction) -> str:
        """Why it may not do these; "" if it may."""
        if not self.available:
            return self.reason
        if direction not in self.directions:
            return f"it goes {' and '.join(self.directions)} only"
        one = copies.length
        shortest, longest = (
            (one, one) if one else (int(copies.lengths.min()), int(copies.lengths.max()))
        )
        if shortest < self.smallest or longest > self.largest:
            return (
                f"it takes blocks of {self.smallest} .. {self.largest} bytes, "
                f"these are {shortest} .. {longest}"
            )
        if self.needs_extent and copies.extent(direction) is None:
            return "it needs the host's side in one piece: an extent of a HostPool"
        return ""


class DeviceMemory(Scope):
    """Memory of a device, its own from memory() to close().

    close() is BusyError while a copy touches it, and it stays.
    """

    __slots__ = ("__weakref__", "address", "length")

    def __init__(self, address: int, length: int) -> None:
        self.address = address
        self.length = length


class OwnMemory(DeviceMemory):
    """Memory that a device has allocated itself: in its registry for as long as it is open."""

    __slots__ = ("_device", "_range")

    def __init__(self, device: Device, address: int, length: int) -> None:
        super().__init__(address, length)
        self._device = device
        self._range: Range | None = None

    @abc.abstractmethod
    def free(self) -> None:
        """Gives the allocation back, without asking the registry: the device's close(), too."""

    def _check(self) -> None:
        if self._range is None or self._device.closed:
            what = f"{self.length} bytes at {self.address:#x} of {self._device.name}"
            raise ClosedError(f"{what} are closed")

    def close(self) -> None:
        """Frees it; idempotent. BusyError while a copy touches it."""
        given = self._range
        if given is None or self._device.closed:
            return
        self._device.registry.release(given)
        self._range = None
        self.free()

    def __repr__(self) -> str:
        state = "closed" if self._range is None or self._device.closed else f"{self.length} bytes"
        return f"<memory of {self._device.name} at {self.address:#x}, {state}>"


class Marker(Protocol):
    """A place in a lane."""

    def reached(self) -> bool:
        """True once all before it has ended. Does not block.

        Raises the CopyError of what was executed between the mark before it and this one, or
        DeviceLostError; each time it is asked.
        """

    def wait(self, timeout: float | None) -> bool:
        """Blocks until it is reached, at most @timeout seconds; raises as reached()."""

    def seconds_since(self, earlier: Marker) -> float:
        """Seconds by the device's clock between two marks of its lanes, both reached."""


class Lane(Protocol):
    """An ordered queue on a device. From one thread at a time."""

    def execute(self, tier: TierName, direction: Direction, copies: Copies) -> None:
        """Puts @copies at the end; need not wait until they are done.

        The tier is one that may take them, and the registry holds what they touch. CopyError:
        this call could not be put there, others can. DeviceLostError: none can. After either
        nothing of the call is moving: its ranges are let go.
        """

    def mark(self) -> Marker:
        """A mark after all that is in it now."""

    def wait_for(self, what: Any) -> None:
        """What is executed from now on begins after @what, a mark of this device.

        InvalidError if it is not one.
        """

    def close(self) -> None:
        """Ends it; what has begun ends first, marks not reached raise ClosedError. Idempotent."""


class Device(Protocol):
    """A device with memory of its own."""

    @property
    def name(self) -> str:
        """ "sim", "cuda:0"."""

    @property
    def identity(self) -> str:
        """Changes when what copies cost may have: device, driver, link. The key of a profile."""

    @property
    def node(self) -> int | None:
        """The NUMA node it is on, if that is known."""

    @property
    def registry(self) -> Registry:
        """What its copies may touch."""

    @property
    def closed(self) -> bool:
        """True after close()."""

    def tiers(self) -> tuple[Tier, ...]:
        """Every way to copy, those that are not there too."""

    def memory(self, length: int) -> DeviceMemory:
        """Memory of its own, registered; content undefined."""

    def register(self, address: int, length: int) -> Range:
        """Lets it touch host memory, which has to stay until unregister()."""

    def unregister(self, given: Range) -> None:
        """Ends that; BusyError while a copy touches it."""

    def lane(self) -> Lane:
        """A new ordered queue."""

    def capture(self, foreign: Any) -> Marker:
        """A mark of what is now in a stream of the caller's own (of CUDA, of torch). Any thread.

        InvalidError if it is nothing this device knows.
        """

    def follow(self, foreign: Any, marker: Marker) -> None:
        """What the caller puts in his stream from now on begins after @marker. Any thread."""

    def busy(self) -> bool:
        """True if its processors are known to be busy with something that is not ours."""

    def close(self) -> None:
        """Ends lanes, registrations and memory, then itself; idempotent."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def tier_of(device: Device, name: TierName) -> Tier:
    """The tier of that name; one that is not available if the device does not list it."""
    if name not in TIERS:
        raise InvalidError("tier", f"{name!r} is none", fix=f"one of {', '.join(TIERS)}")
    for tier in device.tiers():
        if tier.name == name:
            return tier
    return Tier(name, available=False, reason=f"{device.name} has no such way")


def open_device(name: str = "auto", **settings: Any) -> Device:
    """Opens a device: "sim", "cuda" (the first one), "cuda:1"; "auto" is cuda where it is there.

    UnsupportedError says what is missing and how to get it. What was asked for is never
    replaced by something else: the simulation is for who names it. @settings: those of the
    device, see dmaplane.stream.sim.SimDevice and dmaplane.stream.cuda.
    """
    kind, _, number = name.partition(":")
    if kind == "sim" and not number:
        from dmaplane.stream.sim import SimDevice

        return SimDevice(**settings)
    if kind not in ("auto", "cuda") or (number and not number.isdecimal()) or len(number) > 4:
        raise InvalidError("device", f"{name!r} is none", fix='"auto", "cuda", "cuda:1" or "sim"')
    if kind == "auto" and number:
        raise InvalidError("device", f"{name!r} is none", fix=f'"auto", or "cuda:{number}"')
    # By its name, so that nothing of CUDA is looked for before a device is asked for.
    cuda = importlib.import_module("dmaplane.stream.cuda")
    try:
        return cast("Device", cuda.open_cuda(int(number or 0), **settings))
    except UnsupportedError as missing:
        if kind == "cuda":
            raise
        raise UnsupportedError(
            'open_device("auto")',
            f'{missing.needs}; or name the simulation: open_device("sim")',
        ) from missing

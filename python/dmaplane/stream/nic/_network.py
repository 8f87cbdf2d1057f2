# SPDX-License-Identifier: MIT
"""A device with a network card beside it: all its own tiers, and "nic" (T5).

A copy by "nic" costs the device's processors nothing: the card reads the one side and writes the
other. Everything else is the device's own, passed through.

A lane of this device is one of the device's and a way through the card. A copy by "nic" begins
when all before it in the lane has ended, and the lane takes nothing more until it has: so the order
is that of the calls whichever tiers they take. It is the stream's own thread that waits.

Invariants: the card is the one that was asked for, and its way is proven when the device is made,
or that is an error (L8, L9). A way that is lost ends the tier, with the reason, not the device.
Who owns what. This device owns the plane (unless it was given one), the windows and the ways, and
closes the device it wraps. The lock is about `_ways`, `_lanes` and `_lost`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import pathlib
import threading
import time
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from dmaplane._errors import (
    ClosedError,
    CopyError,
    DmaplaneError,
    InvalidError,
    NotFoundError,
    PeerLostError,
    UnsupportedError,
)
from dmaplane._library import verbs_missing
from dmaplane._open import open as open_plane
from dmaplane._scope import Scope
from dmaplane.stream._device import DeviceMemory, Tier
from dmaplane.stream.nic._card import Card, cards, choose, pci_place
from dmaplane.stream.nic._way import Fabric, FailedMoveError, Moves, Way
from dmaplane.stream.nic._window import Located, Windows

if TYPE_CHECKING:
    from dmaplane._plane import Plane
    from dmaplane.stream._copies import Copies, Direction
    from dmaplane.stream._device import Device, Lane, Marker, TierName
    from dmaplane.stream._registry import Range, Registry

_SLICE_S: Final = 0.2
"""Who waits for a lane looks this often whether it was closed meanwhile."""


class NetworkMarker:
    """A mark of the device's lane, and what of the card's work it stands behind."""

    __slots__ = ("_owed", "inner", "seconds")

    def __init__(self, inner: Marker, seconds: float, owed: CopyError | None) -> None:
        self.inner = inner
        self.seconds = seconds
        self._owed = owed

    def reached(self) -> bool:
        """As the device's; all of the card's work before it had ended when it was made."""
        reached = self.inner.reached()
        if reached and self._owed is not None:
            raise self._owed
        return reached

    def wait(self, timeout: float | None) -> bool:
        """As the device's."""
        reached = self.inner.wait(timeout)
        if reached and self._owed is not None:
            raise self._owed
        return reached

    def seconds_since(self, earlier: Marker) -> float:
        """By the device's clock, but at least what the card took in between.

        A device's clock that runs on includes the card's work; a modelled one knows nothing of it.
        """
        if not isinstance(earlier, NetworkMarker):
            return self.inner.seconds_since(earlier)
        return max(self.inner.seconds_since(earlier.inner), self.seconds - earlier.seconds)


class NetworkLane:
    """A lane of the device, and a way through the card. From one thread at a time."""

    def __init__(self, device: NetworkDevice, inner: Lane) -> None:
        self._device = device
        self.inner = inner
        self._way: Way | None = None
        self._seconds = 0.0
        self._owed: CopyError | None = None
        self._closed = False

    def execute(self, tier: TierName, direction: Direction, copies: Copies) -> None:
        """As the device's; by "nic" it is done when this returns. CopyError: it failed."""
        if tier != "nic":
            self.inner.execute(tier, direction, copies)
            return
        self._until_here()
        begin = time.perf_counter()
        try:
            self._carry(direction, copies)
        except CopyError:
            raise
        except PeerLostError as lost:
            self._device._lose(lost)
            raise CopyError(f"the network card's way is lost: {lost}", errno=lost.errno) from lost
        except DmaplaneError as failure:
            raise CopyError(f"by the network card: {failure}", errno=failure.errno) from failure
        finally:
            self._seconds += time.perf_counter() - begin

    def _until_here(self) -> None:
        """Returns when what is in the lane has ended."""
        mark = self.inner.mark()
        try:
            while not mark.wait(_SLICE_S):
                if self._closed:
                    raise CopyError("the lane was closed before this copy began")
        except ClosedError as closed:
            raise CopyError("the lane was closed before this copy began") from closed
        except CopyError as failure:
            if self._closed:
                raise
            self._owed = failure  # of a call before this one: the next mark says so

    def _carry(self, direction: Direction, copies: Copies) -> None:
        if self._way is None:
            self._way = self._device._take_way()
        way, windows = self._way, self._device._windows
        sources, targets = windows.locate(copies.sources), windows.locate(copies.destinations)
        moves = _moves(way, sources, targets, copies)
        try:
            way.write(moves)
        except FailedMoveError as failed:
            raise CopyError(
                f"copy {failed.index} of {copies.count} by the network card: {failed.cause}",
                errno=failed.errno,
            ) from failed
        if direction == "h2d":
            scratch = self._device._scratch
            for index in targets.touched:
                way.settle(scratch, way.region(targets.windows[index].region))

    def mark(self) -> NetworkMarker:
        """A mark after all that is in it now."""
        owed, self._owed = self._owed, None
        return NetworkMarker(self.inner.mark(), self._seconds, owed)

    def wait_for(self, what: Any) -> None:
        """As the device's."""
        self.inner.wait_for(what.inner if isinstance(what, NetworkMarker) else what)

    def close(self) -> None:
        """Ends the device's lane and the way; idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            self.inner.close()
        finally:
            self._device._leave(self)
            if self._way is not None:
                self._way.close()


def _moves(way: Way, sources: Located, targets: Located, copies: Copies) -> Moves:
    """@copies as WRITEs: source windows by buffer, destination windows by region."""
    buffers = np.zeros(len(sources.windows), dtype=np.uint32)
    shifts = np.zeros(len(sources.windows), dtype=np.uint64)
    for index in sources.touched:
        buffers[index] = sources.windows[index].buffer.id
        shifts[index] = sources.windows[index].offset
    regions = np.zeros(len(targets.windows), dtype=np.uint32)
    for index in targets.touched:
        regions[index] = way.region(targets.windows[index].region)
    return Moves(
        buffers=buffers[sources.which],
        buffer_offsets=sources.offsets + shifts[sources.which],
        regions=regions[targets.which],
        region_offsets=targets.offsets,
        lengths=copies.lengths,
    )


class NetworkMemory(DeviceMemory):
    """Memory of the device; the card lets go of it first."""

    __slots__ = ("_device", "inner")

    def __init__(self, device: NetworkDevice, inner: DeviceMemory) -> None:
        super().__init__(inner.address, inner.length)
        self._device = device
        self.inner = inner

    def _check(self) -> None:
        self.inner._check()

    def close(self) -> None:
        """As the device's; idempotent. While a copy touches it, the card keeps it, too."""
        if not self._device.closed:
            self._device._let_go(self.address, self.length)
        self.inner.close()

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # not made yet
            raise AttributeError(name)
        return getattr(self.inner, name)


class NetworkDevice(Scope):
    """@inner with the tier "nic" by @card. Made by with_network()."""

    def __init__(
        self, inner: Device, card: Card, *, plane: Plane, fabric: Fabric = "verbs"
    ) -> None:
        self.inner = inner
        self.card = card
        self._plane = plane
        self._fabric: Fabric = fabric
        self._lock = threading.Lock()
        self._lanes: list[NetworkLane] = []
        self._lost: DmaplaneError | None = None
        self._closed = False
        self._windows = Windows(plane, inner.registry, inner)
        buffer = plane.buffer(plane.limits.page_bytes)
        self._scratch = buffer.id
        self._scratch_buffer = buffer
        try:
            self._ways = [Way(plane, card.listen_address, fabric=fabric)]
        except BaseException:
            buffer.close()
            raise

    @property
    def name(self) -> str:
        """The device's own."""
        return self.inner.name

    @property
    def identity(self) -> str:
        """The device's own, and the card, where it is met and who drives it."""
        return f"{self.inner.identity}+{self._plane.name}:{self.card.address}:{self.card.name}"

    @property
    def node(self) -> int | None:
        """The device's own."""
        return self.inner.node

    @property
    def registry(self) -> Registry:
        """The device's own."""
        return self.inner.registry

    @property
    def closed(self) -> bool:
        """True after close()."""
        return self._closed or self.inner.closed

    def _check(self) -> None:
        if self.closed:
            raise ClosedError(f"{self.name} with {self.card.name} is closed")

    def tiers(self) -> tuple[Tier, ...]:
        """The device's own, and "nic"."""
        lost = self._lost
        reason = "" if lost is None else f"the way through {self.card.name} was lost: {lost}"
        own = tuple(tier for tier in self.inner.tiers() if tier.name != "nic")
        return (*own, Tier("nic", available=lost is None, reason=reason))

    def memory(self, length: int) -> NetworkMemory:
        """Memory of the device, with the card at once: what it refuses is an error here (L9)."""
        made = NetworkMemory(self, self.inner.memory(length))
        try:
            self._windows.locate(np.array([made.address], dtype=np.uint64))
        except BaseException:
            made.close()
            raise
        return made

    def register(self, address: int, length: int) -> Range:
        """Lets the device and the card touch host memory, which has to stay till unregister()."""
        made = self.inner.register(address, length)
        try:
            self._windows.locate(np.array([address], dtype=np.uint64))
        except BaseException:
            self.inner.unregister(made)
            raise
        return made

    def unregister(self, given: Range) -> None:
        """Ends that; BusyError while a copy touches it, and the card keeps it, too."""
        self.inner.unregister(given)
        # Behind it: from here on no copy can begin that would need its window.
        self._windows.forget(given)

    def lane(self) -> NetworkLane:
        """A new ordered queue."""
        made = NetworkLane(self, self.inner.lane())
        with self._lock:
            self._lanes.append(made)
        return made

    def busy(self) -> bool:
        """The device's own."""
        return self.inner.busy()

    def capture(self, foreign: Any) -> Marker:
        """As the device's; @foreign may be a lane of this one."""
        return self.inner.capture(foreign.inner if isinstance(foreign, NetworkLane) else foreign)

    def follow(self, foreign: Any, marker: Marker) -> None:
        """As the device's: what the card did before the mark was done when it was made."""
        inner = marker.inner if isinstance(marker, NetworkMarker) else marker
        self.inner.follow(foreign.inner if isinstance(foreign, NetworkLane) else foreign, inner)

    def _take_way(self) -> Way:
        """One that nobody has: the one that was proven, or another like it."""
        with self._lock:
            if self._lost is not None:
                raise CopyError(f"the way through {self.card.name} was lost: {self._lost}")
            if self._ways:
                return self._ways.pop()
        return Way(self._plane, self.card.listen_address, fabric=self._fabric)

    def _let_go(self, address: int, length: int) -> None:
        """The card's rights end before the memory does; BusyError while a copy may need them."""
        try:
            given = self.registry.resolve(address)[0]
        except NotFoundError:
            return  # it has ended already
        if (given.address, given.length) == (address, length):
            self.registry.check_idle(given)
            self._windows.forget(given)

    def _lose(self, lost: DmaplaneError) -> None:
        with self._lock:
            if self._lost is None:
                self._lost = lost

    def _leave(self, lane: NetworkLane) -> None:
        with self._lock:
            if lane in self._lanes:
                self._lanes.remove(lane)

    def close(self) -> None:
        """Ends lanes, ways and windows, then the device it wraps; idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            lanes, ways = list(self._lanes), list(self._ways)
            self._ways.clear()
        with contextlib.ExitStack() as last_first:  # all of it, whatever one of them raises
            last_first.callback(self.inner.close)
            last_first.callback(self._plane.close)
            last_first.callback(self._scratch_buffer.close)
            last_first.callback(self._windows.close)
            for way in ways:
                last_first.callback(way.close)
            for lane in lanes:
                last_first.callback(lane.close)

    def __getattr__(self, name: str) -> Any:
        """What a device has beyond the protocol: its own."""
        if name == "inner":  # not made yet
            raise AttributeError(name)
        return getattr(self.inner, name)


def _at(card: Card, address: str) -> Card:
    """@card by an address that its owner names."""
    try:
        given = str(ipaddress.ip_address(address))
    except ValueError as error:
        raise InvalidError("address", f"{address!r}", fix='one of the card, "10.0.0.1"') from error
    return dataclasses.replace(card, address=given, lacks="")


def _chosen(device: Device, nic: str, address: str | None) -> Card:
    found = cards()
    if address is not None:
        if nic == "auto":
            raise InvalidError("address", "it is of a card that is not named", fix="give nic= too")
        found = tuple(_at(card, address) if card.name == nic else card for card in found)
    folder: pathlib.Path | None = getattr(device, "pci_folder", None)
    place = pci_place(folder) if folder is not None else ()
    return choose(nic, found, node=device.node, place=place)


def with_network(
    device: Device,
    nic: str = "auto",
    *,
    address: str | None = None,
    plane: Literal["embedded", "kernel"] = "embedded",
) -> NetworkDevice:
    """@device with a network card's engine as one tier more; closing the answer closes @device.

    @nic: the name of an RDMA device, or "auto" for the nearest to @device: below the same PCI
    switch, at the same root complex, on the same NUMA node, any. @address: an IP address of the
    card, where no GID of it tells of one. @plane: which plane drives the card; a GPU's memory is
    in reach of the kernel's, or of the embedded one where the GPU's dma-bufs can be mapped.
    InvalidError names the cards there are if none has that name; UnsupportedError says what the
    card, the machine or the plane lacks. If it fails, @device stays open and is the caller's.
    """
    card = _chosen(device, nic, address)
    missing = verbs_missing() if plane == "embedded" else ""
    if missing:
        raise UnsupportedError(f"copies through {card.name}", missing)
    opened = open_plane(plane)
    try:
        return NetworkDevice(device, card, plane=opened)
    except BaseException:
        opened.close()
        raise

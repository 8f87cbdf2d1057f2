# SPDX-License-Identifier: MIT
"""The registry of a device: which addresses its copies may touch, and whose they are.

Ranges of the device's own memory and of host memory that was registered for it. A call holds
the ranges it touches from its submission to its end; a range that is held is not released.

Invariants: ranges do not overlap; each copy of a call lies inside one range a side; a snapshot
is never changed, but replaced by another, so that a look at it needs no lock.

Who owns what. Whoever registered a range releases it. The lock guards the replacing of the
snapshot and the counts of holds; arrays are searched without it.
"""

from __future__ import annotations

import dataclasses
import threading
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from dmaplane._errors import BusyError, InvalidError, NotFoundError
from dmaplane._storage import Holders
from dmaplane.stream._copies import Copies

if TYPE_CHECKING:
    import numpy.typing as npt

    from dmaplane.stream._copies import Direction, Side

    Cover = tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]

RangeKind = Literal["host", "device"]
RANGES_MAX: Final = 1 << 20
_ADDRESS_END: Final = 1 << 63
_COVER_MAX: Final = 1 << 20
"""Blocks of a call, up to which touches() looks at each."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Range:
    """Bytes that copies of a device may touch."""

    address: int
    length: int
    kind: RangeKind
    owner: object
    """Of whoever registered it: what he finds by it is his matter."""
    text: str
    """What it is, for messages."""

    @property
    def end(self) -> int:
        """The first address after it."""
        return self.address + self.length

    def __str__(self) -> str:
        return f"{self.kind} {self.address:#x}..{self.end:#x} ({self.text})"


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """All ranges at one moment, in order of their addresses."""

    ranges: tuple[Range, ...]
    starts: npt.NDArray[np.uint64]
    ends: npt.NDArray[np.uint64]

    def at(self, address: int) -> int:
        """Which range has that address; -1 if none."""
        found = int(np.searchsorted(self.starts, np.uint64(address), side="right")) - 1
        return found if found >= 0 and address < self.ranges[found].end else -1

    def with_one(self, place: int, made: Range) -> Snapshot:
        """These and @made, which is to be number @place."""
        return Snapshot(
            (*self.ranges[:place], made, *self.ranges[place:]),
            np.insert(self.starts, place, np.uint64(made.address)),
            np.insert(self.ends, place, np.uint64(made.end)),
        )

    def without(self, place: int) -> Snapshot:
        """These but number @place."""
        return Snapshot(
            (*self.ranges[:place], *self.ranges[place + 1 :]),
            np.delete(self.starts, place),
            np.delete(self.ends, place),
        )

    def nearest(self, address: int) -> str:
        """A few words for who asks for an address that is in none."""
        if not self.ranges:
            return "nothing is registered at all"
        after = int(np.searchsorted(self.starts, np.uint64(address), side="right"))
        around = self.ranges[max(0, after - 1) : after + 1]

        def gap(one: Range) -> int:
            return one.address - address if address < one.address else address - one.end

        return f"the nearest is {min(around, key=gap)}"


class Hold:
    """The ranges one call touches, and where; release() once it has ended."""

    __slots__ = ("_copies", "_covers", "_registry", "direction", "ranges", "spans")

    def __init__(
        self,
        registry: Registry,
        direction: Direction,
        ranges: tuple[Range, ...],
        copies: Copies,
    ) -> None:
        self._registry = registry
        self._copies: Copies | None = copies
        self._covers: tuple[Cover, ...] | None = None
        self.direction: Direction = direction
        self.ranges = ranges
        self.spans = copies.span("source"), copies.span("destination")
        """Lowest address and highest end of the sources, and of the destinations."""

    def touches(self, start: int, end: int) -> bool:
        """Does the call touch a byte from @start up to @end? It may say yes too often."""
        if not any(low < end and start < high for low, high in self.spans):
            return False
        covers, copies = self._covers, self._copies
        if covers is None:
            if copies is None:
                return False  # it has ended meanwhile
            if copies.count > _COVER_MAX:
                return True
            covers = self._covers = _cover(copies, "source"), _cover(copies, "destination")
        for starts, ends in covers:
            before = int(np.searchsorted(starts, np.uint64(end)))
            if before and int(ends[before - 1]) > start:
                return True
        return False

    def release(self) -> None:
        """The call has ended; once more does nothing."""
        self._registry._let_go(self)


class Registry:
    """The ranges of one device."""

    __slots__ = ("_holds", "_lock", "_snapshot", "_uses", "device", "ended")

    def __init__(self, device: str) -> None:
        self.device = device
        self.ended = 0
        """Calls whose hold was released; who sees it rise is not alone with the device."""
        self._lock = threading.Lock()
        self._uses: dict[Range, int] = {}
        self._holds: set[Hold] = set()
        none = np.empty(0, dtype=np.uint64)
        self._snapshot = Snapshot((), none, none)

    @property
    def ranges(self) -> tuple[Range, ...]:
        """All of them, in order of their addresses."""
        return self._snapshot.ranges

    def register(
        self, address: int, length: int, *, kind: RangeKind, owner: object, why_text: str
    ) -> Range:
        """From now on copies may touch it. @why_text: what it is, for messages.

        InvalidError if a part of it is in a range already.
        """
        if not 0 <= address < _ADDRESS_END:
            raise InvalidError("address", f"{address}", fix="an address of this process")
        if not 0 < length <= _ADDRESS_END - address:
            raise InvalidError("length", f"{length} bytes", fix="at least one, and inside memory")
        made = Range(int(address), int(length), kind, owner, why_text)
        with self._lock:
            ranges = self._snapshot.ranges
            if len(ranges) >= RANGES_MAX:
                raise InvalidError(
                    "address", f"{RANGES_MAX} ranges are registered", fix="fewer, larger ones"
                )
            place = int(np.searchsorted(self._snapshot.starts, np.uint64(address)))
            for other in ranges[max(0, place - 1) : place + 1]:
                if other.address < made.end and made.address < other.end:
                    raise InvalidError(
                        "address",
                        f"{made} overlaps {other}",
                        fix="release that one first, or use it as it is",
                    )
            snapshot = self._snapshot.with_one(place, made)
            # In this order, and so the other way round in release(): whatever a signal leaves half
            # done, what a look finds in the snapshot has its count.
            self._uses[made] = 0
            self._snapshot = snapshot
        return made

    def release(self, given: Range) -> None:
        """It may not be touched any more. BusyError while a call does, and nothing changed."""
        with self._lock:
            self._check_idle(given)
            place = self._snapshot.at(given.address)
            if place >= 0 and self._snapshot.ranges[place] is given:
                self._snapshot = self._snapshot.without(place)
            del self._uses[given]

    def check_idle(self, given: Range) -> None:
        """BusyError while a call touches it; NotFoundError if it is not registered."""
        with self._lock:
            self._check_idle(given)

    def _check_idle(self, given: Range) -> None:
        uses = self._uses.get(given)
        if uses is None:
            raise NotFoundError(f"{given} is not registered on {self.device}, or was released")
        if uses:
            raise BusyError(
                f"{given} on {self.device}",
                Holders(views=0, mappings=0, regions=0, exports=0, operations=uses),
            )

    def uses(self, given: Range) -> int:
        """Calls that touch it now."""
        with self._lock:
            return self._uses.get(given, 0)

    def touches(self, address: int, length: int) -> bool:
        """May a call that has not ended touch a byte of these?

        By its blocks; by what lies between the lowest and the highest of a call of more than a
        million, so of such a one it may say yes too often.
        """
        end = address + length
        with self._lock:
            near = [
                hold
                for hold in self._holds
                if any(low < end and address < high for low, high in hold.spans)
            ]
        # Without the lock: the first time a call is asked about costs a sort of its blocks.
        return any(hold.touches(address, end) for hold in near)

    def resolve(self, address: int) -> tuple[Range, int]:
        """The range an address is in, and where in it. NotFoundError names the nearest."""
        snapshot = self._snapshot
        found = snapshot.at(address) if 0 <= address < _ADDRESS_END else -1
        if found < 0:
            near = snapshot.nearest(min(max(address, 0), _ADDRESS_END - 1))
            raise NotFoundError(f"{address:#x} is in no range of {self.device}; {near}")
        return snapshot.ranges[found], address - snapshot.ranges[found].address

    def check(self, copies: Copies) -> Direction:
        """Whether all of @copies may be done, and which way they go.

        NotFoundError names the first copy that leaves what is registered. InvalidError if they
        are not all from host to device or all back, or if two write the same byte.
        """
        return self._look(copies)[0]

    def hold(self, copies: Copies) -> Hold:
        """check(), and none of their ranges is released before the hold is."""
        while True:
            direction, held = self._look(copies)
            made = Hold(self, direction, held, copies)
            with self._lock:
                if not all(one in self._uses for one in held):
                    continue
                before = {one: self._uses[one] for one in held}
                try:
                    self._uses.update({one: uses + 1 for one, uses in before.items()})
                    self._holds.add(made)
                except BaseException:  # a signal's: nobody gets this hold to release it
                    self._holds.discard(made)
                    self._uses.update(before)
                    raise
            return made

    def locate(
        self, addresses: npt.NDArray[np.uint64]
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.uint64], tuple[Range, ...]]:
        """For addresses a hold is about: of each, the number of its range and where in it.

        The numbers are of the third, the ranges themselves.
        """
        snapshot = self._snapshot
        which = np.searchsorted(snapshot.starts, addresses, side="right") - 1
        return which, addresses - snapshot.starts[which], snapshot.ranges

    def cut(self, copies: Copies) -> Copies:
        """The same bytes, with no copy that leaves a range on either side.

        For who merges what a hold is about: two ranges may touch, and a device takes them for two
        all the same. Gives @copies where nothing is to be cut.
        """
        snapshot = self._snapshot
        sides: tuple[Side, Side] = ("source", "destination")
        crosses = np.zeros(copies.count, dtype=np.bool_)
        for side in sides:
            start, end = copies.span(side)
            first = snapshot.at(start)
            if first < 0 or end > snapshot.ranges[first].end:
                starts = copies.side(side)
                which = np.searchsorted(snapshot.starts, starts, side="right") - 1
                crosses |= starts + copies.lengths > snapshot.ends[np.maximum(which, 0)]
        if not bool(crosses.any()):
            return copies
        parts: list[tuple[int, int, int]] = []
        for index in np.flatnonzero(crosses).tolist():
            to, out = int(copies.destinations[index]), int(copies.sources[index])
            left = int(copies.lengths[index])
            while left:
                room = (self.resolve(at) for at in (to, out))
                step = min(left, *(one.length - offset for one, offset in room))
                parts.append((to, out, step))
                to, out, left = to + step, out + step, left - step
        made = np.array(parts, dtype=np.uint64)
        whole = ~crosses
        return Copies._listed(  # merged ones may be longer than a caller's
            np.concatenate((copies.destinations[whole], made[:, 0])),
            np.concatenate((copies.sources[whole], made[:, 1])),
            np.concatenate((copies.lengths[whole], made[:, 2])),
        )

    def _let_go(self, hold: Hold) -> None:
        with self._lock:
            if hold in self._holds:
                self._holds.remove(hold)
                for one in hold.ranges:
                    self._uses[one] -= 1
                self.ended += 1
        hold._copies = hold._covers = None  # who keeps the operation does not keep its arrays

    def _look(self, copies: Copies) -> tuple[Direction, tuple[Range, ...]]:
        snapshot = self._snapshot
        sources = self._touched(snapshot, copies, "source")
        destinations = self._touched(snapshot, copies, "destination")
        kinds = {one.kind for one in sources}, {one.kind for one in destinations}
        direction: Direction
        if kinds == ({"host"}, {"device"}):
            direction = "h2d"
        elif kinds == ({"device"}, {"host"}):
            direction = "d2h"
        else:
            raise InvalidError(
                "copies",
                f"from {' and '.join(sorted(kinds[0]))} to {' and '.join(sorted(kinds[1]))} memory",
                fix="a call is all from host to device, or all from device to host",
            )
        if copies.overlaps():
            raise InvalidError(
                "destinations", "two copies write the same byte", fix="a call each, in order"
            )
        return direction, (*sources, *destinations)

    def _touched(self, snapshot: Snapshot, copies: Copies, side: Side) -> tuple[Range, ...]:
        start, end = copies.span(side)
        first = snapshot.at(start)
        if first >= 0 and end <= snapshot.ranges[first].end:
            return (snapshot.ranges[first],)
        starts = copies.side(side)
        found = np.searchsorted(snapshot.starts, starts, side="right") - 1
        outside = found < 0
        if snapshot.ranges:
            outside |= starts + copies.lengths > snapshot.ends[np.maximum(found, 0)]
        if bool(outside.any()):
            index = int(outside.argmax())
            address, length = int(starts[index]), int(copies.lengths[index])
            raise NotFoundError(
                f"copy {index}: {side} {address:#x}, {length} bytes, is inside no one range of "
                f"{self.device}; {snapshot.nearest(address)}; register it, or allocate it there"
            )
        return tuple(snapshot.ranges[number] for number in np.unique(found).tolist())


def _cover(copies: Copies, side: Side) -> Cover:
    """Where its blocks begin, in order, and the highest end of those up to each."""
    starts = copies.side(side)
    order = np.argsort(starts, kind="stable")
    return starts[order], np.maximum.accumulate((starts + copies.lengths)[order])

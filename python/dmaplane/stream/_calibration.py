# SPDX-License-Identifier: MIT
"""Calibration: measures what every tier costs, by the device's clock, in a bounded time.

A cell is (tier, direction, block size, count). Cells are measured in rounds, the ones that say
most first, so that whenever time is up there is a table, only a coarser one:

1. three sizes of block, counts a factor of 4 apart, up to 4 MiB a cell; this is always finished.
2. all sizes that are powers of two;
3. the counts between; 4. each cell until it has three samples; 5. the sizes between, 1.5 * 2^k;
6. the middle between neighbours, in size and in count, where three are not on a line, again and
   again: where an engine changes its way of working (some have cliffs) the table is finer;
7. more samples, up to seven. A cell counts by its median.

In a row, counts rise; one whose last cell says that the next would take too long goes on as
steeply as it ended (_curve.py). One that was cut short before it said how steeply is left out.
Before that each tier carries bytes there or back, by itself one way and by another tier the
other: one that brings others than it was given is never chosen (L9). Of two that do not agree, the
one is blamed that agrees with no other. A tier that fails then or while it is measured is left
out, with the reason; a device that is lost, or a copy that never ends, ends the calibration.

What is copied lies in random order on both sides and touches no neighbour, so that nothing can
be merged; for tiers that need an extent the host's side is one. All memory of a meter is its
own, and is given back by close(), but for what a copy that never ended may still write.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import statistics
import time
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import numpy as np

from dmaplane._errors import ClosedError, CopyError, InvalidError, TimedOutError
from dmaplane._scope import Scope
from dmaplane.stream._cabinet import POINTS_MAX
from dmaplane.stream._copies import Copies
from dmaplane.stream._curve import Row
from dmaplane.stream._pool import HostPool
from dmaplane.stream._registration import PIECE_BYTES_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy.typing as npt

    from dmaplane._plane import Plane
    from dmaplane.stream._copies import Direction
    from dmaplane.stream._device import Device, Tier, TierName
    from dmaplane.stream._registry import Hold

    Order = npt.NDArray[np.uint32]

SIZES: Final = tuple(512 << power for power in range(14))
"""Bytes of a block: 512 .. 4 MiB."""
SIZES_BETWEEN: Final = tuple(768 << power for power in range(13))
SIZES_FIRST: Final = (SIZES[0], SIZES[6], SIZES[11])
"""512 bytes, 32 KiB, 1 MiB."""
COUNTS: Final = tuple(4**power for power in range(8))
"""Blocks of a call: 1 .. 16,384."""
COUNTS_BETWEEN: Final = tuple(2 * 4**power for power in range(7))
CELL_BYTES: Final = 16 << 20
"""More says nothing new: from here on every tier costs so much a byte."""
FIRST_BYTES: Final = 4 << 20
"""Of a cell of the first round."""
CELL_SECONDS: Final = 0.004
"""A row ends where the next cell would take longer, or one took that long to get done."""
ARENA_BYTES: Final = 64 << 20
"""Of memory on each side, from which a cell takes blocks at random."""
STUCK_SECONDS: Final = 10.0
_PROOF_BYTES: Final = 4096
_PROOF_BLOCKS: Final = 64
_BEND: Final = 0.05
_HALVINGS: Final = 6
_ROWS_MAX: Final = 48
_SEED: Final = 7


class Meter(Protocol):
    """Proves tiers, and measures one cell at a time."""

    def prove(self, tier: Tier, direction: Direction) -> None:
        """Copies and compares. CopyError: it cannot, or the bytes are not those it was given."""

    def seconds(self, tier: Tier, direction: Direction, *, block_bytes: int, count: int) -> float:
        """Of one call, by the device's clock. CopyError: this tier cannot."""


@dataclasses.dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured, and which tiers failed meanwhile and why."""

    rows: tuple[Row, ...]
    failed: tuple[tuple[TierName, str], ...]
    samples: int


@dataclasses.dataclass(frozen=True, slots=True)
class _Pair:
    tier: Tier
    direction: Direction

    def takes(self, block_bytes: int) -> bool:
        return self.tier.smallest <= block_bytes <= self.tier.largest


class _Sheet:
    """Samples so far, by cell."""

    def __init__(self, meter: Meter, pairs: list[_Pair], clock: Callable[[], float]) -> None:
        self.meter = meter
        self.pairs = pairs
        self.clock = clock
        self.cells: dict[tuple[_Pair, int], dict[int, list[float]]] = {}
        self.slow: dict[tuple[_Pair, int], int] = {}  # counts from here on take too long
        self.failed: dict[TierName, str] = {}
        self.samples = 0

    def sample(self, pair: _Pair, size: int, count: int, *, required: bool) -> None:
        """Measures a cell once more; not at all if it would take too long.

        @required: what this machine needs to get it done is no reason then.
        """
        key = (pair, size)
        if pair.tier.name in self.failed or not pair.takes(size):
            return
        if count * size > CELL_BYTES or count >= self.slow.get(key, count + 1):
            return
        cells = self.cells.setdefault(key, {})
        least, wall = CELL_SECONDS, 4 * CELL_SECONDS
        for _ in range(2):
            began = self.clock()
            try:
                taken = self.meter.seconds(pair.tier, pair.direction, block_bytes=size, count=count)
            except CopyError as error:
                self.failed[pair.tier.name] = str(error)
                return
            cells.setdefault(count, []).append(max(taken, 1e-9))
            self.samples += 1
            least, wall = min(least, taken), min(wall, self.clock() - began)
            if count * 4 in cells or (
                least * 4 <= CELL_SECONDS and (required or wall <= CELL_SECONDS)
            ):
                return
        # Twice, so that a hiccup does not end the row.
        self.slow[key] = min(count * 4, self.slow.get(key, count * 4))

    def row(self, pair: _Pair, size: int) -> Row | None:
        """The medians of a row."""
        cells = self.cells.get((pair, size))
        if not cells:
            return None
        counts = tuple(sorted(cells))
        return Row(
            tier=pair.tier.name,
            direction=pair.direction,
            block_bytes=size,
            counts=counts,
            seconds=tuple(statistics.median(cells[count]) for count in counts),
        )

    def room(self, pair: _Pair, size: int, count: int) -> bool:
        """May that row have a sample of @count, and still be kept?"""
        cells = self.cells.get((pair, size), {})
        return count in cells or len(cells) < POINTS_MAX

    def sizes(self, pair: _Pair) -> list[int]:
        """Sizes of @pair that have a row."""
        return sorted(size for known, size in self.cells if known is pair)

    def whole(self, pair: _Pair, size: int) -> bool:
        """Does the row of that size go on until it says what many blocks cost?"""
        cells = self.cells[pair, size]
        first, last = min(cells), max(cells)
        taken = statistics.median(cells[last])
        if taken * 4 > CELL_SECONDS:
            return True  # so slow that what it costs to begin is nothing
        return first < last and (
            last >= COUNTS[-1]
            or last * size * 2 >= FIRST_BYTES
            or taken > 4 * statistics.median(cells[first])
        )

    def rows(self, pair: _Pair) -> list[Row]:
        """The rows of a pair; those cut short are left out if there are others."""
        if pair.tier.name in self.failed:
            return []
        sizes = self.sizes(pair)
        whole = [size for size in sizes if self.whole(pair, size)]
        kept = whole if len(whole) > 1 else sizes
        return [row for size in kept if (row := self.row(pair, size)) is not None]

    def bent_sizes(self, pair: _Pair) -> Iterator[int]:
        """Sizes beside a row that is not on the line between its neighbours."""
        rows = self.rows(pair)
        for low, row, high in zip(rows, rows[1:], rows[2:], strict=False):
            count = min(one.counts[-1] for one in (low, row, high))
            marks = low.block_bytes, row.block_bytes, high.block_bytes
            if _bent(marks, (low.at(count), row.at(count), high.at(count))):
                for before, after in itertools.pairwise(marks):
                    if after - before >= max(512, before // 32):
                        yield (before + after) // 2 // 256 * 256

    def bent_counts(self, pair: _Pair) -> Iterator[tuple[int, int]]:
        """Size and count of cells beside one that is not on the line between its neighbours."""
        for row in self.rows(pair):
            for at in range(1, len(row.counts) - 1):
                marks = row.counts[at - 1], row.counts[at], row.counts[at + 1]
                if _bent(marks, row.seconds[at - 1 : at + 2]):
                    for before, after in itertools.pairwise(marks):
                        if after - before >= max(2, before // 16):
                            yield row.block_bytes, (before + after) // 2


def _bent(marks: tuple[int, ...], values: tuple[float, ...]) -> bool:
    """Is the middle one of three more than a little off the line between the others?"""
    part = (marks[1] - marks[0]) / (marks[2] - marks[0])
    line = values[0] + part * (values[2] - values[0])
    return abs(values[1] - line) > _BEND * min(values[1], line)


def calibrate(
    meter: Meter,
    tiers: Iterable[Tier],
    *,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
    progress: Callable[[float], None] | None = None,
) -> Calibration:
    """Measures all of @tiers that are available, for about @seconds; never many more.

    @progress: told the part of the time that has passed, 0 .. 1.
    """
    if not 0 < seconds <= 600:
        raise InvalidError("seconds", f"{seconds}", fix="more than 0, at most 600")
    began = clock()
    pairs = [
        _Pair(tier, direction) for tier in tiers if tier.available for direction in tier.directions
    ]
    sheet = _Sheet(meter, pairs, clock)
    for pair in pairs:  # and the first call of each loads, allocates, wakes: that does not count
        try:
            meter.prove(pair.tier, pair.direction)
        except CopyError as error:
            sheet.failed.setdefault(pair.tier.name, str(error))
    for required, (pair, size, count) in _schedule(sheet):
        passed = (clock() - began) / seconds
        if passed >= 1 and not required:
            break
        sheet.sample(pair, size, count, required=required)
        if progress is not None:
            progress(min(passed, 1.0))
    if progress is not None:
        progress(1.0)
    rows = [row for pair in pairs for row in sheet.rows(pair)]
    return Calibration(tuple(rows), tuple(sheet.failed.items()), sheet.samples)


def _schedule(sheet: _Sheet) -> Iterator[tuple[bool, tuple[_Pair, int, int]]]:
    """Which cell is next, and whether there is no table without it."""
    for pair in sheet.pairs:
        for size in _first_sizes(pair):
            for count in COUNTS:
                if count * size <= FIRST_BYTES:
                    yield True, (pair, size, count)
    counts = tuple(sorted((*COUNTS, *COUNTS_BETWEEN)))
    for size in _spread(SIZES):
        for pair in sheet.pairs:
            for count in COUNTS:
                if count not in sheet.cells.get((pair, size), ()):
                    yield False, (pair, size, count)
    for pair in sheet.pairs:
        for size in sheet.sizes(pair):
            if not sheet.whole(pair, size):
                # What else runs here may have stopped it: once more.
                sheet.slow.pop((pair, size), None)
                for count in COUNTS:
                    yield False, (pair, size, count)
            for count in COUNTS_BETWEEN:
                yield False, (pair, size, count)
    yield from _again(sheet, until=3)
    for size in _spread(SIZES_BETWEEN):
        for pair in sheet.pairs:
            for count in counts * 3:
                yield False, (pair, size, count)
    for _ in range(_HALVINGS):
        for pair in sheet.pairs:
            for size in sorted(set(sheet.bent_sizes(pair))):
                if len(sheet.sizes(pair)) < _ROWS_MAX and (pair, size) not in sheet.cells:
                    for count in counts * 3:
                        yield False, (pair, size, count)
            for size, count in sorted(set(sheet.bent_counts(pair))):
                for _ in range(3):
                    if sheet.room(pair, size, count):  # where all of it bends there is no end
                        yield False, (pair, size, count)
    yield from _again(sheet, until=7)


def _first_sizes(pair: _Pair) -> list[int]:
    """The sizes of the first round; of a tier that takes other sizes, its own ends."""
    ends = (max(SIZES[0], pair.tier.smallest), min(SIZES_FIRST[-1], pair.tier.largest))
    return sorted({*(size for size in SIZES_FIRST if pair.takes(size)), *ends})


def _again(sheet: _Sheet, *, until: int) -> Iterator[tuple[bool, tuple[_Pair, int, int]]]:
    for goal in range(2, until + 1):
        for (pair, size), cells in list(sheet.cells.items()):
            for count in [count for count, samples in cells.items() if len(samples) < goal]:
                yield False, (pair, size, count)


def _spread(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Every third, then what is between: a table cut short is coarse everywhere."""
    return (*sizes[0::3], *sizes[1::3], *sizes[2::3])


class _Wrong(NamedTuple):
    """Why bytes that went there and back are not the same ones."""

    tier: TierName | None
    """Who refused or failed; None: they went, and one of the two brought others."""
    error: CopyError


class DeviceMeter(Scope):
    """Measures a device with memory of its own: an arena on each side, and a lane.

    `stuck`: a copy never ended. Then close() gives nothing back: it may still be written.
    """

    def __init__(self, plane: Plane, device: Device, *, arena: int = ARENA_BYTES) -> None:
        self._closed = False
        self.stuck = False
        self.arena = arena
        self._device = device
        self._calls: dict[tuple[Direction, bool, int, int], Copies] = {}
        self._orders: dict[int, tuple[Order, Order]] = {}
        self._holds: list[Hold] = []
        # Ended in the opposite order: lane, holds, memory, extent, pool. Holds behind the lane:
        # what is in it may touch their ranges until it has ended.
        with contextlib.ExitStack() as stack:
            pool = stack.enter_context(HostPool(plane, device, arena, piece=PIECE_BYTES_MAX))
            self._extent = stack.enter_context(pool.extent(arena))
            self._memory = stack.enter_context(device.memory(arena))
            stack.callback(self._let_go)
            self._lane = device.lane()
            stack.callback(self._lane.close)
            self._ending = stack.pop_all()

    def _check(self) -> None:
        if self._closed:
            raise ClosedError("this meter is closed")

    def seconds(self, tier: Tier, direction: Direction, *, block_bytes: int, count: int) -> float:
        """Of one call, by the device's clock."""
        self._check()
        copies = self._copies(direction, tier.needs_extent, block_bytes, count)
        return self._run(tier.name, direction, copies)

    def prove(self, tier: Tier, direction: Direction) -> None:
        """Sends bytes there and back, @direction by this tier, and compares."""
        self._check()
        size = min(max(_PROOF_BYTES, tier.smallest), tier.largest)
        if 2 * size > self.arena:
            raise CopyError(f"its blocks of {size} bytes do not fit into what it is measured in")
        back = direction == "d2h"
        others = [
            one
            for one in self._device.tiers()
            if one.available and one.smallest <= size <= one.largest
            and ("h2d" if back else "d2h") in one.directions and one.name != tier.name
        ]  # fmt: skip
        first: CopyError | None = None
        for other in others or [tier]:
            wrong = self._round(*((other, tier) if back else (tier, other)), size)
            if wrong is None:
                return
            if wrong.tier == tier.name:
                raise wrong.error
            first = first or wrong.error
        # It agrees with nobody: then it is the others only if not one of them agrees with itself.
        alone = others and self._round(tier, tier, size) is None
        if not alone or any(self._round(other, other, size) is None for other in others):
            raise first or CopyError(f"{tier.name} was not tried")

    def _round(self, there: Tier, home: Tier, size: int) -> _Wrong | None:
        """Bytes there and back, a block and some; None if they came back as they went."""
        if "h2d" not in there.directions or "d2h" not in home.directions:
            return _Wrong(None, CopyError(f"{there.name} and {home.name} do not go there and back"))
        for count in (1, min(_PROOF_BLOCKS, self.arena // size - 1)):
            length = count * size
            host = self._extent.numpy(length + size)  # a block more, which nobody may touch
            sent = np.random.default_rng(count).integers(0, 256, len(host), np.uint8)
            host[:] = sent
            way: tuple[tuple[Tier, Direction], ...] = ((there, "h2d"), (home, "d2h"))
            for tier, direction in way:
                try:
                    self._run(tier.name, direction, self._copies(direction, True, size, count))
                except CopyError as error:
                    # Without its trace, which would keep @host shown, and the arena taken.
                    return _Wrong(tier.name, error.with_traceback(None))
                if direction == "h2d":
                    host[:length] = 0
            if not np.array_equal(host, sent):
                text = (
                    f"{count} blocks of {size} bytes, there by {there.name} and back by"
                    f" {home.name}, came back as others"
                )
                return _Wrong(None, CopyError(text))
        return None

    def _run(self, tier: TierName, direction: Direction, copies: Copies) -> float:
        begin = self._lane.mark()
        self._lane.execute(tier, direction, copies)
        end = self._lane.mark()
        if not end.wait(STUCK_SECONDS):
            self.stuck = True
            raise TimedOutError(
                f"{tier} {direction} did not copy {copies.bytes} bytes in {STUCK_SECONDS} s"
                f" on {self._device.name}; is the device hung?"
            )
        return end.seconds_since(begin)

    def _copies(self, direction: Direction, extent: bool, size: int, count: int) -> Copies:
        key = (direction, extent, size, count)
        known = self._calls.get(key)
        if known is not None:
            return known
        slots = self.arena // size
        if not 0 < count <= slots:
            raise InvalidError("count", f"{count} blocks of {size}", fix=f"1 .. {slots}")
        if size not in self._orders:
            random = np.random.default_rng(_SEED)
            self._orders[size] = (
                random.permutation(slots).astype(np.uint32),
                random.permutation(slots).astype(np.uint32),
            )
        ours, theirs = self._orders[size]
        host = np.arange(count, dtype=np.uint32) if extent else ours[:count]
        sides = (self._extent.address, host), (self._memory.address, theirs[:count])
        source, destination = sides if direction == "h2d" else sides[::-1]
        made = Copies.indexed(
            source=source[0],
            destination=destination[0],
            source_stride=size,
            destination_stride=size,
            length=size,
            source_index=source[1],
            destination_index=destination[1],
        )
        made.merged()  # what is made on demand is made now
        self._holds.append(self._device.registry.hold(made))
        self._calls[key] = made
        return made

    def _let_go(self) -> None:
        while self._holds:
            self._holds.pop().release()

    def close(self) -> None:
        """Ends the lane and gives the memory back; idempotent.

        Neither if a copy never ended: ending the lane would wait for it, perhaps for ever, and
        until the device is closed it may write into that memory.
        """
        if not self._closed:
            self._closed = True
            if not self.stuck:
                self._ending.close()

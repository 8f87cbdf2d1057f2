# SPDX-License-Identifier: MIT
"""The bed of `bench stream-tiers`: a device, memory on both sides, and copies between them.

Host memory is one pool: a source full of a pattern, a landing, and a check of the size of the
device's memory, by which what arrived is compared. A cell says which copies; turn n of a cell is
the same copies each time, so that tiers are compared over the same blocks, and another turn takes
other blocks of the pool, so that the processors' caches do not answer for the host's memory.

A time is from before the first byte is submitted until the last one is there, by this machine's
clock; what a `Copies` works out at its first use is in it. Beside it stand the time until all was
submitted and the device's own account. On the simulated device the model's time is what counts:
no figure of it is a measurement.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, NoReturn

import numpy as np

from dmaplane import stream
from dmaplane._errors import LimitError, NoMemoryError, TimedOutError
from dmaplane.stream import Copies, HostPool

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from dmaplane._plane import Plane
    from dmaplane.stream import Device, Direction, Extent, Lane, TierName

DIRECTIONS: Final[tuple[Direction, ...]] = ("h2d", "d2h")
Spread = Literal["scattered", "extent"]
KIB: Final = 1 << 10
MIB: Final = 1 << 20
POOL_BYTES_MIN: Final = 256 * MIB
"""Of a full run: with less its figures would be the caches'."""
_GUARDS_BYTES_MAX: Final = 8 * MIB
_GOLDEN: Final = 0x9E3779B97F4A7C15
_WORD_MAX: Final = (1 << 64) - 1


@dataclasses.dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured."""

    total_bytes: int
    """A call's bytes, and the device's memory."""
    pool_bytes: int
    """Source and landing, each; larger than the processors' caches, or it would hide DRAM."""
    samples: int
    sizes: tuple[int, ...]
    share: float
    """Of each experiment's time."""
    patience_s: float = 10.0
    """After which a call that has not ended never will."""
    cell_s: float = 60.0
    """After which whatever a cell does hangs."""

    @property
    def quick(self) -> bool:
        """Is it to show that it runs, rather than how fast?"""
        return self.share < 1

    def with_pool(self, share: float) -> Effort:
        """The same over less host memory: that share of it, or what one call needs."""
        step = 2 * MIB
        length = max(int(self.pool_bytes * share), self.total_bytes)
        return dataclasses.replace(self, pool_bytes=-(-length // step) * step)

    @classmethod
    def of(cls, told: dict[str, Any]) -> Effort:
        """What dataclasses.asdict() made of one, by way of JSON."""
        return cls(**{**told, "sizes": tuple(told["sizes"])})


FULL: Final = Effort(
    64 * MIB,
    2 << 30,
    7,
    tuple(KIB * size // 2 for size in (8, 32, 128, 2, 2048, 16, 64, 36, 144, 1)),
    1.0,
)
"""The sizes that matter most first: what the time does not suffice for is left out."""
QUICK: Final = Effort(8 * MIB, 48 * MIB, 3, (1 * KIB, 4 * KIB, 16 * KIB, 64 * KIB), 0.045)


def size_text(length: int) -> str:
    """ "4 KiB"."""
    if length >= MIB and length % MIB == 0:
        return f"{length // MIB} MiB"
    return f"{length // KIB} KiB" if length >= KIB and length % KIB == 0 else f"{length} B"


@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
    """Copies of one kind."""

    direction: Direction
    _: dataclasses.KW_ONLY
    block_bytes: int
    count: int
    spread: Spread = "scattered"
    run: int = 1
    """Neighbours on both sides that could be one copy."""

    def __str__(self) -> str:
        runs = f", runs of {self.run}" if self.run > 1 else ""
        where = ", host in one piece" if self.spread == "extent" else ""
        count = f"{self.count} x " if self.count * self.block_bytes < MIB else ""
        return f"{count}{size_text(self.block_bytes)} {self.direction}{where}{runs}"

    @property
    def bytes(self) -> int:
        """All of them."""
        return self.block_bytes * self.count


def whole(
    direction: Direction,
    *,
    block_bytes: int,
    total_bytes: int,
    spread: Spread = "scattered",
    run: int = 1,
) -> Cell:
    """As many blocks as make about @total_bytes, in whole runs."""
    count = total_bytes // block_bytes // run * run
    return Cell(direction, block_bytes=block_bytes, count=count, spread=spread, run=run)


class Box:
    """A time box: who measures in a loop looks at `over`, and leaves the rest out."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def over(self) -> bool:
        """Is the time used up?"""
        return time.monotonic() >= self._end


class Took(NamedTuple):
    """Seconds of a call."""

    seconds: float
    """What counts: `wall`, or on a simulated device `device`."""
    submitted: float
    """Until the thread that submits could go on."""
    device: float
    """By the device's clock."""
    wall: float
    """From before it is submitted until the last byte is there."""

    def over(self, times: int) -> Took:
        """Of one of @times calls that were timed together."""
        return Took(*(one / times for one in self))


def _late(what: str) -> NoReturn:
    raise TimedOutError(what)


class Bed:
    """Closed by its stack; lanes by who made them.

    NoMemoryError or LimitError if there is not even a small pool; `effort` is what it became.
    """

    def __init__(
        self, stack: contextlib.ExitStack, plane: Plane, device: Device, effort: Effort
    ) -> None:
        self.plane = plane
        self.device = device
        self.effort = effort
        self.modelled = device.name == "sim"
        self.stuck: Callable[[str], NoReturn] = _late
        """What is done once a call does not end: a process of its own can only end itself,
        because closing a lane would wait for that call."""
        self._turn = 0
        self._shuffled: tuple[tuple[int, int], npt.NDArray[np.uint32]] | None = None
        self.pool = stack.enter_context(self._pool())
        self.source, self.landing, self.check = (
            stack.enter_context(self.pool.extent(length))
            for length in (self.effort.pool_bytes, self.effort.pool_bytes, effort.total_bytes)
        )
        self.memory = stack.enter_context(device.memory(effort.total_bytes))
        self._plain = device.lane()
        stack.callback(self._plain.close)
        with viewed(self.source) as seen:
            words = seen.view(np.uint64)
            for first in range(0, len(words), MIB):
                part = words[first : first + MIB]
                part[:] = np.arange(first, first + len(part), dtype=np.uint64)
                part *= np.uint64(_GOLDEN)

    def _pool(self) -> HostPool:
        """Three pieces, made at the same time; of half the size while that is refused, because
        a machine whose memory grows as it is used says for a while that it has little."""
        while True:
            length = self.effort.pool_bytes
            try:
                return HostPool(
                    self.plane,
                    self.device,
                    2 * length + self.effort.total_bytes,
                    piece=length,
                    threads=4,
                )
            except (NoMemoryError, LimitError):
                if length // 2 < max(POOL_BYTES_MIN, self.effort.total_bytes):
                    raise
                self.effort = self.effort.with_pool(0.5)

    @property
    def pages(self) -> list[str]:
        """Which pages each piece of the pool is made of."""
        return [str(buffer.placement) for buffer in self.pool.buffers]

    def tiers(self, direction: Direction) -> Iterator[TierName]:
        """Those that are there, and go that way."""
        for tier in self.device.tiers():
            if tier.available and direction in tier.directions:
                yield tier.name

    def _order(self, cell: Cell) -> npt.NDArray[np.uint32]:
        """The runs of the pool in some order; each turn takes the next ones of it."""
        key = cell.block_bytes, cell.run
        if self._shuffled is None or self._shuffled[0] != key:
            room = self.effort.pool_bytes // cell.block_bytes // cell.run
            runs = np.arange(room, dtype=np.uint32)
            self._shuffled = key, np.random.default_rng(key).permutation(runs)
        return self._shuffled[1]

    def _indices(
        self, cell: Cell, turn: int = 0
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
        """Blocks of the pool and of the device's memory, one beside the other."""
        runs = cell.count // cell.run
        order = self._order(cell)
        first = turn % max(1, len(order) // runs) * runs
        near: npt.NDArray[np.uint32] = (
            np.arange(first, first + runs, dtype=np.uint32)
            if cell.spread == "extent"
            else order[first : first + runs]
        )
        random = np.random.default_rng((cell.block_bytes, cell.count, cell.run, turn))
        far = random.permutation(self.effort.total_bytes // cell.block_bytes // cell.run)[:runs]
        within = np.arange(cell.run)
        blocks = [(some[:, None] * cell.run + within).reshape(-1) for some in (near, far)]
        return blocks[0].astype(np.uint32), blocks[1].astype(np.uint32)

    def copies(self, cell: Cell, turn: int = 0) -> Copies:
        """The copies of @cell, as a grid; nothing of it has been worked out yet."""
        near, far = self._indices(cell, turn)
        up = cell.direction == "h2d"
        host = self.source.address if up else self.landing.address
        return Copies.indexed(
            source=host if up else self.memory.address,
            destination=self.memory.address if up else host,
            source_stride=cell.block_bytes,
            destination_stride=cell.block_bytes,
            length=cell.block_bytes,
            source_index=near if up else far,
            destination_index=far if up else near,
        )

    def timed(
        self, lane: Lane, tier: TierName, direction: Direction, calls: Sequence[Copies]
    ) -> Took:
        """All of @calls, one behind the other. Make them anew each time: what a caller's first
        use of one costs is a part of the call."""
        before = lane.mark()
        begin = time.perf_counter()
        for copies in calls:
            lane.execute(tier, direction, copies)
        submitted = time.perf_counter() - begin
        after = lane.mark()
        self.arrive(after, spin=not self.modelled)
        wall = time.perf_counter() - begin
        device = max(after.seconds_since(before), 1e-9)
        return Took(device if self.modelled else wall, submitted, device, wall)

    def sampled(
        self, lane: Lane, tier: TierName, cell: Cell, *, times: int = 1, samples: int = 0
    ) -> list[Took]:
        """After one that does not count, whose bytes are compared."""
        self.prove(lane, tier, cell, self.copies(cell))
        return self.repeated(lane, tier, cell, times=times, samples=samples or self.effort.samples)

    def repeated(
        self, lane: Lane, tier: TierName, cell: Cell, *, times: int, samples: int
    ) -> list[Took]:
        """Of a call, @times of them at a time; each over other blocks."""
        took = []
        for sample in range(samples):
            first = 1 + sample * times
            calls = [self.copies(cell, turn) for turn in range(first, first + times)]
            took.append(self.timed(lane, tier, cell.direction, calls).over(times))
        return took

    def arrive(self, mark: stream.Marker, *, spin: bool = False) -> None:
        """Waits for it, not for ever. @spin: without a nap, to the us."""
        patience = self.effort.patience_s
        if spin:
            end = time.monotonic() + patience
            while not mark.reached():
                if time.monotonic() > end:
                    break
            else:
                return
        elif mark.wait(patience):
            return
        self.stuck(f"a copy of the bench did not end in {patience:g} s")

    def prove(self, lane: Lane, tier: TierName, cell: Cell, copies: Copies) -> None:
        """Runs them once; AssertionError unless each byte is where it belongs, and the blocks
        beside them are what they were. What is copied down is new each time, so that nothing
        an earlier proof left there passes for it."""
        near, far = self._indices(cell)
        up, length = cell.direction == "h2d", self.effort.total_bytes
        self._turn += 1
        self._mark_check(cell)
        self._carry("h2d", self.memory.address, self.check.address, length)
        written, index = (self.check, far) if up else (self.landing, near)
        guards = _beside(index, written.length // cell.block_bytes, cell.block_bytes)
        before = self._taken(written, guards, cell)
        self.timed(lane, tier, cell.direction, [copies])
        if up:
            self._carry("d2h", self.check.address, self.memory.address, length)
            wrong = self._differs(self.source, near, self.check, far, cell)
        else:
            wrong = self._differs(self.check, far, self.landing, near, cell)
        if wrong is not None:
            raise AssertionError(f"{tier}, {cell}: {wrong}")
        if not np.array_equal(before, self._taken(written, guards, cell)):
            raise AssertionError(f"{tier}, {cell}: it wrote a block that it was not to write")

    def _mark_check(self, cell: Cell) -> None:
        """Fills it with what is in no source, and was in it at no other time. In a frame of its
        own: an error that comes later keeps the frames it came through, and a view that one of
        them has keeps the pool."""
        key = cell.count * 2654435761 + cell.block_bytes + self._turn * _GOLDEN
        with viewed(self.check) as check:
            words = check.view(np.uint64)
            words[:] = np.arange(len(words), dtype=np.uint64)[::-1]
            words ^= np.uint64(key & _WORD_MAX)

    def _taken(
        self, side: Extent, index: npt.NDArray[np.uint32], cell: Cell
    ) -> npt.NDArray[np.uint8]:
        """A copy of those blocks."""
        with viewed(side) as seen:
            return _blocks(seen, cell)[index]

    def _differs(
        self,
        right: Extent,
        right_index: npt.NDArray[np.uint32],
        seen: Extent,
        seen_index: npt.NDArray[np.uint32],
        cell: Cell,
    ) -> str | None:
        """What is wrong with the first block that is not what it should be."""
        step = max(1, 16 * MIB // cell.block_bytes)  # few at a time: NumPy makes copies
        with viewed(right) as one, viewed(seen) as other:
            mine, theirs = _blocks(one, cell), _blocks(other, cell)
            for first in range(0, len(seen_index), step):
                some = slice(first, first + step)
                equal = (mine[right_index[some]] == theirs[seen_index[some]]).all(axis=1)
                if not equal.all():
                    number = first + int(equal.argmin())
                    return _told(number, mine[right_index[number]], theirs[seen_index[number]])
        return None

    def _carry(self, direction: Direction, destination: int, source: int, length: int) -> None:
        """All of the device's memory in one piece, by the plainest tier."""
        self._plain.execute("single", direction, Copies.one(destination, source, length))
        self.arrive(self._plain.mark())


def _blocks(seen: npt.NDArray[np.uint8], cell: Cell) -> npt.NDArray[np.uint8]:
    """The same bytes, a row a block."""
    whole_blocks = len(seen) // cell.block_bytes * cell.block_bytes
    return seen[:whole_blocks].reshape(-1, cell.block_bytes)


def _beside(index: npt.NDArray[np.uint32], room: int, block_bytes: int) -> npt.NDArray[np.uint32]:
    """Blocks behind those of @index that are not among them; some, if they are many."""
    behind = np.setdiff1d(index.astype(np.int64) + 1, index)
    most = max(1, _GUARDS_BYTES_MAX // block_bytes)
    return behind[behind < room][:most].astype(np.uint32)


def _told(number: int, right: npt.NDArray[np.uint8], seen: npt.NDArray[np.uint8]) -> str:
    """Where two blocks begin to differ, with what should be there: all there is to debug by."""
    at = int((right != seen).argmax())
    texts = [bytes(one[at : at + 16]).hex(" ") for one in (right, seen)]
    return (
        f"block {number} is not what was copied: from its byte {at} on it should be "
        f"{texts[0]}, it is {texts[1]}"
    )


@contextlib.contextmanager
def viewed(extent: Extent) -> Iterator[npt.NDArray[np.uint8]]:
    """Its bytes; nobody sees them afterwards."""
    seen = extent.numpy()
    yield seen
    del seen

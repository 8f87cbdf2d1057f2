# SPDX-License-Identifier: MIT
"""Extents: which bytes of a host pool are taken, and the handle of one who took some.

`Spans` is the book: free spans in order, first fit, neighbours merged when one is given back.
A pool is several pieces, each registered with the device by itself; no span crosses from one
piece into the next, so that no copy has to.

Invariants, compared all at once by audit():
  free spans are in order, apart from each other, and never empty;
  two free spans touch only where a piece ends;
  free + taken = the length of the pool.

An `Extent` ends when its `with` block does. Its bytes are given back then, or when the last
array on them is gone, the last region of them closed and the last copy that touches them has
ended, by a stream or by a channel: nobody gets bytes that somebody can still see or write (L3).
Until then they count as taken.

Spans has one lock around each call; it asks the device's registry with it held, never the other
way round. What the garbage collector calls takes no lock: it appends to a deque, and each call
that has the lock looks which of those may be given back: at some of them, and at all before it
says that there is no room.
"""

from __future__ import annotations

import bisect
import collections
import contextlib
import dataclasses
import itertools
import threading
import warnings
import weakref
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dmaplane._buffer import BufferRange
from dmaplane._errors import ClosedError, InvalidError, LimitError
from dmaplane._scope import Scope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import numpy.typing as npt

    from dmaplane._region import Access, Region

ALIGNMENT_BYTES: Final = 256
"""Extents begin and end on these: whole cache lines, and whole payloads of a PCIe write."""
_SETTLED: Final = 32
"""Ended extents that a call looks at; with many under many copies, all of them would take long."""


@dataclasses.dataclass(frozen=True, slots=True)
class SpanAccount:
    """Bytes of a pool by state. str() of it is for people."""

    length_bytes: int
    free_bytes: int
    taken_bytes: int
    """Of extents, the ended ones that are still shown or copied among them."""
    largest_free_bytes: int
    free_spans: int
    extents: int

    def __str__(self) -> str:
        return (
            f"{self.length_bytes} bytes = {self.free_bytes} free in {self.free_spans} spans"
            f" (the largest {self.largest_free_bytes}) + {self.taken_bytes} in {self.extents}"
            " extents"
        )


class Spans:
    """The book of a pool of these pieces, in bytes from its beginning.

    @copied: does a copy touch so many bytes from there on now?
    """

    __slots__ = (
        "_bounds",
        "_copied",
        "_ends",
        "_late",
        "_lock",
        "_starts",
        "_taken",
        "ended",
        "length",
    )

    def __init__(
        self, pieces: Iterable[int], copied: Callable[[int, int], bool] = lambda _, __: False
    ) -> None:
        ends = list(itertools.accumulate(pieces))
        self._copied = copied
        self.ended = False  # set once, when the pool is closed
        self.length = ends[-1]
        self._lock = threading.Lock()
        # Protected by the lock: begin and end of each free span, in order.
        self._ends = ends
        self._starts = [0, *ends[:-1]]
        self._taken: dict[int, int] = {}  # begin -> length
        # Immutable: where pieces meet, so that spans do not.
        self._bounds = frozenset(ends)
        # Appended to by anybody, without the lock: spans that have ended, where each begins, and
        # what says whether somebody still reaches it.
        self._late: collections.deque[tuple[int, Callable[[], bool] | None]] = collections.deque()

    def take(self, length: int) -> int:
        """The first free span of @length bytes (a multiple of ALIGNMENT_BYTES); where it begins.

        LimitError, with the account in its text, if there is none.
        """
        with self._lock:
            self._settle(_SETTLED)
            start = self._take(length)
            if start is None and self._late:
                self._settle()
                start = self._take(length)
            if start is None:
                raise LimitError(
                    f"no span of {length} bytes is free ({self._account()}); close extents, ask for"
                    " less, or make a larger pool or one of larger pieces"
                )
            return start

    def _take(self, length: int) -> int | None:
        for at, (start, end) in enumerate(zip(self._starts, self._ends, strict=True)):
            if end - start < length:
                continue
            if end - start == length:
                del self._starts[at], self._ends[at]
            else:
                self._starts[at] = start + length
            self._taken[start] = length
            return start
        return None

    def give(self, start: int, reached: Callable[[], bool] | None = None) -> None:
        """Gives back what began at @start, as soon as no copy touches it. Takes no lock.

        @reached: does anybody else? Asked with the lock held.
        """
        self._late.append((start, reached))

    def account(self) -> SpanAccount:
        """Bytes by state."""
        with self._lock:
            self._settle()
            return self._account()

    def audit(self) -> SpanAccount:
        """account(), after comparing the books; O(spans). AssertionError: a bug of ours."""
        with self._lock:
            self._settle()
            spans = [
                (start, end, True) for start, end in zip(self._starts, self._ends, strict=True)
            ]
            spans += [(start, start + size, False) for start, size in self._taken.items()]
            spans.sort()
            at, before = 0, False
            for start, end, free in spans:
                if start != at or end <= start:
                    raise AssertionError(f"bytes {at} .. {start} are in no span, or in two")
                if free and before and start not in self._bounds:
                    raise AssertionError(f"two free spans touch at {start}")
                if any(start < bound < end for bound in self._bounds):
                    raise AssertionError(f"span {start} .. {end} crosses the end of a piece")
                at, before = end, free
            if at != self.length:
                raise AssertionError(f"the last {self.length - at} bytes are in no span")
            return self._account()

    def _account(self) -> SpanAccount:
        sizes = [end - start for start, end in zip(self._starts, self._ends, strict=True)]
        return SpanAccount(
            length_bytes=self.length,
            free_bytes=sum(sizes),
            taken_bytes=sum(self._taken.values()),
            largest_free_bytes=max(sizes, default=0),
            free_spans=len(sizes),
            extents=len(self._taken),
        )

    def _settle(self, most: int | None = None) -> None:
        late = len(self._late)
        for _ in range(late if most is None else min(late, most)):
            start, reached = self._late.popleft()
            if self._copied(start, self._taken[start]) or (reached is not None and reached()):
                self._late.append((start, reached))
            else:
                self._give(start)

    def _give(self, start: int) -> None:
        end = start + self._taken.pop(start)
        at = bisect.bisect(self._starts, start)
        if at < len(self._starts) and self._starts[at] == end and end not in self._bounds:
            end = self._ends[at]
            del self._starts[at], self._ends[at]
        if at > 0 and self._ends[at - 1] == start and start not in self._bounds:
            self._ends[at - 1] = end
        else:
            self._starts.insert(at, start)
            self._ends.insert(at, end)


class Extent(Scope):
    """Contiguous bytes of a host pool, registered with its device. Made by HostPool.extent().

    `address` is what copies name; `offset` is where it begins in the pool. It may be closed while
    a copy is under way; nobody else gets the bytes before that has ended.
    """

    __slots__ = (
        "__weakref__",
        "_ending",
        "_known",
        "_part",
        "_refusal",
        "_regions",
        "_spans",
        "_views",
        "address",
        "length",
        "offset",
    )

    def __init__(
        self,
        spans: Spans,
        part: BufferRange,
        *,
        address: int,
        offset: int,
        length: int,
        known: list[Region],
    ) -> None:
        """@known: regions of all extents of that buffer, which they share."""
        self.address = address
        self.offset = offset
        self.length = length
        self._spans = spans
        self._part = part
        self._regions: list[Region] | None = None  # none as long as nobody had `range`
        self._known = known
        self._refusal: str | None = None
        self._views: dict[int, weakref.ref[Any]] = {}
        self._ending = [True]  # popped by whoever gives the bytes back: list.pop() happens once

    def _check(self) -> None:
        if self._refusal is not None:
            raise ClosedError(self._refusal)

    @property
    def closed(self) -> bool:
        """True after close(); its bytes may still be shown by arrays."""
        return self._refusal is not None

    @property
    def views(self) -> int:
        """Arrays of these bytes that are alive, by themselves or through others made of them."""
        return len(self._views)

    @property
    def range(self) -> ExtentRange:
        """Its place in a buffer of the plane: to register for peers, or to copy by a channel.

        What is made of it keeps the bytes as arrays of the extent do: views while they live,
        regions until they are closed, copies of a channel until they have ended.
        """
        self._check()
        if self._regions is None:
            self._regions = []
        return ExtentRange(self, self._part)

    def numpy(
        self, shape: int | Sequence[int] | None = None, dtype: npt.DTypeLike = np.uint8
    ) -> npt.NDArray[Any]:
        """A numpy array of these bytes, without a copy; a holder while it lives."""
        return ExtentRange(self, self._part).numpy(shape, dtype)

    @contextlib.contextmanager
    def _reserved(self) -> Iterator[None]:
        """The bytes are not given back meanwhile. ClosedError if it is closed."""
        # Reserved first, looked at second: who closes sets the refusal first and looks at the
        # views second, so one of us sees the other.
        reserved: Any = np.empty(0)
        self._views[id(reserved)] = weakref.ref(reserved)
        try:
            self._check()
            yield
        finally:
            self._view_gone(id(reserved))

    def _shown(self, made: memoryview) -> None:
        """All that is made of @made keeps alive what it is of, and that keeps the bytes."""
        root: Any = made.obj
        key = id(root)
        self._views[key] = weakref.ref(root, lambda _, key=key: self._view_gone(key))  # type: ignore[misc]

    def _registered(self, made: Region) -> None:
        self._regions = [*(self._regions or ()), made]
        self._known.append(made)

    def _reached(self) -> bool:
        """Does anybody reach these bytes by what `range` was? Nobody gets them until then."""
        if any(not one.closed for one in self._regions or ()):
            return True
        buffer = self._part.buffer
        if self._regions is None or buffer.closed:
            return False
        self._known[:] = [one for one in self._known if not one.closed]
        try:
            holders = buffer.holders
        except ClosedError:
            return False
        # Whose bytes a channel moves is not known here, nor whose a region is that was not made by
        # an extent's range: it may be these.
        return holders.operations > 0 or holders.regions > len(self._known)

    def _view_gone(self, key: int) -> None:
        self._views.pop(key, None)
        if self._refusal is not None:
            self._give_back()

    def _give_back(self) -> None:
        if self._views:
            return
        try:
            self._ending.pop()
        except IndexError:
            return
        self._spans.give(self.offset, self._reached)

    def close(self) -> None:
        """Gives the bytes back, now or when nothing shows or copies them any more; idempotent."""
        if self._refusal is None:
            self._refusal = f"the extent at {self.offset} of the pool is closed"
        self._give_back()

    def __del__(self) -> None:
        if getattr(self, "_refusal", "") is None and not self._spans.ended:
            warnings.warn(
                f"{self!r} was never closed; its bytes are taken until the pool is closed",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.length} bytes"
        return f"<extent at {self.offset}, {state}>"


class ExtentRange(BufferRange):
    """The bytes of an extent, or a part of them, in a buffer of the plane. Made by Extent.range."""

    __slots__ = ("_extent",)

    def __init__(self, extent: Extent, part: BufferRange) -> None:
        super().__init__(part.buffer, part.offset, part.length_bytes)
        self._extent = extent

    def __getitem__(self, part: slice) -> ExtentRange:
        return ExtentRange(self._extent, super().__getitem__(part))

    def region(self, access: Access = "rw") -> Region:
        """Registers these bytes for peers; nobody else gets them before it is closed."""
        with self._extent._reserved():
            made = super().region(access)
            self._extent._registered(made)
        return made

    def _view(self, name: str) -> memoryview:
        with self._extent._reserved():
            made = super()._view(name)
            self._extent._shown(made)
        return made


def rounded(length: int, limit: int) -> int:
    """@length in whole ALIGNMENT_BYTES; InvalidError unless it is 1 .. @limit."""
    if not 0 < length <= limit:
        raise InvalidError(
            "length", f"{length} bytes", fix=f"1 .. {limit}, or a pool of larger pieces"
        )
    return -(-length // ALIGNMENT_BYTES) * ALIGNMENT_BYTES

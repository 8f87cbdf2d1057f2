# SPDX-License-Identifier: MIT
"""Copies: what one call of a stream copies, as arrays and never as an object a block.

Two forms. Lists: a source, a destination and a length each. A grid: blocks of one length that
lie at `base + index * stride` on both sides, kept as two bases, two strides and two arrays of
32-bit indices: 8 bytes a block instead of 24, and what a kernel takes as it is. A grid gives
its lists when somebody asks for them.

Invariants: the arrays are our own and read-only, so that a caller may reuse his; there is at
least one copy, every length is > 0, and no range leaves the lower half of the address space,
so that no sum of ours overflows. The copies of a call have no order among themselves.

Nothing here is locked: what is made on demand is the same whoever makes it.
"""

from __future__ import annotations

import dataclasses
import operator
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from dmaplane._errors import InvalidError

if TYPE_CHECKING:
    import numpy.typing as npt

Direction = Literal["h2d", "d2h"]
Side = Literal["source", "destination"]

COUNT_MAX: Final = 1 << 24
"""Copies of one call."""
LENGTH_MAX: Final = 1 << 38
"""Bytes of one copy; times COUNT_MAX still a 64-bit number."""
_ADDRESS_END: Final = 1 << 63
_SPARSE: Final = 64
"""A table of so many places a block costs less than sorting the blocks."""
_TABLE_MAX: Final = 1 << 24


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Blocks of one length at `base + index * stride`, the same number on both sides."""

    source: int
    destination: int
    source_stride: int
    destination_stride: int
    length: int
    source_index: npt.NDArray[np.uint32]
    destination_index: npt.NDArray[np.uint32]


class Copies:
    """What one call copies. Made by one(), many(), gather(), scatter() or indexed()."""

    __slots__ = (
        "_bytes",
        "_destinations",
        "_extents",
        "_grid",
        "_lengths",
        "_merged",
        "_sources",
        "_spans",
        "count",
    )

    def __init__(
        self,
        *,
        count: int,
        total: int,
        lists: tuple[npt.NDArray[np.uint64], ...] | None,
        grid: Grid | None,
    ) -> None:
        """Of the class methods only: all was checked by them, and the arrays are ours."""
        self.count = count
        self._bytes = total
        self._grid = grid
        self._destinations = None if lists is None else lists[0]
        self._sources = None if lists is None else lists[1]
        self._lengths = None if lists is None else lists[2]
        self._merged: Copies | None = None
        self._spans: dict[Side, tuple[int, int]] = {}
        self._extents: dict[Side, tuple[int, int] | None] = {}

    @classmethod
    def one(cls, destination: int, source: int, length: int) -> Copies:
        """@length bytes from @source to @destination."""
        return cls.many([destination], [source], length)

    @classmethod
    def many(
        cls, destinations: npt.ArrayLike, sources: npt.ArrayLike, lengths: npt.ArrayLike
    ) -> Copies:
        """From each of @sources to the destination beside it; @lengths: one for all, or each's."""
        to = _numbers("destinations", destinations)
        return cls._listed(to, _numbers("sources", sources), _lengths(lengths, len(to)))

    @classmethod
    def gather(cls, destination: int, sources: npt.ArrayLike, length: npt.ArrayLike) -> Copies:
        """From each of @sources, one after the other, to what begins at @destination."""
        parts = _numbers("sources", sources)
        lengths = _lengths(length, len(parts))
        return cls._listed(_packed("destination", destination, lengths), parts, lengths)

    @classmethod
    def scatter(cls, destinations: npt.ArrayLike, source: int, length: npt.ArrayLike) -> Copies:
        """What begins at @source, one after the other, to each of @destinations."""
        parts = _numbers("destinations", destinations)
        lengths = _lengths(length, len(parts))
        return cls._listed(parts, _packed("source", source, lengths), lengths)

    @classmethod
    def _listed(
        cls,
        destinations: npt.NDArray[np.uint64],
        sources: npt.NDArray[np.uint64],
        lengths: npt.NDArray[np.uint64],
    ) -> Copies:
        if len(sources) != len(destinations):
            raise InvalidError(
                "sources",
                f"{len(sources)} for {len(destinations)} destinations",
                fix="one beside each",
            )
        for field, starts in (("destinations", destinations), ("sources", sources)):
            ends = starts + lengths
            if int(ends.max()) >= _ADDRESS_END:
                first = int((ends >= np.uint64(_ADDRESS_END)).argmax())
                raise InvalidError(
                    f"{field}[{first}]",
                    f"{int(lengths[first])} bytes from {int(starts[first]):#x} on",
                    fix="an address of this process",
                )
        for array in (destinations, sources, lengths):
            array.setflags(write=False)
        return cls(
            count=len(destinations),
            total=int(lengths.sum()),
            lists=(destinations, sources, lengths),
            grid=None,
        )

    @classmethod
    def indexed(
        cls,
        *,
        source: int,
        destination: int,
        source_stride: int,
        destination_stride: int,
        length: int,
        source_index: npt.ArrayLike,
        destination_index: npt.ArrayLike,
    ) -> Copies:
        """Block `source_index[i]` of what begins at @source, to `destination_index[i]` there.

        @source_stride, @destination_stride: bytes from one block to the next, each side's own.
        @length: bytes of a block.
        """
        length = int(_lengths(length, 1)[0])
        out = _address("source", source), _stride("source_stride", source_stride)
        to = _address("destination", destination), _stride("destination_stride", destination_stride)
        from_index = _index("source_index", source_index)
        to_index = _index("destination_index", destination_index)
        if len(from_index) != len(to_index):
            raise InvalidError(
                "source_index",
                f"{len(from_index)} for {len(to_index)} of destination_index",
                fix="one beside each",
            )
        for field, (base, stride), index in (
            ("source_index", out, from_index),
            ("destination_index", to, to_index),
        ):
            last = int(index.max())
            if base + last * stride + length >= _ADDRESS_END:
                raise InvalidError(field, f"block {last} is beyond memory", fix="a block there is")
        grid = Grid(
            source=out[0],
            destination=to[0],
            source_stride=out[1],
            destination_stride=to[1],
            length=length,
            source_index=from_index,
            destination_index=to_index,
        )
        count = len(from_index)
        return cls(count=count, total=count * length, lists=None, grid=grid)

    @property
    def grid(self) -> Grid | None:
        """The grid form, if that is how they were given."""
        return self._grid

    @property
    def bytes(self) -> int:
        """All that is copied."""
        return self._bytes

    @property
    def sources(self) -> npt.NDArray[np.uint64]:
        """Where each comes from; made now for a grid."""
        if self._sources is None:
            self._sources = self._laid("source")
        return self._sources

    @property
    def destinations(self) -> npt.NDArray[np.uint64]:
        """Where each goes; made now for a grid."""
        if self._destinations is None:
            self._destinations = self._laid("destination")
        return self._destinations

    @property
    def lengths(self) -> npt.NDArray[np.uint64]:
        """Bytes of each; made now for a grid."""
        if self._lengths is None:
            assert self._grid is not None
            lengths = np.full(self.count, self._grid.length, dtype=np.uint64)
            lengths.setflags(write=False)
            self._lengths = lengths
        return self._lengths

    @property
    def length(self) -> int | None:
        """The length of all of them if they have but one."""
        if self._grid is not None:
            return self._grid.length
        first = int(self.lengths[0])
        return first if bool((self.lengths == first).all()) else None

    def side(self, side: Side) -> npt.NDArray[np.uint64]:
        """`sources` or `destinations`."""
        return self.sources if side == "source" else self.destinations

    def _laid(self, side: Side) -> npt.NDArray[np.uint64]:
        grid = self._grid
        assert grid is not None
        base, stride, index = _of(grid, side)
        laid = index.astype(np.uint64)
        laid *= np.uint64(stride)
        laid += np.uint64(base)
        laid.setflags(write=False)
        return laid

    def span(self, side: Side) -> tuple[int, int]:
        """The lowest address of @side, and the end of the highest: all of it lies between."""
        known = self._spans.get(side)
        if known is None:
            if self._grid is not None:
                base, stride, index = _of(self._grid, side)
                last = base + int(index.max()) * stride
                known = base + int(index.min()) * stride, last + self._grid.length
            else:
                starts = self.side(side)
                known = int(starts.min()), int((starts + self.lengths).max())
            self._spans[side] = known
        return known

    def extent(self, direction: Direction) -> tuple[int, int] | None:
        """Address and length of the host's side if it is one piece, in whatever order; or None.

        For what needs the host's memory contiguous. Asked again it costs nothing; the first
        time a sort, for lists that are in no order.
        """
        side: Side = "source" if direction == "h2d" else "destination"
        if side not in self._extents:
            self._extents[side] = self.span(side) if self._whole(side) else None
        found = self._extents[side]
        return None if found is None else (found[0], found[1] - found[0])

    def _whole(self, side: Side) -> bool:
        """Whether @side is all there is between its first byte and its last, each once."""
        start, end = self.span(side)
        if end - start != self._bytes:
            return False
        grid = self._grid
        if grid is not None:
            _, stride, index = _of(grid, side)
            if stride == grid.length:
                return not _repeats(index)  # as many blocks as places, and none is there twice
        starts, lengths = self.side(side), self.lengths
        if not bool((starts[1:] == starts[:-1] + lengths[:-1]).all()):
            order = np.argsort(starts)
            starts, lengths = starts[order], lengths[order]
        return bool((starts[1:] == starts[:-1] + lengths[:-1]).all())

    def merged(self) -> Copies:
        """The same bytes in as few copies as can be: neighbours on both sides are one.

        Gives itself where nothing is to be joined, which is looked for before anything is
        sorted; else what there is in the order of the destinations.
        """
        if self._merged is None:
            self._merged = self._joined()
        return self._merged

    def _joined(self) -> Copies:
        if self.count == 1 or (self._grid is not None and not _may_join(self._grid)):
            return self
        to, out, lengths = self.destinations, self.sources, self.lengths
        joins = _joins(to, out, lengths)
        if bool((to[1:] < to[:-1]).any()):
            # In the order of the sources neighbours stand beside each other as well.
            if bool((out[1:] >= out[:-1] + lengths[:-1]).all()) and not bool(joins.any()):
                return self
            order = np.argsort(to)
            to, out, lengths = to[order], out[order], lengths[order]
            joins = _joins(to, out, lengths)
        if not bool(joins.any()):
            return self
        first = np.flatnonzero(np.concatenate(([True], ~joins)))
        whole = np.add.reduceat(lengths, first)
        joined = Copies._listed(to[first], out[first], whole)
        joined._merged = joined
        return joined

    def overlaps(self) -> bool:
        """True if two of them write the same byte: what it then were, nobody could say."""
        if self.count == 1:
            return False
        grid = self._grid
        if grid is not None and grid.destination_stride >= grid.length:
            return _repeats(grid.destination_index)
        to, lengths = self.destinations, self.lengths
        if bool((to[1:] >= to[:-1] + lengths[:-1]).all()):
            return False
        order = np.argsort(to)
        to, lengths = to[order], lengths[order]
        return not bool((to[1:] >= to[:-1] + lengths[:-1]).all())

    def __len__(self) -> int:
        return self.count

    def __repr__(self) -> str:
        kind = "on a grid" if self._grid is not None else "listed"
        return f"<{self.count} copies {kind}, {self._bytes} bytes>"


def _of(grid: Grid, side: Side) -> tuple[int, int, npt.NDArray[np.uint32]]:
    if side == "source":
        return grid.source, grid.source_stride, grid.source_index
    return grid.destination, grid.destination_stride, grid.destination_index


def _joins(
    to: npt.NDArray[np.uint64], out: npt.NDArray[np.uint64], lengths: npt.NDArray[np.uint64]
) -> npt.NDArray[np.bool_]:
    """Of each copy but the last, whether the next one goes on where it ends, on both sides."""
    joins: npt.NDArray[np.bool_] = to[:-1] + lengths[:-1] == to[1:]
    joins &= out[:-1] + lengths[:-1] == out[1:]
    return joins


def _may_join(grid: Grid) -> bool:
    """False if no two blocks of a grid are neighbours on both sides. By the numbers alone: no
    address is made, and nothing is sorted unless the destinations are few and far between."""
    strides = grid.source_stride, grid.destination_stride
    if max(strides) > grid.length:
        return False
    if strides != (grid.length, grid.length):
        return True  # blocks that overlap: whoever sorts them will see
    out, to = grid.source_index, grid.destination_index
    if bool((to[1:] > to[:-1]).all()):
        return bool(((to[1:] - to[:-1] == 1) & (out[1:] - out[:-1] == 1)).any())
    low, high = int(to.min()), int(to.max())
    if high - low > min(_SPARSE * len(to), _TABLE_MAX):
        # Both numbers in one, so that values are sorted and not their places.
        both = to.astype(np.uint64)
        both <<= np.uint64(32)
        both |= out
        both.sort()
        step = np.uint64((1 << 32) + 1)
        return bool((both[1:] - both[:-1] == step).any())
    # Each block leaves the number of the source that would go on from it at the place behind
    # its destination; who is there looks. 0 goes on from nobody, so it can mean "nothing".
    at = (to - np.uint32(low)).astype(np.intp)
    awaited = np.zeros(high - low + 2, dtype=np.uint32)
    awaited[at + 1] = out + np.uint32(1)
    return bool(((awaited[at] == out) & (out > 0)).any())


def _repeats(index: npt.NDArray[np.uint32]) -> bool:
    if bool((index[1:] > index[:-1]).all()):
        return False
    low, high = int(index.min()), int(index.max())
    if high - low + 1 < len(index):
        return True
    if high - low > 16 * len(index) + 4096:
        return len(np.unique(index)) < len(index)
    seen = np.zeros(high - low + 1, dtype=np.bool_)
    seen[index - np.uint32(low)] = True
    return int(np.count_nonzero(seen)) < len(index)


def _whole(field: str, given: npt.ArrayLike, side: int) -> npt.NDArray[Any]:
    """@given as whole numbers >= 0 in one row, or as one number if @side is 0."""
    array = np.asarray(given)
    if not 0 < array.size <= COUNT_MAX:
        raise InvalidError(field, f"{array.size} copies", fix=f"1 .. {COUNT_MAX} a call")
    if array.dtype.kind not in "ui":
        raise InvalidError(field, f"{array.dtype} are no whole numbers", fix="integers >= 0")
    if array.ndim != side and not (side and array.ndim == 0):
        raise InvalidError(field, f"an array of shape {array.shape}", fix="one row of numbers")
    if array.dtype.kind == "i" and int(array.min()) < 0:
        first = int((array.reshape(-1) < 0).argmax())
        raise InvalidError(f"{field}[{first}]", f"{int(array.reshape(-1)[first])}", fix=">= 0")
    return array


def _numbers(field: str, given: npt.ArrayLike) -> npt.NDArray[np.uint64]:
    array = _whole(field, given, 1)
    if array.ndim == 0:
        raise InvalidError(field, "one number", fix="a row of them; Copies.one() is for one")
    if array.dtype.kind == "u" and int(array.max()) >= _ADDRESS_END:
        first = int((array >= np.uint64(_ADDRESS_END)).argmax())
        raise InvalidError(f"{field}[{first}]", f"{int(array[first]):#x}", fix="an address")
    return array.astype(np.uint64, order="C")


def _lengths(given: npt.ArrayLike, count: int) -> npt.NDArray[np.uint64]:
    array = _whole("length", given, 1)
    if int(array.min()) == 0 or int(array.max()) > LENGTH_MAX:
        bad = (array == 0) | (array > LENGTH_MAX)
        where = "length" if array.ndim == 0 else f"length[{int(bad.argmax())}]"
        value = int(array.reshape(-1)[int(bad.argmax())])
        raise InvalidError(where, f"{value}", fix=f"1 .. {LENGTH_MAX} bytes")
    if array.ndim == 0:
        return np.full(count, int(array), dtype=np.uint64)
    if len(array) != count:
        raise InvalidError("length", f"{len(array)} for {count} copies", fix="one, or one each")
    return array.astype(np.uint64, order="C")


def _packed(field: str, start: int, lengths: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Where each begins if they lie one after the other from @start on."""
    starts = np.cumsum(lengths)
    starts -= lengths
    starts += np.uint64(_address(field, start))
    return starts


def _address(field: str, given: int) -> int:
    address = operator.index(given)
    if not 0 <= address < _ADDRESS_END:
        raise InvalidError(field, f"{address}", fix="an address of this process")
    return address


def _stride(field: str, given: int) -> int:
    stride = operator.index(given)
    if not 0 <= stride <= LENGTH_MAX:
        raise InvalidError(field, f"{stride}", fix=f"0 .. {LENGTH_MAX} bytes")
    return stride


def _index(field: str, given: npt.ArrayLike) -> npt.NDArray[np.uint32]:
    array = _whole(field, given, 1)
    if array.ndim == 0:
        raise InvalidError(field, "one number", fix="a row of them")
    if array.dtype != np.uint32 and int(array.max()) >= 1 << 32:
        first = int((array >= 1 << 32).argmax())
        raise InvalidError(f"{field}[{first}]", f"{int(array[first])}", fix="below 2**32")
    index = array.astype(np.uint32, order="C")
    index.setflags(write=False)
    return index

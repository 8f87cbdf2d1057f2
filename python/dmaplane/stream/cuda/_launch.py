# SPDX-License-Identifier: MIT
"""What a kernel is told: copies as the arguments of launches, in whole arrays.

A grid stays one: its kernel takes the index arrays as they are. Lists of one length are
taken as they are too. Lists of several lengths are cut into pieces of one upper length, so
that long and short ones share the warps fairly, and there are at most twice as many pieces as
copies. What has more rows or descriptors than one launch may have becomes several.

Invariants of a launch, on which copy.cu relies: rows * count < 2^31; a block is at most
2^30 bytes; each address and stride is a multiple of `word`; `ragged` is set if a length
is not. Nothing here knows the driver, nothing is locked.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from dmaplane.stream.cuda._entries import CopyArguments, Shape
from dmaplane.stream.cuda._program import WORDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from dmaplane.stream._copies import Copies, Direction, Side

    Array = npt.NDArray[np.generic]
    Lists = tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64], npt.NDArray[np.uint64]]

Form = Literal["grid", "list"]
LANES: Final = 32
ROWS_END: Final = 1 << 31
BLOCK_MAX: Final = 1 << 30
BULK_PIECE: Final = 4096
_PIECE_MIN: Final = 4096
_PIECE_MAX: Final = 1 << 24


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Launch:
    """Blocks that one launch copies."""

    form: Form
    word: int
    """The widest word that every address and stride is a multiple of."""
    length: int
    """Of a block; the longest if `lengths` has each one's."""
    count: int
    ragged: bool
    source: int = 0
    destination: int = 0
    source_stride: int = 0
    destination_stride: int = 0
    sources: Array | None = None
    """uint32 numbers of a grid, uint64 addresses of a list, None: one stride after the other."""
    destinations: Array | None = None
    lengths: npt.NDArray[np.uint32] | None = None

    @property
    def arrays(self) -> tuple[Array | None, Array | None, Array | None]:
        """Descriptors, in the order of the arguments."""
        return self.sources, self.destinations, self.lengths

    @property
    def descriptor_bytes(self) -> int:
        """Of all arrays, each from a multiple of 16 on."""
        return sum(-(-one.nbytes // 16) * 16 for one in self.arrays if one is not None)

    @property
    def rows(self) -> int:
        """Rows of one word a lane that the longest block has."""
        return -(-self.length // (LANES * self.word))

    @property
    def bulk(self) -> bool:
        """Whether the bulk copy unit may do it."""
        return self.word == WORDS[0] and not self.ragged

    def arguments(self, places: tuple[int, int, int], *, bulk: bool = False) -> CopyArguments:
        """What the kernel gets; @places: where the arrays are, 0 for one that is not there."""
        return CopyArguments(
            source=self.source,
            destination=self.destination,
            source_stride=self.source_stride,
            destination_stride=self.destination_stride,
            sources=places[0],
            destinations=places[1],
            lengths=places[2],
            length=self.length,
            rows=-(-self.length // BULK_PIECE) if bulk else self.rows,
            count=self.count,
            ragged=int(self.ragged),
        )

    def shape(self, *, groups: int, threads: int) -> Shape:
        """As many groups as have work, at most @groups."""
        slots = 8 if self.word == WORDS[0] else 16
        warps = -(-self.rows * self.count // slots)
        return Shape(max(1, min(groups, -(-warps // (threads // LANES)))), threads)

    def bulk_shape(self, *, groups: int, slots: int) -> Shape:
        """The same for the bulk copy unit: a group is a warp and a ring of @slots pieces."""
        pieces = -(-self.length // BULK_PIECE) * self.count
        return Shape(min(groups, pieces), LANES, slots * (BULK_PIECE + 8))

    def part(self, first: int, end: int) -> Launch:
        """Blocks @first .. @end of it."""

        def cut(array: Array | None) -> Array | None:
            return None if array is None else array[first:end]

        return dataclasses.replace(
            self,
            count=end - first,
            source=self.source + (first * self.source_stride if self.sources is None else 0),
            destination=self.destination
            + (first * self.destination_stride if self.destinations is None else 0),
            sources=cut(self.sources),
            destinations=cut(self.destinations),
            lengths=None if self.lengths is None else self.lengths[first:end],
        )


def launches(copies: Copies, *, descriptor_bytes: int) -> Iterator[Launch]:
    """@copies as launches whose descriptors take at most @descriptor_bytes each."""
    grid = copies.grid
    if grid is None and copies.count == 1 and copies.bytes <= BLOCK_MAX:
        yield _alone(int(copies.sources[0]), int(copies.destinations[0]), copies.bytes)
        return
    if grid is not None and grid.length <= BLOCK_MAX:
        strides = grid.source_stride | grid.destination_stride
        word = word_of(grid.source | grid.destination | strides)
        whole = Launch(
            "grid",
            word,
            grid.length,
            copies.count,
            grid.length % word > 0,
            source=grid.source,
            destination=grid.destination,
            source_stride=grid.source_stride,
            destination_stride=grid.destination_stride,
            sources=grid.source_index,
            destinations=grid.destination_index,
        )
    else:
        whole = listed(copies.sources, copies.destinations, copies.lengths)
    yield from bounded(whole, descriptor_bytes=descriptor_bytes)


def _alone(source: int, destination: int, length: int) -> Launch:
    """One block: it needs no descriptors."""
    word = word_of(source | destination)
    return Launch(
        "grid", word, length, 1, length % word > 0, source=source, destination=destination
    )


def listed(
    sources: npt.NDArray[np.uint64],
    destinations: npt.NDArray[np.uint64],
    lengths: npt.NDArray[np.uint64],
) -> Launch:
    """Lists as one launch, which may have to be bounded()."""
    longest = int(lengths.max())
    uniform = longest == int(lengths.min())
    if not uniform or longest > BLOCK_MAX:
        piece = _piece(int(lengths.sum()), len(lengths), longest)
        sources, destinations, lengths = cut(sources, destinations, lengths, piece)
        longest = int(lengths.max())
        uniform = longest == int(lengths.min())
    bits = int(np.bitwise_or.reduce(sources) | np.bitwise_or.reduce(destinations))
    word = word_of(bits)
    return Launch(
        "list",
        word,
        longest,
        len(lengths),
        bool((lengths % np.uint64(word)).any()),
        sources=sources,
        destinations=destinations,
        lengths=None if uniform else lengths.astype(np.uint32),
    )


def bounded(whole: Launch, *, descriptor_bytes: int) -> Iterator[Launch]:
    """@whole, or its parts: each with fewer rows and descriptors than one launch may have."""
    each = sum(one.itemsize for one in whole.arrays if one is not None)
    step = (ROWS_END - 1) // whole.rows
    if each:
        step = min(step, max(1, (descriptor_bytes - 3 * 16) // each))
    if whole.count <= step:
        yield whole
        return
    for first in range(0, whole.count, step):
        yield whole.part(first, min(first + step, whole.count))


def cut(
    sources: npt.NDArray[np.uint64],
    destinations: npt.NDArray[np.uint64],
    lengths: npt.NDArray[np.uint64],
    piece: int,
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """The same bytes in copies of at most @piece bytes, each cut from its beginning on."""
    size = np.uint64(piece)
    parts = (lengths + size - np.uint64(1)) // size
    if int(parts.max()) == 1:
        return sources, destinations, lengths
    return _split(sources, destinations, lengths, parts=parts, piece=size, skew=None)


def cut_at(
    sources: npt.NDArray[np.uint64],
    destinations: npt.NDArray[np.uint64],
    lengths: npt.NDArray[np.uint64],
    *,
    place: npt.NDArray[np.uint64],
    piece: int,
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """The same bytes, none of which straddles a multiple of @piece. @place: where each begins."""
    size = np.uint64(piece)
    if not piece & (piece - 1):
        # Hardly ever does one straddle a large piece: a third of what dividing costs says so.
        bits = np.uint64(piece.bit_length() - 1)
        if not bool(((place ^ (place + (lengths - np.uint64(1)))) >> bits).any()):
            return sources, destinations, lengths
    skew = place % size
    parts = (skew + lengths + size - np.uint64(1)) // size
    if int(parts.max()) == 1:
        return sources, destinations, lengths
    return _split(sources, destinations, lengths, parts=parts, piece=size, skew=skew)


def in_pieces(direction: Direction, copies: Copies, piece: int) -> Lists:
    """Destinations, sources and lengths of @copies, none of which straddles a multiple of
    @piece on the host's side."""
    to, out, lengths = copies.destinations, copies.sources, copies.lengths
    side: Side = "source" if direction == "h2d" else "destination"
    start, end = copies.span(side)
    grid = copies.grid
    if grid is None:
        none = False
    elif side == "source":
        none = _all_inside(grid.source, grid.source_stride, grid.length, piece)
    else:
        none = _all_inside(grid.destination, grid.destination_stride, grid.length, piece)
    if none or start // piece == (end - 1) // piece:
        return to, out, lengths
    out, to, lengths = cut_at(out, to, lengths, place=copies.side(side), piece=piece)
    return to, out, lengths


def _all_inside(base: int, stride: int, length: int, piece: int) -> bool:
    """Whether no block of such a grid can straddle a multiple of @piece, wherever it is."""
    return 0 < length <= stride and piece % stride == 0 and base % stride + length <= stride


def _split(
    sources: npt.NDArray[np.uint64],
    destinations: npt.NDArray[np.uint64],
    lengths: npt.NDArray[np.uint64],
    *,
    parts: npt.NDArray[np.uint64],
    piece: np.uint64,
    skew: npt.NDArray[np.uint64] | None,
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    counts = parts.astype(np.intp)
    of = np.repeat(np.arange(len(parts)), counts)
    number = (np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)).astype(np.uint64)
    begin, end = number * piece, (number + np.uint64(1)) * piece
    if skew is not None:
        # The first part is shorter by what lies before it in its piece.
        begin = np.maximum(begin, skew[of]) - skew[of]
        end = end - skew[of]
    end = np.minimum(end, lengths[of])
    return sources[of] + begin, destinations[of] + begin, end - begin


def word_of(bits: int) -> int:
    """The widest word that a number with these bits is a multiple of."""
    for word in WORDS:
        if bits % word == 0:
            return word
    raise AssertionError("everything is a multiple of 1")


def _piece(total: int, count: int, longest: int) -> int:
    """The upper length of a piece: about the mean, so that pieces are at most 2 * count."""
    mean = max(_PIECE_MIN, min(_PIECE_MAX, total // count, longest))
    return 1 << (mean - 1).bit_length()

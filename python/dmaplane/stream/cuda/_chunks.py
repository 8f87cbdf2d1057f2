# SPDX-License-Identifier: MIT
"""How a staged call is cut into chunks: what crosses in one piece, and which blocks are in it.

The rule for callers with an extent is a grid whose host's side is one piece. Then chunks are
whole blocks, and each is a launch by the device's index alone: nothing is sorted, no address
is made, and 4 bytes a block go to the device instead of 16. Everything else (lists, blocks
longer than a slot) is sorted by place and cut at the edges of equal chunks.

Chunks of a grid grow from FIRST_BYTES on, each twice the one before, up to a slot; going up
they shrink towards the end instead. What nothing overlaps is the first gather of what goes
down and the last scatter of what goes up: those are the small ones. Chunks are no smaller
than that because the processor needs about as long to put one in the lane as it needs to
cross.

Nothing here knows the driver, nothing is locked.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Final

import numpy as np

from dmaplane.stream.cuda._launch import Launch, cut_at, listed, word_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    from dmaplane.stream._copies import Copies, Direction
    from dmaplane.stream.cuda._launch import Lists

FIRST_BYTES: Final = 2 << 20
CHUNK_MIN: Final = 1 << 20
_CHUNK_STEP: Final = 64 << 10
_DEPTH: Final = 4


def chunk_bytes(length: int, slot_bytes: int) -> int:
    """How much of @length crosses at a time: a quarter, so that there is something to overlap."""
    quarter = -(-length // (_DEPTH * _CHUNK_STEP)) * _CHUNK_STEP
    return min(slot_bytes, max(min(CHUNK_MIN, slot_bytes), quarter))


def counts(blocks: int, block_bytes: int, slot_bytes: int) -> list[int]:
    """Blocks of each chunk, growing up to a slot. What is left at the end and not worth a chunk
    goes with the one before it, where both fit a slot."""
    most = slot_bytes // block_bytes
    size = first = max(1, min(most, FIRST_BYTES // block_bytes))
    made: list[int] = []
    left = blocks
    while left:
        taken = min(size, left)
        if left - taken < first // 2 and left <= most:
            taken = left
        made.append(taken)
        left -= taken
        size = min(most, 2 * size)
    return made


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """A part of the host's side that crosses at once."""

    host: int
    """Where it begins in host memory."""
    length: int
    launch: Callable[[int], Launch]
    """What gathers its blocks into a slot at that address, or scatters them from it; it may
    have to be bounded()."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """A grid whose host's side is one piece, in the order of that piece."""

    start: int
    """Of the host's side."""
    block_bytes: int
    base: int
    """Of the device's side."""
    stride: int
    index: npt.NDArray[np.uint32]
    """The device's number of the first block of the host, the second, ..."""

    def launch(self, direction: Direction, first: int, end: int, slot: int) -> Launch:
        """Blocks @first .. @end of it, one after the other from @slot on."""
        length = self.block_bytes
        word = word_of(self.base | self.stride | slot | length)
        index = self.index[first:end]
        if direction == "d2h":
            return Launch(
                "grid",
                word,
                length,
                end - first,
                False,
                source=self.base,
                source_stride=self.stride,
                sources=index,
                destination=slot,
                destination_stride=length,
            )
        return Launch(
            "grid",
            word,
            length,
            end - first,
            False,
            source=slot,
            source_stride=length,
            destination=self.base,
            destination_stride=self.stride,
            destinations=index,
        )

    def chunks(self, direction: Direction, slot_bytes: int) -> Iterator[Chunk]:
        """All of it, in order."""
        sizes = counts(len(self.index), self.block_bytes, slot_bytes)
        first = 0
        for size in sizes if direction == "d2h" else reversed(sizes):
            end = first + size
            place = self.start + first * self.block_bytes
            launch = functools.partial(self.launch, direction, first, end)
            yield Chunk(place, size * self.block_bytes, launch)
            first = end


def packed(copies: Copies, direction: Direction, slot_bytes: int) -> Packed | None:
    """@copies, whose host's side is one piece, as a grid of blocks no longer than a slot; or
    None."""
    grid, extent = copies.grid, copies.extent(direction)
    if grid is None or extent is None or grid.length > slot_bytes:
        return None
    host = grid.source, grid.source_stride, grid.source_index
    there = grid.destination, grid.destination_stride, grid.destination_index
    if direction == "d2h":
        host, there = there, host
    base, stride, index = host
    if stride != grid.length:
        return None
    if not bool((index[1:] > index[:-1]).all()):
        # Each place of the piece is there once, so this is a permutation, and no sort.
        order = np.empty_like(there[2])
        order[index - np.uint32((extent[0] - base) // stride)] = there[2]
        there = there[0], there[1], order
    return Packed(extent[0], grid.length, *there)


def sorted_chunks(
    copies: Copies, direction: Direction, start: int, length: int, slot_bytes: int
) -> Iterator[Chunk]:
    """The same for whatever else has its host's side in one piece, @length bytes from @start."""
    down = direction == "d2h"
    ours, theirs = (
        (copies.sources, copies.destinations) if down else (copies.destinations, copies.sources)
    )
    order = np.argsort(theirs, kind="stable")
    chunk = chunk_bytes(length, slot_bytes)
    theirs = theirs[order] - np.uint64(start)
    inside, places, lengths = cut_at(
        ours[order], theirs, copies.lengths[order], place=theirs, piece=chunk
    )
    bounds = np.searchsorted(places, np.arange(0, length + chunk, chunk, dtype=np.uint64))
    for number in range(-(-length // chunk)):
        first, end = int(bounds[number]), int(bounds[number + 1])
        offset = number * chunk
        blocks = inside[first:end], places[first:end] - np.uint64(offset), lengths[first:end]
        launch = functools.partial(_listed, direction, blocks)
        yield Chunk(start + offset, min(chunk, length - offset), launch)


def _listed(direction: Direction, blocks: Lists, slot: int) -> Launch:
    """Blocks of the device, their places in a slot, and their lengths, as a launch."""
    inside, places, lengths = blocks
    in_slot = places + np.uint64(slot)
    if direction == "d2h":
        return listed(inside, in_slot, lengths)
    return listed(in_slot, inside, lengths)


def chunks(
    copies: Copies, direction: Direction, extent: tuple[int, int], slot_bytes: int
) -> Iterator[Chunk]:
    """@copies in chunks, in the order of the host's side, which is @extent: address, length."""
    grid = packed(copies, direction, slot_bytes)
    if grid is not None:
        return grid.chunks(direction, slot_bytes)
    start, length = extent
    return sorted_chunks(copies, direction, start, length, slot_bytes)

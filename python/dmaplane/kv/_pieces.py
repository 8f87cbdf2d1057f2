# SPDX-License-Identifier: MIT
"""Pieces: the runs of one layer of a transfer, cut where chunks end.

What a transfer moves in one layer is a stream of bytes: all that the source has for the
destination, in the order of the destination's tokens (as Plan.gather() brings it into a stage).
Chunk k is bytes k * chunk_bytes on of that stream. So both sides know the chunks from the two
layouts, the tokens and the destination's blocks alone; where the source had the bytes is nobody's
business but its own.

Pieces are in the order of the stream, each in one chunk, and the same for every layer: a layer
only adds its own offset. Values; owner of nothing.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from dmaplane.kv._plan import Plan

    Offsets = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True)
class Pieces:
    """Arrays of one length, and where in them each chunk begins."""

    near: Offsets
    """Where the source has it: within its layer, or within the stage."""
    far: Offsets
    """Where the destination has it, within its layer."""
    length: Offsets
    starts: Offsets
    """Chunk k is pieces starts[k] .. starts[k + 1] - 1."""
    longest: int
    """Pieces of the chunk that has most."""

    @property
    def chunks(self) -> int:
        """Of one layer."""
        return len(self.starts) - 1

    @property
    def total_bytes(self) -> int:
        """Of one layer."""
        return int(self.length.sum())


def _cut(near: Offsets, far: Offsets, length: Offsets, chunk_bytes: int) -> Pieces:
    """Runs that are the stream, one after another, cut where a chunk ends."""
    ends = np.cumsum(length)
    stream, total = ends - length, int(ends[-1]) if len(ends) else 0
    begins = np.arange(0, total, chunk_bytes)
    starts = np.searchsorted(stream, begins, side="right") - 1
    skipped = begins - stream[starts]
    inside = skipped != 0
    if inside.any():
        whose = starts[inside]
        pieces = np.bincount(whose, minlength=len(stream))
        pieces += 1
        run = np.repeat(np.arange(len(stream)), pieces)
        starts += np.cumsum(inside)
        near, far, stream = near[run], far[run], stream[run]
        for each in (near, far, stream):
            each[starts] += skipped
        length = np.diff(stream, append=total)
    starts = np.append(starts, len(stream))
    return Pieces(near, far, length, starts, int(np.diff(starts).max(initial=0)))


def _cut_one(near: int, far: int, length: int, chunk_bytes: int) -> Pieces:
    """The same of a single run."""
    begins = np.arange(0, length, chunk_bytes)
    lengths = np.full(len(begins), chunk_bytes)
    lengths[-1] = length - int(begins[-1])
    return Pieces(near + begins, far + begins, lengths, np.arange(len(begins) + 1), 1)


def staged(plan: Plan, tokens: int, blocks: Offsets, chunk_bytes: int) -> Pieces:
    """From a stage, where the stream lies as it is. All that a receiver needs, too."""
    near, far, length = plan.gathered_runs(tokens, blocks)
    return _cut(near, far, length, chunk_bytes)


def direct(
    plan: Plan, tokens: int, source: Offsets, destination: Offsets, chunk_bytes: int
) -> Pieces:
    """From the source's own memory. @destination is rising, as blocks of a lease are.

    So the stream has its bytes in the order of the destination's memory, and so have the runs
    that cover the same bytes, once they rise.
    """
    one = plan.run(tokens, source, destination)
    if one is not None:
        return _cut_one(*one, chunk_bytes)
    near, far, length = plan.runs(tokens, source, destination)
    if not _rise(far):
        order = np.argsort(far, kind="stable")
        near, far, length = near[order], far[order], length[order]
    return _cut(near, far, length, chunk_bytes)


def _rise(offsets: Offsets) -> bool:
    return bool((offsets[1:] > offsets[:-1]).all())


def layer_bytes(plan: Plan, tokens: int) -> int:
    """How many bytes of each layer a transfer of so many tokens has."""
    stage = plan.stage
    return tokens * stage.token_bytes


def source_runs(plan: Plan, tokens: int, source: Offsets) -> tuple[Offsets, Offsets]:
    """Where the source has what it sends of a layer: offsets and lengths, in its own order."""
    anywhere = np.arange(plan.destination.blocks_for(tokens), dtype=np.int64)
    near, _, length = plan.runs(tokens, source, anywhere)
    order = np.argsort(near, kind="stable")
    return near[order], length[order]

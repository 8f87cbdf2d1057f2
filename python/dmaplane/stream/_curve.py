# SPDX-License-Identifier: MIT
"""Curves: what a tier costs in one direction, at measured points and between them.

A row is one size of block: seconds of a call at some counts. A curve is the rows of a tier in one
direction, in order of size. Between points it goes straight, in count and in bytes: a call costs
so much to launch, so much a block and so much a byte, and of such a sum a straight line is exact,
where one drawn between logarithms is up to 6 % above it at counts a factor of 4 apart.
Beyond the last point it goes on as steeply as at the end, and so below the smallest block.

Values: nothing here measures, locks or changes.
"""

from __future__ import annotations

import bisect
import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dmaplane.stream._copies import Direction
    from dmaplane.stream._device import TierName


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """Seconds of a call of `counts[i]` blocks of `block_bytes`; counts rise from the first on."""

    tier: TierName
    direction: Direction
    block_bytes: int
    counts: tuple[int, ...]
    seconds: tuple[float, ...]

    def at(self, count: float) -> float:
        """Seconds for so many blocks."""
        counts, seconds = self.counts, self.seconds
        if count <= counts[0]:
            return seconds[0]
        if len(counts) == 1:
            return seconds[0] * count / counts[0]  # at most that
        if count >= counts[-1]:
            return seconds[-1] + (count - counts[-1]) * _end_slope(counts, seconds)
        right = bisect.bisect(counts, count)
        part = (count - counts[right - 1]) / (counts[right] - counts[right - 1])
        return seconds[right - 1] + part * (seconds[right] - seconds[right - 1])


class Curve:
    """The rows of one tier in one direction."""

    __slots__ = ("rows", "sizes")

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = sorted(rows, key=lambda row: row.block_bytes)
        self.sizes = [row.block_bytes for row in self.rows]

    def seconds(self, count: float, block_bytes: float) -> float:
        """Of a call of @count blocks of @block_bytes each."""
        sizes, rows = self.sizes, self.rows
        if len(sizes) == 1:
            return rows[0].at(count) * max(1.0, block_bytes / sizes[0])
        if block_bytes < sizes[0]:
            first, second = rows[0].at(count), rows[1].at(count)
            slope = (second - first) / (sizes[1] - sizes[0])
            # So much a byte, and nothing else, is the least it can be.
            least = first * block_bytes / sizes[0]
            return max(min(first, first - (sizes[0] - block_bytes) * slope), least)
        if block_bytes >= sizes[-1]:
            # The last two and the first, to go on as steeply as they end.
            marks = (sizes[0], sizes[-2], sizes[-1])
            values = (rows[0].at(count), rows[-2].at(count), rows[-1].at(count))
            return values[-1] + (block_bytes - sizes[-1]) * _end_slope(marks, values)
        right = bisect.bisect(sizes, block_bytes)
        left = right - 1
        part = (block_bytes - sizes[left]) / (sizes[right] - sizes[left])
        low, high = rows[left].at(count), rows[right].at(count)
        return low + part * (high - low)


def _end_slope(marks: tuple[int, ...], values: tuple[float, ...]) -> float:
    """Steepness at the end; at least that of the whole, if a measurement made the end flat."""
    end = (values[-1] - values[-2]) / (marks[-1] - marks[-2])
    whole = (values[-1] - values[0]) / (marks[-1] - marks[0])
    return max(end, whole, 0.0)

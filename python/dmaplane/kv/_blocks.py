# SPDX-License-Identifier: MIT
"""Blocks: the books of a pool. Which block is in which state, and of which generation.

Numbers only: no memory, no clock, no names. The pool owns one and holds its lock around
every call, so nothing here locks.

Invariants, looked at with every change (Blocks.move) and all at once by audit():
  total = free + leased + quarantined; each block is in exactly one of the three;
  the stack of free blocks holds each free block once and nothing else;
  a generation only grows; even is published, and only a leased block ever is.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

FREE: Final = 0
LEASED: Final = 1
QUARANTINED: Final = 2
NAMES: Final = ("free", "leased", "quarantined")
_SPARSE: Final = 32
"""One in so many blocks: fewer are sorted, more are marked on a map of all."""


@dataclasses.dataclass(frozen=True, slots=True)
class Account:
    """Blocks of a pool by state. str() of it is for people."""

    allocated: int
    free: int
    leased: int
    quarantined: int
    """Of leases that have ended while somebody may still touch the memory."""

    @property
    def balanced(self) -> bool:
        """allocated = free + leased + quarantined, and none is negative."""
        parts = (self.free, self.leased, self.quarantined)
        return min(parts) >= 0 and self.allocated == sum(parts)

    def __str__(self) -> str:
        return (
            f"{self.allocated} blocks = {self.free} free + {self.leased} leased"
            f" + {self.quarantined} quarantined"
        )


class Blocks:
    """States and generations of so many blocks, and the stack of free ones."""

    __slots__ = ("_counts", "_free", "_generations", "_states", "total")

    def __init__(self, total: int) -> None:
        self.total = total
        self._states = np.zeros(total, np.uint8)
        self._generations = np.ones(total, np.uint32)  # odd: nothing is published
        self._free = np.arange(total - 1, -1, -1, dtype=np.int64)  # the top is at the end
        self._counts = [total, 0, 0]

    @property
    def account(self) -> Account:
        """How many are in each state."""
        return Account(self.total, *self._counts)

    def take(self, count: int) -> npt.NDArray[np.int64]:
        """Makes @count free blocks leased, and gives their numbers, rising. They must be there.

        What was given back last is taken first: it is still in a cache. Costs O(count) if that
        is in order already or many, else a sort of them.
        """
        left = self._counts[FREE] - count
        taken = self._rising(self._free[left : left + count][::-1])
        self.move(taken, before=FREE, after=LEASED)
        self._generations[taken] += 2  # who remembers the last tenant's finds another number
        taken.flags.writeable = False
        return taken

    def _rising(self, blocks: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        rising: npt.NDArray[np.int64]
        if (blocks[1:] > blocks[:-1]).all():
            rising = blocks.copy()
        elif len(blocks) * _SPARSE < self.total:
            rising = np.sort(blocks)
        else:
            chosen = np.zeros(self.total, np.bool_)
            chosen[blocks] = True
            rising = np.flatnonzero(chosen)
        return rising

    def end(self, blocks: npt.NDArray[np.int64], *, quarantined: bool) -> None:
        """Leased blocks become free, or quarantined; no longer published either way."""
        self._generations[blocks] |= 1  # odd + 0, even + 1
        self.move(blocks, before=LEASED, after=QUARANTINED if quarantined else FREE)

    def free(self, blocks: npt.NDArray[np.int64]) -> None:
        """Quarantined blocks become free."""
        self.move(blocks, before=QUARANTINED, after=FREE)

    def move(self, blocks: npt.NDArray[np.int64], *, before: int, after: int) -> None:
        """From one state to another: all of them were in the first, or nothing is done."""
        states = self._states[blocks]
        if (states != before).any():
            wrong = int(blocks[np.argmax(states != before)])
            raise AssertionError(
                f"block {wrong} is {NAMES[self._states[wrong]]}, not {NAMES[before]}"
            )
        count = len(blocks)
        self._states[blocks] = after
        self._counts[before] -= count
        if after == FREE:
            at = self._counts[FREE]
            self._free[at : at + count] = blocks[::-1]  # so that the lowest is on top
        self._counts[after] += count
        if not self.account.balanced:
            raise AssertionError(f"the account does not balance: {self.account}")

    def fill(self, blocks: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
        """Being filled from here on: generations odd. Gives them."""
        self._generations[blocks] |= 1
        return self.generations(blocks)

    def publish(self, blocks: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
        """Filled: generations even. Gives them."""
        self._generations[blocks] += 1
        return self.generations(blocks)

    def generations(self, blocks: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
        """As they are now; a copy, read-only."""
        found = self._generations[blocks]
        found.flags.writeable = False
        return found

    def audit(self) -> None:
        """Compares everything with everything, O(total); AssertionError says what is wrong."""
        counted = np.bincount(self._states, minlength=3).tolist()
        if counted != self._counts or not self.account.balanced:
            raise AssertionError(f"counted {counted}, but the account is {self.account}")
        stack = self._free[: self._counts[FREE]]
        stacked = np.zeros(self.total, np.bool_)
        stacked[stack] = True
        if (stacked != (self._states == FREE)).any():
            raise AssertionError("the stack of free blocks is not the free blocks")
        published = self._generations % 2 == 0
        if (published & (self._states != LEASED)).any():
            raise AssertionError("a block is published that is not leased")

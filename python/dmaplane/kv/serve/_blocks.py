# SPDX-License-Identifier: MIT
"""Who waits for blocks of a pool, in the order they came.

Invariants: nobody is passed by one that came later, so a large request is not starved by small
ones; no more than `waiting_max` wait, the next is refused at once. The blocks belong to the lease
that is given out; this owns only the queue.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from dmaplane._errors import InvalidError, LimitError

if TYPE_CHECKING:
    from dmaplane.kv._lease import Lease
    from dmaplane.kv._pool import Pool

_LOOK_S: Final = 0.02
"""Blocks also come back from quarantine and from leases that expire; nobody tells us of these."""
_SWEEP_S: Final = 1.0


async def keep_swept(pool: Pool) -> None:
    """Ends leases whose time has passed, once a second, until it is cancelled."""
    while True:
        await asyncio.sleep(_SWEEP_S)
        pool.sweep()


class BlockQueue:
    """Leases of one pool for tasks of one event loop."""

    def __init__(self, pool: Pool, *, waiting_max: int) -> None:
        self.pool = pool
        self.waiting_max = waiting_max
        self.waiting = 0
        self._turn = asyncio.Lock()

    async def lease(self, count: int, *, holder: str, trace: str, seconds: float) -> Lease:
        """@count blocks as soon as it is our turn and there are so many."""
        if count > self.pool.blocks:
            raise InvalidError(
                "count",
                f"{count} blocks; the whole pool has {self.pool.blocks}",
                fix="a shorter request, or more --blocks",
            )
        if self.waiting >= self.waiting_max:
            raise LimitError(
                f"{self.waiting} requests wait for blocks already: {self.pool.account()}; "
                "try again, or give the pool more --blocks"
            )
        self.waiting += 1
        try:
            async with self._turn:
                while self.pool.account().free < count:
                    await asyncio.sleep(_LOOK_S)
                    self.pool.sweep()
                return self.pool.lease(count, holder=holder, trace=trace, seconds=seconds)
        finally:
            self.waiting -= 1

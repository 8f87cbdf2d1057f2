# SPDX-License-Identifier: MIT
"""The books of a pool as JSON, for `GET /kv/leases` and `dmaplane kv leaks`."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from dmaplane.kv._pool import Pool

ROWS_MAX: Final = 10_000
_SWEEP_S: Final = 1.0


def ledger_of(pool: Pool) -> dict[str, Any]:
    """The account, and the leases whose blocks are not free, the oldest first."""
    rows = pool.leases()
    return {
        "account": dataclasses.asdict(pool.account()),
        "leases": [dataclasses.asdict(row) for row in rows[:ROWS_MAX]],
        "left_out": max(0, len(rows) - ROWS_MAX),
    }


async def keep_swept(pool: Pool) -> None:
    """Ends leases whose time has passed, once a second, until it is cancelled."""
    while True:
        await asyncio.sleep(_SWEEP_S)
        pool.sweep()

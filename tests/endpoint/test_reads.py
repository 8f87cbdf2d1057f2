# SPDX-License-Identifier: MIT
"""L3 at the side that is read from: a region is held while its bytes go out, and no longer.

The reader gives up in the middle, so its number is free again while the answer to it is still
on the way, and the next READs have it.
"""

from __future__ import annotations

import asyncio
from typing import Literal

import numpy as np
import pytest

import dmaplane
from dmaplane.testing._rig import MIB

LONG = 192 * MIB
SHORT = 64
GIVEN_S = 0.03
SLOTS = 256
TRIES = 20


async def _read(path: Literal["tcp"]) -> None:
    with (
        dmaplane.open(plane="embedded") as ours,
        dmaplane.open(plane="embedded") as theirs,
        theirs.listen(require=path) as listener,
        ours.channel(slots=2 * SLOTS) as channel,
    ):
        near, far = await asyncio.gather(
            ours.connect_async(listener.address, require=path, channel=channel),
            listener.accept_async(),
        )
        with near, far, theirs.buffer(LONG) as source, ours.buffer(LONG) as target:
            source.numpy()[:] = 7
            long, short = source[:LONG].region("read"), source[: SLOTS * SHORT].region("read")
            offsets = np.arange(SLOTS) * SHORT
            remote = near.region(short.key)
            rows = near.rows(
                "read", target, remote, local_offsets=offsets, remote_offsets=offsets, lengths=SHORT
            )
            gave_up = 0
            for _ in range(TRIES):
                reading = near.read(target, near.region(long.key), checksum=True, timeout=GIVEN_S)
                try:
                    await reading
                except dmaplane.TimedOutError:
                    gave_up += 1
                done = near.submit(rows, timeout=30)
                assert not done["result"].any()
                if gave_up == 3:
                    break
            else:
                pytest.fail("no READ gave up half-way")
            # Nothing is being read any more: both end, at the latest when the rest has gone out.
            for region in (short, long):
                region.destroy(drain=True, timeout=10)


def test_a_region_is_let_go_by_readers_that_gave_up() -> None:
    asyncio.run(_read("tcp"))

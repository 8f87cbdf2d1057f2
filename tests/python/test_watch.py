# SPDX-License-Identifier: MIT
"""A watch rings for all that comes by its channel; how many at once is its reader's wish."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest

import dmaplane
from dmaplane._watch import Watch

SOON = 20.0


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, SOON))


class Pair(NamedTuple):
    """Two ends, and what the near one writes."""

    near: dmaplane.Endpoint
    far: dmaplane.Endpoint
    source: dmaplane.Buffer
    remote: dmaplane.RemoteRegion

    async def write(self, count: int) -> None:
        for number in range(count):
            await self.near.write_imm(self.source, self.remote, imm=number)


@asynccontextmanager
async def pair(
    plane: dmaplane.Plane, far_plane: dmaplane.Plane, listener: dmaplane.Listener
) -> AsyncIterator[Pair]:
    near, far = await asyncio.gather(plane.connect_async(listener.address), listener.accept_async())
    with near, far, plane.buffer(64) as source, far_plane.buffer(64) as target:
        with target.region() as region:
            yield Pair(near, far, source, near.region(region.key))


async def until(watch: Watch, far: dmaplane.Endpoint, count: int, patience: int) -> int:
    """How often the watch rang until so many immediates were here."""
    rings = 0
    while count:
        watch.clear()
        count -= len(far.immediates())
        if count:
            await watch.wait(patience)
            rings += 1
    return rings


@pytest.mark.parametrize(
    ("count", "patience"), [(3, 1000), (64, 16)], ids=["fewer-than-asked-for", "several-times"]
)
def test_the_watch_rings_until_all_are_here(
    plane: dmaplane.Plane,
    far_plane: dmaplane.Plane,
    listener: dmaplane.Listener,
    count: int,
    patience: int,
) -> None:
    async def main() -> None:
        async with pair(plane, far_plane, listener) as both:
            watch = Watch(both.far.channel)
            heard = asyncio.create_task(until(watch, both.far, count, patience))
            await asyncio.sleep(0)
            await both.write(count)
            assert await heard <= count
            watch.close()

    run(main())


def test_who_else_waits_on_the_channel_is_woken_by_each(
    plane: dmaplane.Plane, far_plane: dmaplane.Plane, listener: dmaplane.Listener
) -> None:
    async def main() -> None:
        async with pair(plane, far_plane, listener) as both:
            watch = Watch(both.far.channel)
            patient = asyncio.create_task(watch.wait(1000))
            await asyncio.sleep(0)
            waiting = asyncio.create_task(_next(both.far))
            await asyncio.sleep(0)
            assert both.far.channel._loops._expected == 1
            await both.write(1)
            assert (await waiting).immediate == 0
            await patient
            watch.close()

    run(main())


def test_a_lost_peer_does_not_wait_for_company(
    plane: dmaplane.Plane, far_plane: dmaplane.Plane, listener: dmaplane.Listener
) -> None:
    async def main() -> None:
        async with pair(plane, far_plane, listener) as both:
            watch = Watch(both.far.channel)
            watch.clear()
            patient = asyncio.create_task(watch.wait(1000))
            await asyncio.sleep(0)
            both.near.close()
            await patient
            assert both.far.lost is not None
            watch.close()

    run(main())


async def _next(endpoint: dmaplane.Endpoint) -> Any:
    return await endpoint.immediate()

# SPDX-License-Identifier: MIT
"""Whatever comes by a channel, or rings, is followed by a turn of who watches it."""

from __future__ import annotations

import asyncio
import threading
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


class Reader:
    """Whose turn is to fetch immediates; so many at once are soon enough for it."""

    def __init__(self, far: dmaplane.Endpoint, patience: int) -> None:
        self.far, self.patience = far, patience
        self.count = self.turns = 0
        self.arrived = asyncio.Event()
        self.watch = Watch(far.channel, self.turn)
        self.watch.ring()

    def turn(self) -> int:
        self.turns += 1
        lost, _, immediates = self.far._taken()
        self.count += len(immediates)
        if lost is not None or len(immediates):
            self.arrived.set()
        return self.patience

    async def has(self, count: int) -> None:
        while self.count < count:
            self.arrived.clear()
            await self.arrived.wait()


@pytest.mark.parametrize(
    ("count", "patience"), [(3, 1000), (64, 16)], ids=["fewer-than-asked-for", "several-times"]
)
def test_there_are_turns_until_all_are_here(
    plane: dmaplane.Plane,
    far_plane: dmaplane.Plane,
    listener: dmaplane.Listener,
    count: int,
    patience: int,
) -> None:
    async def main() -> None:
        async with pair(plane, far_plane, listener) as both:
            reader = Reader(both.far, patience)
            await asyncio.sleep(0)
            await both.write(count)
            await reader.has(count)
            assert reader.turns <= count + 1
            reader.watch.close()

    run(main())


def test_who_else_waits_on_the_channel_is_woken_by_each(
    plane: dmaplane.Plane, far_plane: dmaplane.Plane, listener: dmaplane.Listener
) -> None:
    async def main() -> None:
        async with pair(plane, far_plane, listener) as both:
            watch = Watch(both.far.channel, lambda: 1000)
            watch.ring()
            await asyncio.sleep(0)
            assert both.far.channel._loops._patience() == 1000
            waiting = asyncio.create_task(_next(both.far))
            await asyncio.sleep(0)
            assert both.far.channel._loops._patience() == 1
            await both.write(1)
            assert (await waiting).immediate == 0
            watch.close()

    run(main())


def test_a_lost_peer_does_not_wait_for_company(
    plane: dmaplane.Plane, far_plane: dmaplane.Plane, listener: dmaplane.Listener
) -> None:
    async def main() -> None:
        async with pair(plane, far_plane, listener) as both:
            reader = Reader(both.far, 1000)
            await asyncio.sleep(0)
            both.near.close()
            await reader.arrived.wait()
            assert both.far.lost is not None
            reader.watch.close()

    run(main())


def test_whoever_rings_is_followed_by_a_turn(
    plane: dmaplane.Plane, far_plane: dmaplane.Plane, listener: dmaplane.Listener
) -> None:
    """Who changes something and rings, from a thread or in a turn, has a turn that sees it."""

    async def main() -> None:
        async with pair(plane, far_plane, listener) as both:
            seen = Seen(both.far.channel)
            seen.ask()
            await seen.all(2)
            threads = [threading.Thread(target=seen.ask_often) for _ in range(4)]
            for thread in threads:
                thread.start()
            await seen.all(2 + 4 * Seen.OFTEN)
            for thread in threads:
                thread.join()
            turns = seen.turns
            seen.ask()
            seen.ask()
            await asyncio.sleep(0.01)
            assert seen.turns == turns + 1  # both share it
            seen.watch.close()
            seen.ask()
            await asyncio.sleep(0.01)
            assert seen.turns == turns + 1  # a closed one has none

    run(main())


def test_a_take_that_fails_makes_nobody_deaf(
    plane: dmaplane.Plane,
    far_plane: dmaplane.Plane,
    listener: dmaplane.Listener,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails() -> int:
        raise dmaplane.ClosedError("closed by another thread")

    async def main() -> None:
        async with pair(plane, far_plane, listener) as both:
            seen = Seen(both.far.channel)
            with monkeypatch.context() as patch:
                patch.setattr(both.far.channel._taker, "take_now", fails)
                seen.watch.ring()
                await seen.turned.wait()
            await seen.all(1)
            seen.ask()
            await seen.all(2)
            seen.watch.close()

    run(main())


class Seen:
    """How much was asked for, and how much of that the last turn saw."""

    OFTEN = 250

    def __init__(self, channel: dmaplane.Channel) -> None:
        self.lock = threading.Lock()
        self.asked = self.seen = self.turns = 0
        self.turned = asyncio.Event()
        self.watch = Watch(channel, self.turn)

    def ask(self) -> None:
        with self.lock:
            self.asked += 1
        self.watch.ring()

    def ask_often(self) -> None:
        for _ in range(self.OFTEN):
            self.ask()

    def turn(self) -> int:
        self.turns += 1
        self.seen = self.asked
        if self.turns == 1:
            self.ask()
        self.turned.set()
        return 1000

    async def all(self, count: int) -> None:
        while self.seen < count:
            await self.turned.wait()
            self.turned.clear()


async def _next(endpoint: dmaplane.Endpoint) -> Any:
    return await endpoint.immediate()

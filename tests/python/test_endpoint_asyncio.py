# SPDX-License-Identifier: MIT
"""Endpoints in asyncio: nothing blocks the loop, and what is cancelled leaves nothing behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

import numpy as np
import pytest

import dmaplane

SOON = 20.0


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, SOON))


async def joined(
    plane: dmaplane.Plane, listener: dmaplane.Listener
) -> tuple[dmaplane.Endpoint, dmaplane.Endpoint]:
    near, far = await asyncio.gather(plane.connect_async(listener.address), listener.accept_async())
    return near, far


def test_connect_accept_send_and_recv_are_awaitable(
    plane: dmaplane.Plane, far_plane: dmaplane.Plane, listener: dmaplane.Listener
) -> None:
    async def main() -> None:
        near, far = await joined(plane, listener)
        with near, far, plane.buffer(64) as src, far_plane.buffer(64) as dst:
            src.memory()[:3] = b"abc"
            got, sent = await asyncio.gather(far.recv(dst), near.send(src[:3]))
            assert (got.length_bytes, sent.ok) == (3, True)
            assert bytes(dst[:3].memory()) == b"abc"
            with far_plane.buffer(64) as buffer, buffer.region() as region:
                remote = near.region(region.key)
                await near.write_imm(src, remote, imm=9)
                arrived = await far.immediate()
                assert arrived.immediate == 9
                await near.read(src, remote)

    run(main())


def test_immediate_wakes_a_task_that_waits_for_it(
    plane: dmaplane.Plane, far_plane: dmaplane.Plane, listener: dmaplane.Listener
) -> None:
    async def main() -> None:
        near, far = await joined(plane, listener)
        with near, far, plane.buffer(64) as src, far_plane.buffer(64) as buffer:
            with buffer.region() as region:
                remote = near.region(region.key)
                waiting = [asyncio.create_task(_next(far)) for _ in range(3)]
                await asyncio.sleep(0.01)
                for number in range(3):
                    await near.write_imm(src, remote, imm=number)
                assert sorted(await asyncio.gather(*waiting)) == [0, 1, 2]

    run(main())


async def _next(endpoint: dmaplane.Endpoint) -> int:
    return (await endpoint.immediate()).immediate


def test_async_for_gives_immediates_until_the_peer_goes(
    plane: dmaplane.Plane, far_plane: dmaplane.Plane, listener: dmaplane.Listener
) -> None:
    async def read(endpoint: dmaplane.Endpoint, seen: list[int]) -> None:
        async for arrived in endpoint:
            seen.append(arrived.immediate)

    async def main() -> None:
        near, far = await joined(plane, listener)
        with near, far, plane.buffer(64) as src, far_plane.buffer(64) as buffer:
            with buffer.region() as region:
                remote = near.region(region.key)
                seen: list[int] = []
                reading = asyncio.create_task(read(far, seen))
                rows = near.rows("write_imm", src, remote, immediates=np.arange(100))
                near.channel.push(rows)
                while len(seen) < 100:
                    await asyncio.sleep(0.001)
                assert seen == list(range(100))
                near.close()
                with pytest.raises(dmaplane.PeerLostError):
                    await reading

    run(main())


def test_async_for_accepts_peers_until_the_listener_closes(
    plane: dmaplane.Plane, listener: dmaplane.Listener
) -> None:
    async def serve(came: list[dmaplane.Endpoint]) -> None:
        async for endpoint in listener:
            came.append(endpoint)

    async def main() -> None:
        came: list[dmaplane.Endpoint] = []
        serving = asyncio.create_task(serve(came))
        near = await asyncio.gather(*(plane.connect_async(listener.address) for _ in range(6)))
        while len(came) < 6:
            await asyncio.sleep(0.001)
        listener.close()
        with pytest.raises(dmaplane.ClosedError):
            await serving
        for endpoint in (*near, *came):
            endpoint.close()

    run(main())


def test_loop_goes_on_while_somebody_waits(
    plane: dmaplane.Plane, far_plane: dmaplane.Plane, listener: dmaplane.Listener
) -> None:
    """An accept that nobody answers, a connect, a recv: none of them holds the loop up."""

    async def main() -> None:
        near, far = await joined(plane, listener)
        with near, far, far_plane.buffer(64) as dst:
            waiting = [
                asyncio.create_task(_wrapped(far.recv(dst))),
                asyncio.create_task(_next(far)),
                asyncio.create_task(_accept(listener)),
            ]
            used, began, ticks = time.process_time(), time.monotonic(), 0
            while time.monotonic() - began < 0.2:
                await asyncio.sleep(0.005)
                ticks += 1
            assert ticks >= 10
            assert time.process_time() - used < 0.15
            for task in waiting:
                task.cancel()
            done = await asyncio.gather(*waiting, return_exceptions=True)
            assert all(isinstance(one, asyncio.CancelledError) for one in done)
            assert not far.channel._loops
            assert not listener.channel._loops

    run(main())


async def _wrapped(operation: dmaplane.Operation) -> dmaplane.Completion:
    return await operation


async def _accept(listener: dmaplane.Listener) -> dmaplane.Endpoint:
    return await listener.accept_async()


def test_cancelled_accept_and_connect_leave_nothing_behind(
    plane: dmaplane.Plane, far_plane: dmaplane.Plane, listener: dmaplane.Listener
) -> None:
    async def main() -> None:
        accepting = asyncio.create_task(_accept(listener))
        await asyncio.sleep(0.01)
        accepting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await accepting
        connecting = asyncio.create_task(plane.connect_async(listener.address))
        await asyncio.sleep(0.01)
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        try:
            unwanted = await asyncio.wait_for(listener.accept_async(), SOON / 4)
        except asyncio.TimeoutError:
            pass  # on a busy machine it was called off before it got to the door
        else:
            with unwanted, pytest.raises(dmaplane.PeerLostError):
                await unwanted.immediate()
        near, far = await joined(plane, listener)
        near.close()
        far.close()

    run(main())
    listener.close()
    for one in (plane, far_plane):
        left = one.statistics()
        assert (left.endpoints, left.channels) == (0, 0)


@pytest.mark.parametrize("side", ["near", "far"])
def test_close_wakes_who_awaits(
    plane: dmaplane.Plane, listener: dmaplane.Listener, side: str
) -> None:
    async def main() -> None:
        near, far = await joined(plane, listener)
        with plane.buffer(64) as dst:
            waiting = [
                asyncio.create_task(_wrapped(near.recv(dst))),
                asyncio.create_task(_next(near)),
            ]
            await asyncio.sleep(0.01)
            (near if side == "near" else far).close()
            done = await asyncio.gather(*waiting, return_exceptions=True)
            assert all(isinstance(one, dmaplane.DmaplaneError) for one in done), done
            near.close()
            far.close()

    run(main())


def test_many_peers_on_one_channel_and_one_loop(
    plane: dmaplane.Plane, far_plane: dmaplane.Plane, listener: dmaplane.Listener
) -> None:
    async def serve(endpoint: dmaplane.Endpoint) -> None:
        with endpoint, far_plane.buffer(256) as page:
            try:
                while True:
                    got = await endpoint.recv(page)
                    await endpoint.send(page[: got.length_bytes])
            except dmaplane.PeerLostError:
                pass

    async def ask(channel: dmaplane.Channel, name: int) -> None:
        endpoint = await plane.connect_async(listener.address, channel=channel)
        with endpoint, plane.buffer(256) as page:
            for number in range(20):
                page.memory()[:2] = bytes((name, number))
                waiting = endpoint.recv(page[128:])
                await endpoint.send(page[:2])
                await waiting
                assert bytes(page[128:130].memory()) == bytes((name, number))

    async def main() -> None:
        with plane.channel() as ours, far_plane.channel() as theirs:
            asking = [asyncio.create_task(ask(ours, name)) for name in range(12)]
            serving = [
                asyncio.create_task(serve(await listener.accept_async(channel=theirs)))
                for _ in asking
            ]
            await asyncio.gather(*asking)
            await asyncio.gather(*serving)

    run(main())

# SPDX-License-Identifier: MIT
"""Operations in asyncio: awaitable, concurrent, and fenced when cancelled (L5)."""

from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest

import dmaplane


def test_await_gives_the_completion(channel: dmaplane.Channel) -> None:
    async def main() -> dmaplane.Completion:
        return await channel.nop()

    for _ in range(20):  # a new loop each time
        assert asyncio.run(main()).ok


def test_many_awaits_at_once(plane: dmaplane.Plane) -> None:
    async def main(channel: dmaplane.Channel) -> None:
        async def one() -> bool:
            return (await channel.nop()).ok

        for _ in range(5):
            assert all(await asyncio.gather(*(one() for _ in range(200))))

    with plane.channel(slots=32) as channel:
        asyncio.run(asyncio.wait_for(main(channel), 30))
        assert channel.in_flight == 0


def test_loop_goes_on_while_a_copy_runs(plane: dmaplane.Plane) -> None:
    async def main(channel: dmaplane.Channel) -> int:
        ticks = 0
        running = [channel.copy(dst, src) for _ in range(4)]

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.001)
                ticks += 1

        ticking = asyncio.create_task(tick())
        for operation in running:
            await operation
        ticking.cancel()
        return ticks

    with (
        plane.channel() as channel,
        plane.buffer(256 << 20) as src,
        plane.buffer(256 << 20) as dst,
    ):
        assert asyncio.run(main(channel)) >= 5


def test_failure_is_raised_by_await(plane: dmaplane.Plane, channel: dmaplane.Channel) -> None:
    async def main() -> None:
        with pytest.raises(dmaplane.TimedOutError):
            await channel.copy(dst, src, timeout=0)

    with plane.buffer(64) as src, plane.buffer(64) as dst:
        asyncio.run(main())


def test_cancelled_await_is_a_fence(plane: dmaplane.Plane) -> None:
    async def main(channel: dmaplane.Channel, seen: np.ndarray) -> None:
        first = channel.copy(dst, src)
        operation = channel.copy(dst, src)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(_wrapped(operation), 0.002)
        first.cancel()
        seen[::64] = 0xAA
        await asyncio.sleep(0.03)
        assert (seen[::64] == 0xAA).all(), "it was written after the await was cancelled"
        assert operation.done

    async def _wrapped(operation: dmaplane.Operation) -> dmaplane.Completion:
        return await operation

    with (
        plane.channel() as channel,
        plane.buffer(256 << 20) as src,
        plane.buffer(256 << 20) as dst,
    ):
        src.numpy()[:] = 1
        asyncio.run(main(channel, dst.numpy()))


def test_two_awaits_of_one_operation(plane: dmaplane.Plane) -> None:
    """One of them cancelled does not cancel it for the other."""

    async def main(channel: dmaplane.Channel) -> None:
        operation = channel.copy(dst, src)

        async def wait() -> bool:
            return (await operation).ok

        one, other = asyncio.create_task(wait()), asyncio.create_task(wait())
        await asyncio.sleep(0)
        one.cancel()
        assert await other
        with pytest.raises(asyncio.CancelledError):
            await one

    with (
        plane.channel() as channel,
        plane.buffer(128 << 20) as src,
        plane.buffer(128 << 20) as dst,
    ):
        asyncio.run(main(channel))


def test_thread_and_loop_on_one_channel(plane: dmaplane.Plane) -> None:
    """Whoever takes completions hands them to whoever waits, thread or loop."""
    stop = threading.Event()

    def thread_body(channel: dmaplane.Channel, count: list[int]) -> None:
        while not stop.is_set():
            channel.nop().wait(timeout=20)
            count[0] += 1

    async def main(channel: dmaplane.Channel) -> None:
        for _ in range(300):
            assert (await channel.nop()).ok

    with plane.channel() as channel:
        count = [0]
        thread = threading.Thread(target=thread_body, args=(channel, count))
        thread.start()
        try:
            asyncio.run(asyncio.wait_for(main(channel), 60))
        finally:
            stop.set()
            thread.join(30)
        assert count[0] > 0


def test_two_loops_on_one_channel(plane: dmaplane.Plane) -> None:
    failures: list[BaseException] = []

    async def main(channel: dmaplane.Channel) -> None:
        for _ in range(200):
            assert (await channel.nop()).ok

    def run(channel: dmaplane.Channel) -> None:
        try:
            asyncio.run(asyncio.wait_for(main(channel), 60))
        except BaseException as reason:
            failures.append(reason)

    with plane.channel() as channel:
        threads = [threading.Thread(target=run, args=(channel,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(90)
    assert not failures


def test_await_costs_no_spinning(plane: dmaplane.Plane) -> None:
    """Nothing is left on the loop when nobody awaits."""

    async def main(channel: dmaplane.Channel) -> None:
        await channel.nop()
        assert not channel._loops
        used = time.process_time()
        await asyncio.sleep(0.1)
        assert time.process_time() - used < 0.05

    with plane.channel() as channel:
        asyncio.run(main(channel))


def test_close_wakes_who_awaits(plane: dmaplane.Plane) -> None:
    """From the loop's own thread, and from another."""

    async def main(channel: dmaplane.Channel, elsewhere: bool) -> None:
        running = [channel.copy(dst, src) for _ in range(8)]
        waiting = [asyncio.create_task(_wrapped(operation)) for operation in running]
        await asyncio.sleep(0.002)
        if elsewhere:
            await asyncio.to_thread(channel.close)
        else:
            channel.close()
        done = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(done[-1], dmaplane.OperationCancelledError)
        assert not channel._loops

    async def _wrapped(operation: dmaplane.Operation) -> dmaplane.Completion:
        return await operation

    with plane.buffer(128 << 20) as src, plane.buffer(128 << 20) as dst:
        for elsewhere in (False, True):
            asyncio.run(asyncio.wait_for(main(plane.channel(), elsewhere), 20))

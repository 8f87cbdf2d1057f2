# SPDX-License-Identifier: MIT
"""What holds for a stream on any device; on `sim` always, on a GPU where there is one."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
from ground import LENGTH, Ground

from dmaplane import (
    BusyError,
    CallbackError,
    ClosedError,
    InvalidError,
    NotFoundError,
    UnsupportedError,
)
from dmaplane.stream import TIERS, Copies, tier_of

BLOCK = 4096
COUNT = LENGTH // BLOCK


def _there(ground: Ground) -> list:
    return [tier for tier in ground.device.tiers() if tier.available]


def _indexed(ground: Ground, to: np.ndarray, out: np.ndarray, *, up: bool, length: int = BLOCK):
    return Copies.indexed(
        source=ground.at if up else ground.there,
        destination=ground.there if up else ground.at,
        source_stride=BLOCK,
        destination_stride=BLOCK,
        length=length,
        source_index=out,
        destination_index=to,
    )


def test_every_tier_brings_the_bytes_of_a_grid_both_ways(ground: Ground) -> None:
    random = np.random.default_rng(1)
    names = [tier.name for tier in _there(ground)]
    assert "single" in names
    for name in names:
        content = ground.random(2)
        to, out = random.permutation(COUNT), random.permutation(COUNT)
        with ground.stream(require=name) as stream:
            if "h2d" in tier_of(ground.device, name).directions:
                operation = stream.copy(_indexed(ground, to, out, up=True))
                operation.wait(60)
                assert operation.tier == name
                blocks = np.zeros((COUNT, BLOCK), dtype=np.uint8)
                blocks[to] = content.reshape(COUNT, BLOCK)[out]
                assert (ground.seen().reshape(COUNT, BLOCK) == blocks).all(), name
            if "d2h" in tier_of(ground.device, name).directions:
                ground.put(content[::-1])
                stream.copy(_indexed(ground, to, out, up=False)).wait(60)
                blocks = np.zeros((COUNT, BLOCK), dtype=np.uint8)
                blocks[to] = content[::-1].reshape(COUNT, BLOCK)[out]
                assert (ground.host.reshape(COUNT, BLOCK) == blocks).all(), name


@pytest.mark.parametrize("length", [1, 7, 8, 15, 16, 24, 511, 584, 656, 4095])
def test_every_tier_copies_odd_lengths_and_not_one_byte_more(ground: Ground, length: int) -> None:
    tiers = [tier for tier in _there(ground) if not tier.needs_extent]
    for tier in tiers:
        content = ground.random(length)
        ground.put(np.full(LENGTH, 0xA5, dtype=np.uint8))
        order = np.random.default_rng(length).permutation(64)
        expected = np.full((COUNT, BLOCK), 0xA5, dtype=np.uint8)
        with ground.stream(require=tier.name) as stream:
            if "h2d" in tier.directions:
                copies = _indexed(ground, order, np.arange(64), up=True, length=length)
                stream.copy(copies).wait(60)
                expected[order, :length] = content.reshape(COUNT, BLOCK)[:64, :length]
                assert (ground.seen().reshape(COUNT, BLOCK) == expected).all(), tier.name
            if "d2h" in tier.directions:
                seen = ground.seen().reshape(COUNT, BLOCK)
                copies = _indexed(ground, order, np.arange(64), up=False, length=length)
                stream.copy(copies).wait(60)
                back = content.reshape(COUNT, BLOCK).copy()
                back[order, :length] = seen[:64, :length]
                assert (ground.host.reshape(COUNT, BLOCK) == back).all(), tier.name


def test_gather_and_scatter_are_each_others_inverse(ground: Ground) -> None:
    content = ground.random(3)
    random = np.random.default_rng(4)
    lengths = random.integers(1, 900, 200)
    starts = np.cumsum(lengths) - lengths
    order = random.permutation(200)
    with ground.stream() as stream:
        stream.copy(Copies.gather(ground.there, ground.at + starts[order], lengths[order]))
        stream.synchronize(60)
        total = int(lengths.sum())
        packed = np.concatenate([content[starts[i] :][: lengths[i]] for i in order])
        assert (ground.seen()[:total] == packed).all()
        ground.host[:] = 0
        stream.copy(Copies.scatter(ground.at + starts[order], ground.there, lengths[order]))
        stream.synchronize(60)
    assert (ground.host[:total] == content[:total]).all()


def test_steps_take_effect_in_the_order_they_were_given(ground: Ground) -> None:
    """A byte goes up, down one place further, up again ...: out of order, it never arrives."""
    ground.random(5)
    ground.host[0] = 77
    ground.host[1:300] = 0
    with ground.stream() as stream:
        for step in range(250):
            stream.copy(ground.up(step, 1))
            stream.copy(ground.down(step + 1, 1, source=step))
        stream.synchronize(60)
    assert (ground.host[:251] == 77).all()
    assert ground.host[251] == 0


def test_the_last_of_two_writers_wins(ground: Ground) -> None:
    content = ground.random(6)
    with ground.stream() as stream:
        for turn in range(64):
            stream.copy(ground.up(0, 64 << 10, source=turn * 4096))
        stream.synchronize(60)
    assert (ground.seen()[: 64 << 10] == content[63 * 4096 :][: 64 << 10]).all()


def test_neighbours_in_two_registrations_are_copied_by_every_tier(ground: Ground) -> None:
    """They touch on both sides, but a device may not take them for one."""
    room = np.zeros(10 * BLOCK, dtype=np.uint8)
    start = -int(room.ctypes.data) % BLOCK
    pages = room[start : start + 8 * BLOCK]
    at = int(pages.ctypes.data)
    halves = [ground.device.register(at + half * 4 * BLOCK, 4 * BLOCK) for half in range(2)]
    blocks = np.arange(8) * BLOCK
    for turn, tier in enumerate(_there(ground)):
        content = np.random.default_rng(turn).integers(0, 256, 8 * BLOCK, dtype=np.uint8)
        with ground.stream(require=tier.name) as stream:
            if "h2d" in tier.directions:
                pages[:] = content
                stream.copy(Copies.many(ground.there + blocks, at + blocks, BLOCK)).wait(60)
                assert (ground.seen()[: 8 * BLOCK] == content).all(), tier.name
            if "d2h" in tier.directions:
                pages[:] = 0
                back = ground.seen()[: 8 * BLOCK]
                stream.copy(Copies.many(at + blocks, ground.there + blocks, BLOCK)).wait(60)
                assert (pages == back).all(), tier.name
    for half in halves:
        ground.device.unregister(half)


def test_an_event_orders_two_streams(ground: Ground) -> None:
    ground.random(7)
    ground.host[0] = 99
    ground.host[1:200] = 0
    with ground.stream() as first, ground.stream() as second:
        for step in range(0, 100):
            first.copy(ground.up(step, 1))
            second.wait(first.record())
            second.copy(ground.down(step + 1, 1, source=step))
            first.wait(second.record())
        first.synchronize(60)
        second.synchronize(60)
    assert (ground.host[:101] == 99).all()


def test_an_event_comes_after_all_before_it(ground: Ground) -> None:
    ground.random(8)
    with ground.stream() as stream:
        operations = [stream.copy(ground.up(0, LENGTH)) for _ in range(8)]
        event = stream.record()
        event.wait(60)
        assert event.done
        assert all(operation.done for operation in operations)


def test_an_event_can_be_waited_for_by_its_own_stream(ground: Ground) -> None:
    with ground.stream() as stream:
        stream.wait(stream.record())
        stream.copy(ground.up(0, 16)).wait(60)


def test_callbacks_run_in_order_each_after_what_is_before_it(ground: Ground) -> None:
    ground.random(9)
    seen: list[tuple[int, bool, bool]] = []
    with ground.stream() as stream:
        for turn in range(20):
            before = stream.copy(ground.up(turn * 4096, 4096))
            after: list = []

            def look(turn: int = turn, before=before, after: list = after) -> None:
                seen.append((turn, before.done, bool(after) and after[0].done))

            stream.call(look)
            after.append(stream.copy(ground.up(turn * 4096, 4096)))
        stream.synchronize(60)
    assert seen == [(turn, True, False) for turn in range(20)]


def test_what_a_callback_raises_is_told_once_and_the_stream_goes_on(ground: Ground) -> None:
    def wrong() -> None:
        raise KeyError("mine")

    with ground.stream() as stream:
        stream.call(wrong)
        stream.call(wrong)
        operation = stream.copy(ground.up(0, 64))
        with pytest.raises(CallbackError, match="2 callbacks") as told:
            stream.synchronize(60)
        assert [type(each) for each in told.value.failures] == [KeyError, KeyError]
        stream.synchronize(60)
        operation.wait(60)
        assert stream.failed is None


def test_close_tells_what_a_callback_raised_if_nobody_else_did(ground: Ground) -> None:
    stream = ground.stream()
    ran = threading.Event()

    def wrong() -> None:
        ran.set()
        raise KeyError("mine")

    stream.call(wrong)
    assert ran.wait(30)
    with pytest.raises(CallbackError):
        stream.close()
    stream.close()


def test_a_callback_may_give_more_but_not_wait_for_it(ground: Ground) -> None:
    content = ground.random(10)
    refused: list[BaseException] = []
    with ground.stream() as stream:

        def more() -> None:
            operation = stream.copy(ground.up(0, 4096))
            for wait in (operation.wait, stream.synchronize, stream.close):
                try:
                    wait()
                except InvalidError as no:
                    refused.append(no)

        stream.call(more)
        stream.synchronize(60)
        stream.synchronize(60)
        assert len(refused) == 3
        assert (ground.seen()[:4096] == content[:4096]).all()


def test_arrays_of_the_caller_may_be_reused_at_once(ground: Ground) -> None:
    content = ground.random(11)
    to, out = np.arange(COUNT), np.arange(COUNT)[::-1].copy()
    starts = ground.at + np.arange(8) * BLOCK
    with ground.stream() as stream:
        stream.copy(_indexed(ground, to, out, up=True))
        to[:], out[:] = 0, 0
        stream.synchronize(60)
        expected = content.reshape(COUNT, BLOCK)[::-1].copy()
        assert (ground.seen().reshape(COUNT, BLOCK) == expected).all()
        stream.copy(Copies.gather(ground.there, starts, BLOCK))
        starts[:] = 0
        stream.synchronize(60)
        assert (ground.seen()[: 8 * BLOCK] == content[: 8 * BLOCK]).all()


def test_what_is_outside_is_refused_and_nothing_was_started(ground: Ground) -> None:
    ground.random(12)
    ground.put(np.full(LENGTH, 0x5A, dtype=np.uint8))
    with ground.stream() as stream:
        starts = ground.at + np.arange(8) * BLOCK
        starts[5] = ground.range.end - 100
        with pytest.raises(NotFoundError, match="copy 5: source"):
            stream.copy(Copies.gather(ground.there, starts, BLOCK))
        with pytest.raises(NotFoundError, match="copy 0: destination"):
            stream.copy(Copies.one(ground.there + LENGTH - 8, ground.at, 16))
        with pytest.raises(InvalidError, match="all from host to device"):
            stream.copy(Copies.one(ground.at, ground.at + 8192, 16))
        with pytest.raises(InvalidError, match="same byte"):
            stream.copy(Copies.many([ground.there, ground.there + 8], [ground.at] * 2, 16))
        assert stream.statistics().submitted == 0
    assert (ground.seen() == 0x5A).all()


def test_a_tier_that_is_not_there_is_refused_with_the_reason(ground: Ground) -> None:
    for tier in ground.device.tiers():
        if tier.available:
            continue
        assert tier.reason
        with pytest.raises(UnsupportedError) as refused:
            ground.stream(require=tier.name)
        assert tier.reason in str(refused.value)
        with ground.stream() as stream:
            with pytest.raises(UnsupportedError):
                stream.copy(ground.up(0, 16), require=tier.name)
    assert {tier.name for tier in ground.device.tiers()} == set(TIERS)
    with pytest.raises(InvalidError, match="single, batch"):
        ground.stream(require="gdr")


def test_what_needs_an_extent_says_so(ground: Ground) -> None:
    tier = tier_of(ground.device, "staged")
    if not tier.available:
        pytest.skip(f"missing-tier: {tier.reason}")
    with ground.stream() as stream:
        sparse = _indexed(ground, np.arange(4), np.arange(4) * 2, up=True)
        with pytest.raises(UnsupportedError, match="one piece"):
            stream.copy(sparse, require="staged")


def test_a_copy_can_be_awaited(ground: Ground) -> None:
    content = ground.random(13)

    async def go() -> None:
        with ground.stream() as stream:
            operations = [stream.copy(ground.up(i * BLOCK, BLOCK)) for i in range(20)]
            await asyncio.gather(*map(_waited, operations))
            await stream.record()
            assert all(operation.done for operation in operations)

    asyncio.run(go())
    assert (ground.seen()[: 20 * BLOCK] == content[: 20 * BLOCK]).all()


async def _waited(operation) -> None:
    await operation


def test_many_threads_may_give_to_one_stream(ground: Ground) -> None:
    content = ground.random(14)
    order: list[int] = []
    with ground.stream(depth=16, ahead=4) as stream:

        def give(thread: int) -> None:
            for turn in range(COUNT // 8):
                block = (thread * (COUNT // 8) + turn) * BLOCK
                stream.copy(ground.up(block, BLOCK))
                stream.call(lambda thread=thread: order.append(thread))

        threads = [threading.Thread(target=give, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        stream.synchronize(60)
        assert stream.statistics().completed == COUNT
    assert sorted(order) == sorted(list(range(8)) * (COUNT // 8))
    assert (ground.seen() == content).all()


def test_a_range_is_not_released_before_a_copy_of_it_has_ended(ground: Ground) -> None:
    pages = np.zeros(1 << 16, dtype=np.uint8)
    given = ground.device.register(int(pages.ctypes.data), 1 << 16)
    gate = threading.Event()

    def choose(*_: object) -> str:
        gate.wait(30)
        return "single"

    with ground.stream(choose=choose) as stream:
        operation = stream.copy(Copies.one(ground.there, given.address, 4096))
        assert ground.device.registry.touches(given.address, 1)
        assert not ground.device.registry.touches(given.address + 4096, 1)
        with pytest.raises(BusyError):
            ground.device.unregister(given)
        with pytest.raises(BusyError):
            ground.memory.close()
        gate.set()
        operation.wait(60)
        assert not ground.device.registry.touches(given.address, 1 << 16)
        ground.device.unregister(given)
        with pytest.raises(NotFoundError):
            stream.copy(Copies.one(ground.there, given.address, 4096))


def test_numbers_tell_what_was_done(ground: Ground) -> None:
    ground.random(15)
    with ground.stream(require="single") as stream:
        stream.copy(_indexed(ground, np.arange(8), np.arange(8), up=True))
        down = stream.copy(ground.down(0, 100))
        stream.synchronize(60)
        told = stream.statistics()
        assert (told.submitted, told.completed, told.in_flight) == (2, 2, 0)
        assert (told.blocks, told.h2d_bytes, told.d2h_bytes) == (9, 8 * BLOCK, 100)
        assert told.tiers == (("single", 2),)
        assert down.seconds is not None
        assert 0 < down.seconds <= told.seconds


def test_a_closed_stream_takes_nothing(ground: Ground) -> None:
    stream = ground.stream()
    operation = stream.copy(ground.up(0, 16))
    operation.wait(60)
    stream.close()
    stream.close()
    assert stream.closed
    operation.wait(0)
    for use in (
        lambda: stream.copy(ground.up(0, 16)),
        stream.record,
        stream.synchronize,
        stream.statistics,
        lambda: stream.call(print),
    ):
        with pytest.raises(ClosedError):
            use()
    with pytest.raises(ClosedError), stream:
        raise AssertionError("the block of a closed stream ran")

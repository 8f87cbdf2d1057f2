# SPDX-License-Identifier: MIT
"""What goes wrong, ordered on the simulated device: failed copies, a lost device, stalls."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest
from ground import LENGTH, until_begun

from dmaplane import (
    ClosedError,
    CopyError,
    DeviceLostError,
    InvalidError,
    OperationCancelledError,
    TimedOutError,
    UnsupportedError,
    WouldBlock,
)
from dmaplane.stream import Copies


def test_a_failed_copy_has_its_own_error_and_the_stream_goes_on(rig: Any) -> None:
    ground = rig(fail=frozenset({2}), refuse=frozenset({4}))
    content = ground.random(1)
    with ground.stream() as stream:
        operations = [stream.copy(ground.up(turn * 4096, 4096)) for turn in range(6)]
        for number, operation in enumerate(operations, start=1):
            if number in (2, 4):
                with pytest.raises(CopyError, match=f"call {number}"):
                    operation.wait(30)
                assert operation.seconds is None
            else:
                operation.wait(30)
                assert operation.error is None
        assert stream.failed is None
        stream.synchronize(30)  # both errors were asked for
        told = stream.statistics()
        assert (told.completed, told.failed, told.in_flight) == (4, 2, 0)
    seen = ground.seen()
    for turn in (0, 2, 4, 5):
        part = slice(turn * 4096, (turn + 1) * 4096)
        assert (seen[part] == content[part]).all()


def test_a_failed_copy_does_not_keep_an_event_from_coming(rig: Any) -> None:
    ground = rig(fail=frozenset({1}))
    content = ground.random(2)
    with ground.stream() as first, ground.stream() as second:
        failed = first.copy(ground.up(0, 4096))
        event = first.record()
        second.wait(event)
        second.copy(ground.up(8192, 4096)).wait(30)
        event.wait(30)
        assert isinstance(failed.error, CopyError)
    assert (ground.seen()[8192:][:4096] == content[8192:][:4096]).all()


def test_a_lost_device_ends_the_stream_with_its_cause(rig: Any) -> None:
    ground = rig(lose=3)
    called: list[int] = []
    with ground.stream() as stream:
        operations = []
        for turn in range(2):
            operations.append(stream.copy(ground.up(turn * 4096, 4096)))
        stream.synchronize(30)
        stream.call(lambda: called.append(1))
        operations.append(stream.copy(ground.up(0, 4096)))
        stream.call(lambda: called.append(2))
        with pytest.raises(DeviceLostError, match="call 3 lost it"):
            operations[2].wait(30)
        with pytest.raises(DeviceLostError, match="call 3 lost it"):
            stream.synchronize(30)
        assert isinstance(stream.failed, DeviceLostError)
        for use in (
            lambda: stream.copy(ground.up(0, 16)),
            stream.record,
            lambda: stream.call(print),
        ):
            with pytest.raises(DeviceLostError, match="call 3 lost it") as after:
                use()
            assert after.value.__cause__ is stream.failed
        with pytest.raises(DeviceLostError):
            ground.device.memory(4096)
    assert [operation.error for operation in operations[:2]] == [None, None]
    assert called == [1]


def test_every_copy_behind_the_loss_carries_the_cause(rig: Any) -> None:
    ground = rig(stall=frozenset({1}))
    with ground.stream(ahead=2) as stream:
        operations = [stream.copy(ground.up(0, 4096)) for _ in range(10)]
        event = stream.record()
        ground.sim.lose("the link went down")
        for operation in operations:
            with pytest.raises(DeviceLostError, match="the link went down"):
                operation.wait(30)
        with pytest.raises(DeviceLostError):
            event.wait(30)
        assert stream.statistics().failed == 10
        assert stream.statistics().in_flight == 0


def test_cancel_takes_back_what_has_not_begun_and_no_byte_of_it_changes(rig: Any) -> None:
    ground = rig(stall=frozenset({2}))  # the first is ground.put()'s
    ground.random(3)
    ground.put(np.full(LENGTH, 0xEE, dtype=np.uint8))
    with ground.stream(ahead=1) as stream:
        begun = until_begun(stream.copy(ground.up(0, 4096)))
        behind = [stream.copy(ground.up(turn * 4096, 4096)) for turn in range(1, 5)]
        assert stream.cancel(behind[1])
        assert behind[1].done
        assert not stream.cancel(behind[1])
        with pytest.raises(OperationCancelledError):
            behind[1].wait()
        with pytest.raises(TimedOutError):
            stream.cancel(begun, timeout=0.02)
        ground.sim.resume()
        assert not stream.cancel(begun, timeout=30)
        assert begun.done
        stream.synchronize(30)
        told = stream.statistics()
        assert (told.completed, told.cancelled) == (4, 1)
    seen = ground.seen()
    assert (seen[8192:12288] == 0xEE).all()
    for turn in (0, 1, 3, 4):
        part = slice(turn * 4096, (turn + 1) * 4096)
        assert (seen[part] == ground.host[part]).all()


def test_after_cancel_poison_on_the_host_stays(rig: Any) -> None:
    """The fence: whatever cancel() said, the destination is the caller's again."""
    ground = rig()
    content = ground.random(4)
    ground.put(content)
    for turn in range(60):
        with ground.stream(ahead=1 + turn % 3) as stream:
            operations = [stream.copy(ground.down(0, LENGTH // 2)) for _ in range(3)]
            for operation in reversed(operations):
                stream.cancel(operation, timeout=30)
            ground.host[: LENGTH // 2] = 0xDD
            stream.synchronize(30)
            assert (ground.host[: LENGTH // 2] == 0xDD).all()


def test_the_last_waiter_that_goes_takes_back_what_has_notbegun(rig: Any) -> None:
    ground = rig(stall=frozenset({1}))

    async def go() -> None:
        with ground.stream(ahead=1) as stream:
            stream.copy(ground.up(0, 64))
            behind = stream.copy(ground.up(64, 64))
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(_waited(behind), 0.02)
            assert isinstance(behind.error, OperationCancelledError)
            ground.sim.resume()

    asyncio.run(go())


async def _waited(operation: Any) -> None:
    await operation


def test_waits_end_when_their_time_has_passed_and_all_goes_on(rig: Any) -> None:
    ground = rig(stall=frozenset({1}))
    with ground.stream(depth=3) as stream:
        operation = stream.copy(ground.up(0, 4096))
        event = stream.record()
        with pytest.raises(TimedOutError):
            operation.wait(0.01)
        with pytest.raises(TimedOutError):
            event.wait(0.01)
        with pytest.raises(TimedOutError):
            stream.synchronize(0.01)
        stream.copy(ground.up(0, 4096))
        with pytest.raises(TimedOutError, match="3 steps"):
            stream.copy(ground.up(0, 4096), timeout=0.01)
        assert not operation.done
        ground.sim.resume()
        stream.synchronize(30)
        assert operation.done
        assert stream.statistics().completed == 2


def test_a_callback_that_finds_no_room_is_told_so(rig: Any) -> None:
    ground = rig()
    refused: list[BaseException] = []
    go = threading.Event()
    with ground.stream(depth=2) as stream:

        def more() -> None:
            go.wait(30)
            try:
                stream.copy(ground.up(0, 16))
            except WouldBlock as full:
                refused.append(full)

        stream.call(more)
        stream.copy(ground.up(0, 16))
        go.set()
        stream.synchronize(30)
    assert len(refused) == 1


def test_close_cancels_what_has_not_begun_and_waits_for_what_has(rig: Any) -> None:
    ground = rig(stall=frozenset({1}))
    ground.random(5)
    stream = ground.stream(ahead=1)
    begun = until_begun(stream.copy(ground.up(0, 4096)))
    behind = stream.copy(ground.up(4096, 4096))
    event = stream.record()
    with pytest.raises(TimedOutError, match="1 steps"):
        stream.close(timeout=0.05)
    with pytest.raises(ClosedError):
        stream.copy(ground.up(0, 16))
    with pytest.raises(OperationCancelledError):
        behind.wait(0)
    with pytest.raises(OperationCancelledError):
        event.wait(0)
    assert not begun.done
    ground.sim.resume()
    stream.close(timeout=30)
    begun.wait(0)
    assert (ground.seen()[:4096] == ground.host[:4096]).all()
    ground.close()  # nothing is held any more


def test_a_stream_that_waits_for_what_never_comes_ends(rig: Any) -> None:
    ground = rig(stall=frozenset({1}))
    first, second = ground.stream(ahead=1), ground.stream()
    first.copy(ground.up(0, 64))
    never = first.record()
    second.wait(never)
    behind = second.copy(ground.up(64, 64))
    closing = threading.Thread(target=first.close)
    closing.start()
    with pytest.raises(CopyError, match="never comes"):
        behind.wait(30)
    assert second.failed is not None
    ground.sim.resume()
    closing.join(30)
    with pytest.raises(InvalidError, match="never comes"):
        never.before(ground.device.lane())
    second.close()


def test_closing_a_stream_that_waits_for_another_does_not_hang(rig: Any) -> None:
    ground = rig(stall=frozenset({1}))
    with ground.stream(ahead=1) as first:
        first.copy(ground.up(0, 64))
        second = ground.stream()
        second.wait(first.record())
        behind = second.copy(ground.up(64, 64))
        second.close(timeout=30)
        assert isinstance(behind.error, OperationCancelledError)
        ground.sim.resume()


def test_an_event_of_another_device_orders_too(rig: Any) -> None:
    ground, other = rig(stall=frozenset({1})), rig()
    ground.random(6)
    here = other.sim.register(ground.at, LENGTH)
    with ground.stream() as first, other.stream() as second:
        first.copy(ground.down(0, 4096))  # zeros, once it goes on
        second.wait(first.record())
        up = second.copy(Copies.one(other.there, ground.at, 4096))
        with pytest.raises(TimedOutError):
            up.wait(0.02)
        ground.sim.resume()
        up.wait(30)
        assert (other.sim.registry.resolve(ground.at)[0]) is here
    assert (other.seen()[:4096] == 0).all()


def test_streams_of_the_caller_are_waited_for_and_wait(rig: Any) -> None:
    ground = rig(stall=frozenset({1}))
    content = ground.random(7)
    foreign = ground.device.lane()
    foreign.execute("single", "h2d", ground.up(0, 4096))  # stalls
    with ground.stream() as stream:
        stream.after(foreign)
        foreign.execute("single", "h2d", ground.up(0, 8))  # later: not waited for
        back = stream.copy(ground.down(8192, 4096, source=0))
        with pytest.raises(TimedOutError):
            back.wait(0.02)
        stream.record().before(foreign)
        foreign.execute("single", "h2d", ground.up(0, 4096, source=4096))
        ground.sim.resume()
        back.wait(30)
        assert (ground.host[8192:12288] == content[:4096]).all()
        foreign.mark().wait(30)
    assert (ground.seen()[:4096] == content[4096:8192]).all()
    foreign.close()
    with ground.stream() as stream, pytest.raises(InvalidError, match="no stream of sim"):
        stream.after(object())


def test_a_callback_that_would_wait_for_the_lane_is_told_so(rig: Any) -> None:
    """before() waits for the scheduler, and the scheduler for the callback: ahead is 1."""
    ground = rig()
    refused: list[BaseException] = []
    with ground.stream(ahead=1) as stream:
        foreign = ground.device.lane()

        def ask() -> None:
            try:
                stream.record().before(foreign)
            except InvalidError as no:
                refused.append(no)

        stream.call(ask)
        stream.synchronize(30)
        placed = stream.record()
        placed.wait(30)
        stream.call(lambda: placed.before(foreign))  # it has come: nothing to wait for
        stream.synchronize(30)
    assert len(refused) == 1


def test_a_chooser_that_would_wait_for_its_stream_is_told_so(rig: Any) -> None:
    ground = rig()

    def choose(*_: object) -> Any:
        stream.synchronize()
        return "single"

    with ground.stream(choose=choose) as stream:
        with pytest.raises(InvalidError, match="chooser"):
            stream.copy(ground.up(0, 64)).wait(30)


@pytest.mark.parametrize("error", [SystemExit(3), asyncio.CancelledError(), KeyboardInterrupt()])
def test_a_chooser_that_exits_fails_that_copy_alone(rig: Any, error: BaseException) -> None:
    ground = rig()
    turns: list[int] = []

    def choose(*_: object) -> Any:
        turns.append(1)
        if len(turns) == 1:
            raise error
        return "batch"

    with ground.stream(choose=choose) as stream:
        first, second = (stream.copy(ground.up(0, 64)) for _ in range(2))
        with pytest.raises(CopyError, match=type(error).__name__):
            first.wait(30)
        second.wait(30)


@pytest.mark.parametrize("what", [CopyError("no event"), RuntimeError("?")])
@pytest.mark.parametrize("ends", [True, False], ids=["its lane ends", "nor does its lane end"])
def test_a_copy_without_a_mark_behind_it_is_held_until_its_lane_has_ended(
    rig: Any, monkeypatch: pytest.MonkeyPatch, what: Exception, *, ends: bool
) -> None:
    ground = rig()
    registry = ground.device.registry
    held: list[int] = []
    marks: list[int] = []
    stream = ground.stream()
    lane = stream._schedule._lane
    real_mark, real_close = lane.mark, lane.close

    def mark() -> Any:
        marks.append(1)
        if len(marks) == 2:
            raise what
        return real_mark()

    def close() -> None:
        held.append(registry.uses(ground.range))
        if not ends and len(held) == 1:
            raise CopyError("it does not end")
        real_close()

    monkeypatch.setattr(lane, "mark", mark)
    monkeypatch.setattr(lane, "close", close)
    operation = stream.copy(ground.up(0, 4096))
    with pytest.raises(type(what)):
        operation.wait(30)
    assert held == [1], "its ranges were let go while it may have been moving"
    assert registry.uses(ground.range) == (0 if ends else 1)
    assert stream.failed is what
    with pytest.raises(CopyError, match="has ended"):
        stream.copy(ground.up(0, 64))
    stream.close()


def test_a_chooser_that_fails_fails_that_copy_alone(rig: Any) -> None:
    ground = rig()
    turns: list[int] = []

    def choose(*_: object) -> Any:
        turns.append(1)
        if len(turns) == 1:
            raise ZeroDivisionError("in my table")
        return "nic" if len(turns) == 2 else "batch"

    with ground.stream(choose=choose) as stream:
        operations = [stream.copy(ground.up(0, 64)) for _ in range(3)]
        with pytest.raises(CopyError, match="in my table"):
            operations[0].wait(30)
        with pytest.raises(UnsupportedError, match="network card"):
            operations[1].wait(30)
        operations[2].wait(30)
        assert operations[2].tier == "batch"


def test_a_device_that_does_what_it_may_not_ends_the_stream(
    rig: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ground = rig()

    def broken(*_: object) -> None:
        raise RuntimeError("no such thing")

    with ground.stream() as stream:
        monkeypatch.setattr(stream._schedule._lane, "execute", broken)
        operation = stream.copy(ground.up(0, 64))
        with pytest.raises(RuntimeError, match="no such thing"):
            operation.wait(30)
        with pytest.raises(CopyError, match="has ended: no such thing"):
            stream.copy(ground.up(0, 64))


def test_closing_the_device_ends_its_streams(rig: Any) -> None:
    ground = rig(stall=frozenset({1}))
    stream = ground.stream()
    operation = stream.copy(ground.up(0, 64))
    ground.sim.close()
    with pytest.raises((ClosedError, DeviceLostError)):
        operation.wait(30)
    assert stream.failed is not None
    stream.close()
    with pytest.raises(ClosedError):
        ground.device.memory(4096)


def test_a_stream_nobody_closed_says_so(rig: Any) -> None:
    ground = rig()
    stream = ground.stream()
    schedule = stream._schedule
    with pytest.warns(ResourceWarning, match="never closed"):
        del stream
    schedule.close(None)


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_a_time_that_is_none_is_refused_and_nothing_is_held(rig: Any, timeout: float) -> None:
    ground = rig()
    with ground.stream() as stream:
        operation = stream.copy(ground.up(0, 64))
        event = stream.record()
        operation.wait(1e300)
        for use in (
            lambda: stream.copy(ground.up(0, 64), timeout=timeout),
            lambda: stream.synchronize(timeout),
            lambda: stream.close(timeout),
        ):
            with pytest.raises(InvalidError) as refused:
                use()
            assert refused.value.field == "timeout"
        event.wait(30)
        stream.synchronize(1e300)
    ground.close()


def test_a_signal_while_a_copy_is_taken_leaves_nothing_half_done(
    rig: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ground = rig()
    with ground.stream() as stream:
        schedule = stream._schedule
        steps = schedule._queued

        class Interrupted(type(steps)):  # type: ignore[misc]
            def append(self, step: object) -> None:
                super().append(step)
                raise KeyboardInterrupt

        monkeypatch.setattr(schedule, "_queued", Interrupted())
        with pytest.raises(KeyboardInterrupt):
            stream.copy(ground.up(0, 64))
        monkeypatch.setattr(schedule, "_queued", steps)
        stream.synchronize(30)
        assert stream.statistics().submitted == 0
        stream.copy(ground.up(0, 64)).wait(30)
    ground.close()


def test_a_lane_that_breaks_loses_the_device_and_hangs_nobody(
    rig: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ground = rig()

    def broken(*_: object) -> None:
        raise MemoryError("no rows")

    monkeypatch.setattr("dmaplane.stream.sim._lane.SimLane._rows", broken)
    with ground.stream() as stream:
        with pytest.raises(DeviceLostError, match="no rows"):
            stream.copy(ground.up(0, 64)).wait(30)

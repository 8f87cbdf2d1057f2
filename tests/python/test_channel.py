# SPDX-License-Identifier: MIT
"""Channels: single operations, rows, and both at once, from one thread and from several."""

from __future__ import annotations

import errno
import threading
import time

import numpy as np
import pytest

import dmaplane
from dmaplane import abi
from dmaplane._rows import checked


def nops(count: int, first: int = 0) -> np.ndarray:
    rows = np.zeros(count, dmaplane.SUBMISSION)
    rows["user_data"] = np.arange(first, first + count)
    return rows


def test_copy_moves_the_bytes_and_says_how(
    plane: dmaplane.Plane, channel: dmaplane.Channel
) -> None:
    with plane.buffer(1 << 20) as src, plane.buffer(1 << 20) as dst:
        src.numpy()[:] = np.arange(1 << 20, dtype=np.uint32).astype(np.uint8)
        done = channel.copy(dst, src).wait(timeout=5)
        assert (done.ok, done.length_bytes, done.path) == (True, 1 << 20, "local")
        assert done.error is None
        assert done.checksum is None
        assert (dst.numpy() == src.numpy()).all()
        done = channel.copy(dst[100:200], src[:100]).wait(timeout=5)
        assert done.length_bytes == 100
        assert bytes(dst[100:200].memory()) == bytes(src[:100].memory())


def test_checksum_and_verify(plane: dmaplane.Plane, channel: dmaplane.Channel) -> None:
    with plane.buffer(9) as src, plane.buffer(9) as dst:
        src.memory()[:] = b"123456789"
        assert channel.copy(dst, src, checksum=True).wait(timeout=5).checksum == 0xE3069283
        channel.copy(dst, src, verify=0xE3069283).wait(timeout=5)
        with pytest.raises(dmaplane.ChecksumError):
            channel.copy(dst, src, verify=0).wait(timeout=5)
        assert dmaplane.crc32c(b"6789", dmaplane.crc32c(b"12345")) == 0xE3069283


def test_fill_and_fence(plane: dmaplane.Plane, channel: dmaplane.Channel) -> None:
    with plane.buffer(64) as buffer:
        filled = channel.fill(buffer, 0xDEADBEEF)
        assert channel.fence().wait(timeout=5).ok
        assert filled.done
        assert (buffer.numpy(dtype=np.uint32) == 0xDEADBEEF).all()


def test_failure_is_raised_by_wait_and_can_be_looked_at(
    plane: dmaplane.Plane, channel: dmaplane.Channel
) -> None:
    with plane.buffer(64) as src, plane.buffer(64) as dst:
        late = channel.copy(dst, src, timeout=0)
        with pytest.raises(dmaplane.TimedOutError) as caught:
            late.wait(timeout=5)
        assert caught.value.errno == errno.ETIMEDOUT
        done = late.wait(check=False)
        assert done.result == -errno.ETIMEDOUT
        assert isinstance(done.error, dmaplane.TimedOutError)
        first = channel.copy(dst, src, timeout=0, link=True)
        second = channel.copy(dst, src)
        assert first.wait(check=False, timeout=5).result == -errno.ETIMEDOUT
        with pytest.raises(dmaplane.OperationCancelledError):
            second.wait(timeout=5)


def test_wait_that_times_out_leaves_the_operation(plane: dmaplane.Plane) -> None:
    with (
        plane.channel() as channel,
        plane.buffer(256 << 20) as src,
        plane.buffer(256 << 20) as dst,
    ):
        slow = channel.copy(dst, src)
        with pytest.raises(dmaplane.TimedOutError, match="goes on"):
            slow.wait(timeout=0.001)
        assert not slow.done
        assert "in flight" in repr(slow)
        assert slow.wait(timeout=20).ok
        assert slow.done


def test_cancel_is_a_fence(plane: dmaplane.Plane) -> None:
    with (
        plane.channel() as channel,
        plane.buffer(128 << 20) as src,
        plane.buffer(128 << 20) as dst,
    ):
        src.numpy()[:] = 1
        seen = dst.numpy()
        running = [channel.copy(dst, src) for _ in range(4)]
        stopped = [operation.cancel() for operation in running]
        seen[::64] = 0xAA
        time.sleep(0.03)
        assert (seen[::64] == 0xAA).all()
        assert any(stopped)
        assert all(operation.done for operation in running)
        for operation, was_stopped in zip(running, stopped, strict=True):
            result = operation.wait(check=False).result
            assert result == (-errno.ECANCELED if was_stopped else 0)
        assert not running[0].cancel()
        with pytest.raises(dmaplane.NotFoundError):
            channel.cancel(everything=True)
        del seen


def test_more_operations_than_slots_wait_for_room(plane: dmaplane.Plane) -> None:
    with plane.channel(slots=4) as channel:
        running = [channel.nop() for _ in range(1000)]
        assert all(operation.wait(timeout=5).ok for operation in running)
        assert channel.in_flight == 0


def test_full_ring_would_block_if_asked_not_to_wait(plane: dmaplane.Plane) -> None:
    with (
        plane.channel(slots=2, completion_slots=2) as channel,
        plane.buffer(256 << 20) as src,
        plane.buffer(256 << 20) as dst,
    ):
        running = [channel.copy(dst, src) for _ in range(2)]
        with pytest.raises(dmaplane.WouldBlock, match="2 slots"):
            channel.nop(nowait=True)
        with pytest.raises(dmaplane.WouldBlock):
            channel.push_nowait(nops(1))
        with pytest.raises(dmaplane.TimedOutError):
            channel.nop(timeout=0.001)
        for operation in running:
            operation.wait(timeout=20)
        assert channel.nop(nowait=True).wait(timeout=5).ok


def test_rows_complete_once_each(channel: dmaplane.Channel) -> None:
    done = channel.submit(nops(64), timeout=5)
    assert done.dtype == dmaplane.COMPLETION
    assert sorted(done["user_data"].tolist()) == list(range(64))
    assert not done["result"].any()
    assert len(channel.completions()) == 0


def test_more_rows_than_slots_go_in_rounds(channel: dmaplane.Channel) -> None:
    done = channel.submit(nops(10_000), timeout=20)
    assert sorted(done["user_data"].tolist()) == list(range(10_000))


def test_rows_may_be_strided(channel: dmaplane.Channel) -> None:
    done = channel.submit(nops(64)[::-2], timeout=5)
    assert sorted(done["user_data"].tolist()) == list(range(1, 64, 2))


def test_push_and_completions_are_the_two_halves(channel: dmaplane.Channel) -> None:
    channel.push(nops(10))
    assert channel.push_nowait(nops(5, first=10)) == 5
    first = channel.completions(4, wait=4, timeout=5)
    assert len(first) == 4
    rest = channel.completions(wait=11, timeout=5)
    seen = np.concatenate([first, rest])["user_data"].tolist()
    assert sorted(seen) == list(range(15))


def test_submit_can_wait_for_some(channel: dmaplane.Channel) -> None:
    some = channel.submit(nops(20), wait=5, timeout=5)
    assert 5 <= len(some) <= 20
    rest = channel.completions(wait=20 - len(some), timeout=5)
    assert len(some) + len(rest) == 20
    assert len(channel.submit(nops(0))) == 0


def test_failed_row_is_a_result_not_an_exception(
    plane: dmaplane.Plane, channel: dmaplane.Channel
) -> None:
    with plane.buffer(4096) as buffer:
        rows = nops(3)
        rows["operation"][1] = abi.OP_COPY
        rows["source_id"][1], rows["target_id"][1] = buffer.id, 999_999
        rows["length_bytes"][1] = 64
        done = channel.submit(rows, timeout=5)
        assert done["result"][np.argsort(done["user_data"])].tolist() == [0, -errno.ENOENT, 0]


def test_late_rows_are_kept_for_the_next_call(plane: dmaplane.Plane) -> None:
    with (
        plane.channel() as channel,
        plane.buffer(128 << 20) as src,
        plane.buffer(128 << 20) as dst,
    ):
        rows = nops(2)
        rows["operation"] = abi.OP_COPY
        rows["source_id"], rows["target_id"] = src.id, dst.id
        rows["length_bytes"] = 128 << 20
        with pytest.raises(dmaplane.TimedOutError, match="kept for the next call"):
            channel.submit(rows, timeout=0.002)
        assert len(channel.completions(wait=2, timeout=20)) == 2


def test_operations_and_rows_share_a_channel(channel: dmaplane.Channel) -> None:
    for _ in range(200):
        before = channel.nop()
        channel.push(nops(7))
        after = channel.nop()
        assert after.wait(timeout=5).ok
        assert before.wait(timeout=5).ok
        assert len(channel.completions(wait=7, timeout=5)) == 7
    assert channel.in_flight == 0


BAD_ROWS = [
    ("operation", 77),
    ("flags", 1 << 9),
    ("user_data", 1 << 63),
    ("endpoint_id", 1),
    ("source_id", 1),
    ("target_offset", 1),
    ("length_bytes", 5),
    ("immediate", 1),
    ("checksum", 1),
]


@pytest.mark.parametrize(("field", "value"), BAD_ROWS)
def test_first_bad_row_and_field_are_named(
    channel: dmaplane.Channel, field: str, value: int
) -> None:
    rows = nops(100)
    rows[field][[41, 57]] = value
    with pytest.raises(dmaplane.InvalidError) as caught:
        channel.submit(rows)
    assert caught.value.field == f"rows[41].{field}"
    assert str(value) in str(caught.value)
    assert channel.statistics().submissions == 0, "nothing was submitted"


def test_rows_of_every_valid_kind_pass_the_check() -> None:
    rows = nops(5)
    rows["operation"] = [abi.OP_NOP, abi.OP_COPY, abi.OP_FILL, abi.OP_FENCE, abi.OP_COPY]
    rows["length_bytes"] = [0, 5, 8, 0, 9]
    rows["source_id"] = [0, 1, 0, 0, 1]
    rows["target_id"] = [0, 2, 2, 0, 2]
    rows["immediate"] = [0, 0, 0xFFFFFFFF, 0, 0]
    rows["flags"][4] = abi.SUBMIT_CHECKSUM | abi.SUBMIT_VERIFY
    rows["checksum"][4] = 5
    assert checked(rows) is rows
    rows["length_bytes"][1] = 0
    with pytest.raises(dmaplane.InvalidError, match=r"rows\[1\]\.length_bytes"):
        checked(rows)
    copies = nops(3)
    copies["operation"] = abi.OP_COPY
    copies["length_bytes"] = [1, 0, 1]
    with pytest.raises(dmaplane.InvalidError, match=r"rows\[1\]\.length_bytes"):
        checked(copies)


def test_many_threads_share_one_channel(plane: dmaplane.Plane) -> None:
    with plane.channel(slots=16) as channel:
        failures: list[BaseException] = []

        def work() -> None:
            try:
                for _ in range(300):
                    running = [channel.nop() for _ in range(3)]
                    for operation in reversed(running):
                        assert operation.wait(timeout=20).ok
            except BaseException as reason:
                failures.append(reason)

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not failures
        assert channel.in_flight == 0
        assert channel.statistics().completions == 6 * 300 * 3


def test_waiter_behind_a_slow_one_is_woken(plane: dmaplane.Plane) -> None:
    """A thread waits for a long copy and takes completions; another's short one must not wait."""
    with (
        plane.channel(workers=1) as channel,
        plane.buffer(256 << 20) as src,
        plane.buffer(256 << 20) as dst,
    ):
        quick = channel.nop()
        slow = [channel.copy(dst, src) for _ in range(4)]
        last = threading.Thread(target=slow[-1].wait)
        last.start()
        time.sleep(0.005)
        quick.wait(timeout=5)
        first = slow[0].wait(timeout=20)
        assert first.ok
        assert not slow[-1].done, "the copies are too short for this test"
        last.join(20)


def test_close_completes_what_is_waited_for(plane: dmaplane.Plane) -> None:
    src, dst = plane.buffer(128 << 20), plane.buffer(128 << 20)
    channel = plane.channel()
    running = [channel.copy(dst, src) for _ in range(8)]
    began = time.monotonic()
    channel.close()
    assert time.monotonic() - began < 1.0
    assert all(operation.completion is not None for operation in running)
    with pytest.raises(dmaplane.OperationCancelledError):
        running[-1].wait()
    src.close()
    dst.close()
    assert plane.statistics().buffers == 0


def test_close_with_drain_finishes(plane: dmaplane.Plane) -> None:
    with plane.buffer(64 << 20) as src, plane.buffer(64 << 20) as dst:
        channel = plane.channel()
        running = [channel.copy(dst, src) for _ in range(4)]
        channel.close(drain=True, timeout=20)
        assert all(operation.wait().ok for operation in running)


def test_statistics_and_histogram_of_a_channel(channel: dmaplane.Channel) -> None:
    channel.submit(nops(50), timeout=5)
    counted = channel.statistics()
    assert (counted.submissions, counted.completions, counted.in_flight) == (50, 50, 0)
    latency = channel.histogram()
    assert latency.samples == sum(latency.counts) == 50
    assert 0 < latency.p50 <= latency.p99 <= latency.maximum
    merged = latency + latency
    assert merged.samples == 100
    assert merged.p50 == latency.p50


def test_worker_can_be_bound(plane: dmaplane.Plane) -> None:
    plane.require(dmaplane.Capability.BIND)
    cpu = plane.topology().nodes[0].cpus[0]
    with plane.channel(cpu=cpu, spin_us=0) as channel:
        assert channel.nop().wait(timeout=5).ok
    with plane.channel(node=0, spin_us=50, workers=2) as channel:
        assert channel.nop().wait(timeout=5).ok


def test_plane_waits_for_any_channel(plane: dmaplane.Plane) -> None:
    with plane.channel() as first, plane.channel() as second:
        assert not plane.wait(timeout=0)
        assert not plane.wait(timeout=0.01)
        second.push(nops(1))
        assert plane.wait(timeout=5)
        assert len(first.completions()) == 0
        assert len(second.completions(wait=1, timeout=5)) == 1
        assert not plane.wait(timeout=0)

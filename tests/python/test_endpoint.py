# SPDX-License-Identifier: MIT
"""Regions, listeners and endpoints in Python, over every path there is in one process.

What the plane promises is the conformance suite's (dmaplane.testing); here it is what Python
adds: objects that end in order (L3, L4), waits that notice what happens, arrays, and errors that
say what to do.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import gc
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import dmaplane
from dmaplane import abi

SOON = 20.0


# What it is.


def test_both_sides_name_the_path(link: Any, path: str) -> None:
    assert link.near.path == link.far.path == path
    with link.near_plane.buffer(64) as src:
        assert link.near.send(src).wait(SOON).path == path
    assert link.near.epoch == link.far.epoch
    assert link.near.peer_address == link.listener.address
    assert link.far.peer_address
    assert path in repr(link.near)


def test_ledger_balances_and_reads_well(link: Any) -> None:
    ledger = link.near.ledger()
    assert ledger.state == "live"
    assert ledger.path == link.near.path
    assert ledger.epoch == link.near.epoch
    assert ledger.peer_incarnation == link.far_plane.incarnation
    assert ledger.send_slots == 64
    assert ledger.send_bytes == link.far.window_bytes
    assert ledger.operations == ledger.send_slots_in_flight == 0
    assert f"{ledger.send_slots} slots" in str(ledger)
    with pytest.raises(dataclasses.FrozenInstanceError):
        ledger.stalls = 3  # type: ignore[misc]


def test_statistics_count_this_endpoint_only(link: Any) -> None:
    one, other = link.again()
    with one, other, link.near_plane.buffer(64) as src:
        for _ in range(3):
            one.send(src).wait(SOON)
        assert one.statistics().submissions == 3
        assert one.statistics().bytes == 192
        assert link.near.statistics().submissions == 0
        assert one.histogram().samples == 3


# Moving bytes.


def test_send_arrives_in_recv(link: Any) -> None:
    with link.near_plane.buffer(4096) as src, link.far_plane.buffer(8192) as dst:
        src.memory()[:5] = b"hello"
        waiting = link.far.recv(dst)
        sent = link.near.send(src[:5], checksum=True).wait(SOON)
        got = waiting.wait(SOON)
        assert got.length_bytes == 5
        assert bytes(dst[:5].memory()) == b"hello"
        assert sent.checksum == dmaplane.crc32c(b"hello")


def test_write_and_read_reach_the_range_and_no_more(link: Any) -> None:
    buffer, region, remote = link.opened(16384)
    with buffer, region, link.near_plane.buffer(4096) as src, link.near_plane.buffer(4096) as back:
        src.numpy()[:] = 7
        link.near.write(src, remote[4096:8192]).wait(SOON)
        seen = buffer.numpy()
        assert (seen[4096:8192] == 7).all()
        assert not seen[:4096].any()
        assert not seen[8192:].any()
        link.near.read(back, remote[4096:][:4096], verify=dmaplane.crc32c(src.memory())).wait(SOON)
        assert (back.numpy() == 7).all()
        del seen


def test_part_of_a_buffer_as_a_region(link: Any) -> None:
    with link.far_plane.buffer(16384) as buffer, buffer[4096:8192].region() as region:
        remote = link.near.region(region.key)
        assert len(remote) == len(region) == 4096
        assert region.query().offset == 4096
        with link.near_plane.buffer(4096) as src:
            src.numpy()[:] = 9
            link.near.write(src, remote).wait(SOON)
        assert (buffer.numpy()[4096:8192] == 9).all()
        assert not buffer.numpy()[:4096].any()


def test_write_imm_tells_the_peer_after_the_bytes(link: Any) -> None:
    buffer, region, remote = link.opened(4096)
    with buffer, region, link.near_plane.buffer(4096) as src:
        src.numpy()[:] = 5
        sent = link.near.write_imm(src, remote, imm=0xFFFFFFFF)
        arrived = link.far.immediate().wait(SOON)
        assert (buffer.numpy() == 5).all()
        assert (arrived.immediate, arrived.length_bytes) == (0xFFFFFFFF, 4096)
        assert arrived.path == link.far.path
        assert sent.wait(SOON).ok


def test_exchange_is_a_round_trip(link: Any) -> None:
    buffer, region, remote = link.opened(64)
    with link.near_plane.buffer(64) as ball, ball.region() as court, buffer, region:
        back = link.far.region(court.key)

        def answer() -> None:
            for _ in range(50):
                number = link.far.immediate().wait(SOON).immediate
                link.far.write_imm(buffer, back, number + 1).wait(SOON)

        thread = threading.Thread(target=answer)
        thread.start()
        for number in range(50):
            assert link.near.exchange(ball, remote, number, timeout=SOON).immediate == number + 1
        thread.join(SOON)


# Many at once.


def test_rows_are_one_call_and_land_where_they_should(link: Any) -> None:
    count, block = 1024, 512
    buffer, region, remote = link.opened(count * block)
    with (
        buffer,
        region,
        link.near_plane.channel(slots=count) as channel,
        link.near_plane.buffer(count * block) as src,
    ):
        near, far = link.again(channel=channel)
        with near, far, near.region(region.key) as there:
            src.numpy((count, block))[:] = np.arange(count)[:, None] % 251
            order = np.random.default_rng(3).permutation(count)
            rows = near.rows(
                "write", src, there, local_offsets=np.arange(count) * block,
                remote_offsets=order * block, lengths=block,
            )  # fmt: skip
            batches = channel.statistics().batches
            done = near.submit(rows, timeout=SOON)
            assert not done["result"].any()
            assert sorted(done["user_data"].tolist()) == list(range(count))
            assert channel.statistics().batches == batches + 1
            expected = np.zeros((count, block), np.uint8)
            expected[order] = src.numpy((count, block))
            assert (buffer.numpy((count, block)) == expected).all()
    assert remote.id


def test_immediates_of_rows_come_in_order_as_one_array(link: Any) -> None:
    buffer, region, remote = link.opened(4096)
    with buffer, region, link.near_plane.buffer(4096) as src:
        numbers = np.arange(200, dtype=np.uint32) + 7
        rows = link.near.rows(
            "write_imm", src[:16], remote, remote_offsets=np.arange(200) * 16, immediates=numbers
        )
        link.near.channel.push(rows, timeout=SOON)
        first = link.far.immediates(150, timeout=SOON)
        rest = link.far.immediates(50, timeout=SOON)
        arrived = np.concatenate([first, rest])
        assert arrived.dtype == dmaplane.COMPLETION
        assert (arrived["immediate"] == numbers).all()
        assert (arrived["operation"] == abi.EVENT_WRITE_IMM).all()
        assert len(link.far.immediates()) == 0
        assert not link.near.channel.completions(wait=200, timeout=SOON)["result"].any()


def test_one_and_many_immediates_share_an_order(link: Any) -> None:
    buffer, region, remote = link.opened(64)
    with buffer, region, link.near_plane.buffer(64) as src:
        for number in range(40):
            link.near.write_imm(src, remote, number).wait(SOON)
        got = [link.far.immediate().wait(SOON).immediate for _ in range(3)]
        got += link.far.immediates(30, timeout=SOON)["immediate"].tolist()
        got += [link.far.immediate().wait(SOON).immediate]
        got += link.far.immediates(6, timeout=SOON)["immediate"].tolist()
        assert got == list(range(40))


def test_messages_as_rows(link: Any) -> None:
    with link.near_plane.buffer(4096) as src, link.far_plane.buffer(4096) as dst:
        src.numpy()[:] = np.arange(4096) % 256
        offsets = np.arange(16) * 256
        link.far.channel.push(link.far.rows("recv", dst, local_offsets=offsets, lengths=256))
        sent = link.near.submit(
            link.near.rows("send", src, local_offsets=offsets, lengths=256), timeout=SOON
        )
        assert not sent["result"].any()
        assert not link.far.channel.completions(wait=16, timeout=SOON)["result"].any()
        assert bytes(dst.memory()) == bytes(src.memory())


def test_several_endpoints_on_one_channel_are_told_apart(link: Any) -> None:
    with link.far_plane.channel() as shared, link.near_plane.buffer(64) as src:
        with link.far_plane.buffer(64) as buffer, buffer.region() as region:
            pairs = []
            for _ in range(4):
                with concurrent.futures.ThreadPoolExecutor(1) as pool:
                    calling = pool.submit(link.near_plane.connect, link.listener.address)
                    far = link.listener.accept(timeout=SOON, channel=shared)
                    pairs.append((calling.result(SOON), far))
            for index, (near, _) in enumerate(pairs):
                with near.region(region.key) as there:
                    for step in range(40):
                        near.write_imm(src, there, index * 1000 + step).wait(SOON)
            for index, (_, far) in reversed(list(enumerate(pairs))):
                got = far.immediates(40, timeout=SOON)["immediate"]
                assert (got == index * 1000 + np.arange(40)).all()
            assert not shared.events()
            for near, far in pairs:
                near.close()
                far.close()


def test_events_between_rows_of_the_same_channel(link: Any) -> None:
    """Immediates that arrive while rows complete go to their endpoint, rows to their caller."""
    buffer, region, remote = link.opened(4096)
    with buffer, region, link.near_plane.buffer(4096) as src:
        mine = link.near_plane.buffer(4096)
        with mine, mine.region() as court:
            back = link.far.region(court.key)
            for round_number in range(20):
                link.far.channel.push(
                    link.far.rows("write_imm", buffer, back, immediates=np.arange(32))
                )
                done = link.near.submit(
                    link.near.rows("write", src, remote, remote_offsets=np.zeros(32, int)),
                    timeout=SOON,
                )
                assert len(done) == 32
                assert not done["result"].any()
                got = link.near.immediates(32, timeout=SOON)["immediate"]
                assert (got == np.arange(32)).all(), round_number
                link.far.channel.completions(wait=32, timeout=SOON)


# Rights.


def test_a_region_holds_its_buffer(link: Any) -> None:
    buffer = link.far_plane.buffer(4096)
    region = buffer.region("read")
    assert region.query().state == "live"
    assert region.query().access == region.access == "read"
    with pytest.raises(dmaplane.BusyError, match="1 region"):
        buffer.destroy()
    region.close()
    region.close()
    assert region.closed
    buffer.destroy()
    with pytest.raises(dmaplane.ClosedError):
        region.query()


def test_closing_a_buffer_frees_it_once_its_region_is_closed(link: Any) -> None:
    buffer = link.far_plane.buffer(4096)
    region = buffer.region()
    buffer.close()
    assert link.far_plane.statistics().buffers == 1
    region.close()
    assert link.far_plane.statistics().buffers == 0


@pytest.mark.parametrize("access", ["read", "write"])
def test_what_was_not_granted_is_refused(link: Any, access: Any) -> None:
    buffer, region, remote = link.opened(64, access)
    assert remote.access == access
    with buffer, region, link.near_plane.buffer(64) as mine:
        other = link.near.write if access == "read" else link.near.read
        with pytest.raises(dmaplane.NotAllowedError, match="rw"):
            other(mine, remote)


def test_key_of_a_closed_region_is_stale(link: Any) -> None:
    buffer, region, remote = link.opened(64)
    region.close()
    with buffer, link.near_plane.buffer(64) as src:
        with pytest.raises(dmaplane.StaleEpochError, match="new key"):
            link.near.write(src, remote).wait(SOON)
        with pytest.raises(dmaplane.StaleEpochError, match="new key"):
            link.near.region(region.key)
        assert not buffer.numpy().any()


def test_wrong_key_is_refused_and_not_shown(link: Any) -> None:
    with link.far_plane.buffer(64) as buffer, buffer.region() as region:
        wrong = bytearray(region.key)
        wrong[16] ^= 0x55
        with pytest.raises(dmaplane.DmaplaneError) as caught:
            link.near.region(bytes(wrong))
        assert isinstance(
            caught.value,
            dmaplane.NotAllowedError | dmaplane.StaleEpochError | dmaplane.InvalidError,
        )
        assert region.key.hex() not in repr(region) + str(caught.value)


# Credit.


def test_a_full_window_stalls_and_is_counted(link: Any) -> None:
    window = link.far.window
    with link.near_plane.buffer(64) as src, link.far_plane.buffer(64) as dst:
        for operation in [link.near.send(src) for _ in range(window)]:
            operation.wait(SOON)
        with pytest.raises(dmaplane.WouldBlock, match="credit"):
            link.near.send(src, nowait=True).wait(SOON)
        late = link.near.send(src)
        with pytest.raises(TimeoutError):
            late.wait(0.05)
        for _ in range(window + 1):
            link.far.recv(dst).wait(SOON)
        late.wait(SOON)
        ledger = link.near.ledger()
        assert ledger.stalls >= 1
        assert ledger.stall_ns >= 40e6


# Ends.


def test_peer_that_closes_is_a_typed_error_with_its_address(link: Any) -> None:
    buffer, region, remote = link.opened(64)
    with buffer, region, link.near_plane.buffer(64) as src:
        assert link.near.lost is None
        link.far.close()
        with pytest.raises(dmaplane.PeerLostError) as caught:
            link.near.immediate().wait(SOON)
        assert caught.value.peer == link.listener.address
        assert caught.value.path == link.near.path
        assert caught.value.cause
        assert link.listener.address in str(caught.value)
        assert isinstance(caught.value, ConnectionResetError)
        assert link.near.lost is not None
        with pytest.raises(dmaplane.DmaplaneError):
            link.near.write(src, remote).wait(SOON)
        assert not link.near.closed


def test_what_had_landed_is_given_before_the_loss(link: Any) -> None:
    buffer, region, remote = link.opened(64)
    with buffer, region, link.near_plane.buffer(64) as src:
        for number in range(3):
            link.near.write_imm(src, remote, number).wait(SOON)
        link.near.close()
        assert link.far.immediate().wait(SOON).immediate == 0
        with pytest.raises(dmaplane.PeerLostError):
            link.far.immediates(5, timeout=SOON)
        assert link.far.immediates()["immediate"].tolist() == [1, 2]
        with pytest.raises(dmaplane.PeerLostError):
            link.far.immediate().wait(SOON)


def test_pending_operations_fail_when_the_peer_goes(link: Any) -> None:
    with link.near_plane.buffer(64) as dst:
        waiting = [link.near.recv(dst) for _ in range(4)]
        link.far.close()
        for operation in waiting:
            with pytest.raises(dmaplane.PeerLostError, match="connect again"):
                operation.wait(SOON)


def test_close_ends_what_is_in_flight_and_wakes_who_waits(link: Any) -> None:
    failures: list[BaseException] = []

    def wait(act: Callable[[], object]) -> None:
        try:
            act()
        except BaseException as failure:
            failures.append(failure)

    with link.near_plane.buffer(64) as dst:
        waiting = link.near.recv(dst)
        threads = [
            threading.Thread(target=wait, args=(act,))
            for act in (lambda: waiting.wait(SOON), lambda: link.near.immediate().wait(SOON))
        ]
        for thread in threads:
            thread.start()
        time.sleep(0.05)
        began = time.monotonic()
        link.near.close()
        for thread in threads:
            thread.join(SOON)
        assert time.monotonic() - began < 2.0
    assert len(failures) == 2
    assert all(
        isinstance(
            failure,
            dmaplane.ClosedError | dmaplane.OperationCancelledError | dmaplane.PeerLostError,
        )
        for failure in failures
    ), failures
    link.near.close()
    with pytest.raises(dmaplane.ClosedError):
        link.near.ledger()
    with pytest.raises(dmaplane.ClosedError):
        link.near.send(dst)


def test_close_with_drain_finishes_first(link: Any) -> None:
    buffer, region, remote = link.opened(1 << 20)
    with buffer, region, link.near_plane.buffer(1 << 20) as src:
        src.numpy()[:] = 3
        running = [link.near.write(src, remote) for _ in range(8)]
        link.near.close(drain=True, timeout=SOON)
        assert all(operation.wait(SOON).ok for operation in running)
        assert (buffer.numpy() == 3).all()


def test_closing_leaves_nothing_behind(link: Any) -> None:
    for _ in range(5):
        near, far = link.again()
        with link.far_plane.buffer(64) as buffer, buffer.region() as region:
            near.region(region.key)
        far.close()
        near.close()
    link.near.close()
    link.far.close()
    link.listener.close()
    for one in (link.near_plane, link.far_plane):
        left = one.statistics()
        assert (left.endpoints, left.regions, left.channels, left.buffers) == (0, 0, 0, 0)


def test_closing_in_mid_transfer_leaves_nothing_behind(link: Any) -> None:
    buffer, region, remote = link.opened(8 << 20)
    with buffer, region, link.near_plane.buffer(8 << 20) as src:
        running = [link.near.write(src, remote) for _ in range(16)]
        link.near.close()
        assert all(operation.done for operation in running)
        src.numpy()[:] = 1  # nobody reads it any more
    link.far.close()
    link.listener.close()
    for one in (link.near_plane, link.far_plane):
        left = one.statistics()
        assert (left.endpoints, left.regions, left.channels, left.buffers) == (0, 0, 0, 0)


def test_plane_close_ends_endpoints_and_listeners(link: Any) -> None:
    link.far_plane.close()
    assert link.far.closed
    assert link.listener.closed
    with pytest.raises(dmaplane.ClosedError):
        link.far.immediate().wait(1)
    with pytest.raises(dmaplane.PeerLostError):
        link.near.immediate().wait(SOON)


def test_shared_channel_close_ends_its_endpoints(link: Any) -> None:
    channel = link.near_plane.channel()
    near, far = link.again(channel=channel)
    channel.close()
    assert near.closed
    with pytest.raises(dmaplane.ClosedError):
        near.ledger()
    with pytest.raises(dmaplane.PeerLostError):
        far.immediate().wait(SOON)
    near.close()
    far.close()
    assert link.near.ledger().state == "live", "the other connection lives on"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_forgotten_endpoint_warns(link: Any) -> None:
    near, far = link.again()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del near
        gc.collect()
    assert any("endpoint" in str(one.message) for one in caught)
    far.close()


def test_interrupt_ends_a_wait(link: Any) -> None:
    """A signal handler that raises ends each kind of wait, and nothing is lost by it."""

    def interrupt(_: int, __: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for act in (
            lambda: link.near.immediate().wait(),
            lambda: link.near.immediates(5),
            lambda: link.listener.accept(),
        ):
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(KeyboardInterrupt):
                act()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    buffer, region, remote = link.opened(64)
    with buffer, region, link.near_plane.buffer(64) as src:
        link.near.write_imm(src, remote, 5).wait(SOON)
        assert link.far.immediate().wait(SOON).immediate == 5
    near, far = link.again()
    near.close()
    far.close()


KILLED = """
import sys, dmaplane
with dmaplane.open(plane="embedded") as plane:
    endpoint = plane.connect(sys.argv[1], require=sys.argv[2])
    print(endpoint.path, flush=True)
    sys.stdin.read()
"""


def test_killed_peer_is_noticed(
    far_plane: dmaplane.Plane, listener: dmaplane.Listener, path: str
) -> None:
    with far_plane.buffer(64) as dst:
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, listener.address, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with child, listener.accept(timeout=SOON) as endpoint:
            assert child.stdout is not None
            assert child.stdout.readline().strip() == path
            waiting = endpoint.recv(dst)
            child.kill()
            with pytest.raises(dmaplane.PeerLostError):
                waiting.wait(SOON)
            assert endpoint.lost is not None

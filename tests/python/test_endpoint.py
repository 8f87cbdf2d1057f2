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
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import pytest

import dmaplane
from dmaplane import abi

PATHS: tuple[Literal["shm", "tcp"], ...] = ("shm", "tcp")
SOON = 20.0


@dataclasses.dataclass
class Link:
    """Two planes of this process, and a connection between them."""

    near_plane: dmaplane.Plane
    far_plane: dmaplane.Plane
    listener: dmaplane.Listener
    near: dmaplane.Endpoint
    far: dmaplane.Endpoint

    def again(self, **options: Any) -> tuple[dmaplane.Endpoint, dmaplane.Endpoint]:
        """One more connection; @options are of the near side."""
        return joined(self.near_plane, self.listener, **options)


def joined(
    plane: dmaplane.Plane, listener: dmaplane.Listener, **options: Any
) -> tuple[dmaplane.Endpoint, dmaplane.Endpoint]:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        calling = pool.submit(plane.connect, listener.address, **options)
        far = listener.accept(timeout=SOON)
        return calling.result(SOON), far


@pytest.fixture(params=PATHS)
def link(request: pytest.FixtureRequest, plane: dmaplane.Plane) -> Iterator[Link]:
    if not plane.capabilities & dmaplane.Capability.ENDPOINT:
        pytest.skip("this plane has no endpoints")
    with dmaplane.open(plane="embedded") as far_plane:
        with far_plane.listen(require=request.param) as listener:
            near, far = joined(plane, listener, require=request.param)
            with near, far:
                yield Link(plane, far_plane, listener, near, far)


def opened(link: Link, length: int, access: Any = "rw") -> tuple[dmaplane.Buffer, Any, Any]:
    """A buffer of the far side, its region, and what that is on the near side."""
    buffer = link.far_plane.buffer(length)
    region = buffer.region(access)
    return buffer, region, link.near.region(region.key)


# What it is.


def test_both_sides_name_the_path(link: Link, request: pytest.FixtureRequest) -> None:
    path = request.node.callspec.params["link"]
    assert link.near.path == link.far.path == path
    with link.near_plane.buffer(64) as src:
        assert link.near.send(src).wait(SOON).path == path
    assert link.near.epoch == link.far.epoch
    assert link.near.peer_address == link.listener.address
    assert link.far.peer_address
    assert path in repr(link.near)


def test_ledger_balances_and_reads_well(link: Link) -> None:
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


def test_statistics_count_this_endpoint_only(link: Link) -> None:
    one, other = link.again()
    with one, other, link.near_plane.buffer(64) as src:
        for _ in range(3):
            one.send(src).wait(SOON)
        assert one.statistics().submissions == 3
        assert one.statistics().bytes == 192
        assert link.near.statistics().submissions == 0
        assert one.histogram().samples == 3


# Moving bytes.


def test_send_arrives_in_recv(link: Link) -> None:
    with link.near_plane.buffer(4096) as src, link.far_plane.buffer(8192) as dst:
        src.memory()[:5] = b"hello"
        waiting = link.far.recv(dst)
        sent = link.near.send(src[:5], checksum=True).wait(SOON)
        got = waiting.wait(SOON)
        assert got.length_bytes == 5
        assert bytes(dst[:5].memory()) == b"hello"
        assert sent.checksum == dmaplane.crc32c(b"hello")


def test_write_and_read_reach_the_range_and_no_more(link: Link) -> None:
    buffer, region, remote = opened(link, 16384)
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


def test_part_of_a_buffer_as_a_region(link: Link) -> None:
    with link.far_plane.buffer(16384) as buffer, buffer[4096:8192].region() as region:
        remote = link.near.region(region.key)
        assert len(remote) == len(region) == 4096
        assert region.query().offset == 4096
        with link.near_plane.buffer(4096) as src:
            src.numpy()[:] = 9
            link.near.write(src, remote).wait(SOON)
        assert (buffer.numpy()[4096:8192] == 9).all()
        assert not buffer.numpy()[:4096].any()


def test_write_imm_tells_the_peer_after_the_bytes(link: Link) -> None:
    buffer, region, remote = opened(link, 4096)
    with buffer, region, link.near_plane.buffer(4096) as src:
        src.numpy()[:] = 5
        sent = link.near.write_imm(src, remote, imm=0xFFFFFFFF)
        arrived = link.far.immediate().wait(SOON)
        assert (buffer.numpy() == 5).all()
        assert (arrived.immediate, arrived.length_bytes) == (0xFFFFFFFF, 4096)
        assert arrived.path == link.far.path
        assert sent.wait(SOON).ok


def test_exchange_is_a_round_trip(link: Link) -> None:
    buffer, region, remote = opened(link, 64)
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


def test_rows_are_one_call_and_land_where_they_should(link: Link) -> None:
    count, block = 1024, 512
    buffer, region, remote = opened(link, count * block)
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


def test_immediates_of_rows_come_in_order_as_one_array(link: Link) -> None:
    buffer, region, remote = opened(link, 4096)
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


def test_one_and_many_immediates_share_an_order(link: Link) -> None:
    buffer, region, remote = opened(link, 64)
    with buffer, region, link.near_plane.buffer(64) as src:
        for number in range(40):
            link.near.write_imm(src, remote, number).wait(SOON)
        got = [link.far.immediate().wait(SOON).immediate for _ in range(3)]
        got += link.far.immediates(30, timeout=SOON)["immediate"].tolist()
        got += [link.far.immediate().wait(SOON).immediate]
        got += link.far.immediates(6, timeout=SOON)["immediate"].tolist()
        assert got == list(range(40))


def test_messages_as_rows(link: Link) -> None:
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


def test_several_endpoints_on_one_channel_are_told_apart(link: Link) -> None:
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


def test_events_between_rows_of_the_same_channel(link: Link) -> None:
    """Immediates that arrive while rows complete go to their endpoint, rows to their caller."""
    buffer, region, remote = opened(link, 4096)
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


def test_a_region_holds_its_buffer(link: Link) -> None:
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


def test_closing_a_buffer_frees_it_once_its_region_is_closed(link: Link) -> None:
    buffer = link.far_plane.buffer(4096)
    region = buffer.region()
    buffer.close()
    assert link.far_plane.statistics().buffers == 1
    region.close()
    assert link.far_plane.statistics().buffers == 0


@pytest.mark.parametrize("access", ["read", "write"])
def test_what_was_not_granted_is_refused(link: Link, access: Any) -> None:
    buffer, region, remote = opened(link, 64, access)
    assert remote.access == access
    with buffer, region, link.near_plane.buffer(64) as mine:
        other = link.near.write if access == "read" else link.near.read
        with pytest.raises(dmaplane.NotAllowedError, match="rw"):
            other(mine, remote)


def test_key_of_a_closed_region_is_stale(link: Link) -> None:
    buffer, region, remote = opened(link, 64)
    region.close()
    with buffer, link.near_plane.buffer(64) as src:
        with pytest.raises(dmaplane.StaleEpochError, match="new key"):
            link.near.write(src, remote).wait(SOON)
        with pytest.raises(dmaplane.StaleEpochError, match="new key"):
            link.near.region(region.key)
        assert not buffer.numpy().any()


def test_wrong_key_is_refused_and_not_shown(link: Link) -> None:
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


def test_a_full_window_stalls_and_is_counted(link: Link) -> None:
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


def test_peer_that_closes_is_a_typed_error_with_its_address(link: Link) -> None:
    buffer, region, remote = opened(link, 64)
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


def test_what_had_landed_is_given_before_the_loss(link: Link) -> None:
    buffer, region, remote = opened(link, 64)
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


def test_pending_operations_fail_when_the_peer_goes(link: Link) -> None:
    with link.near_plane.buffer(64) as dst:
        waiting = [link.near.recv(dst) for _ in range(4)]
        link.far.close()
        for operation in waiting:
            with pytest.raises(dmaplane.PeerLostError, match="connect again"):
                operation.wait(SOON)


def test_close_ends_what_is_in_flight_and_wakes_who_waits(link: Link) -> None:
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


def test_close_with_drain_finishes_first(link: Link) -> None:
    buffer, region, remote = opened(link, 1 << 20)
    with buffer, region, link.near_plane.buffer(1 << 20) as src:
        src.numpy()[:] = 3
        running = [link.near.write(src, remote) for _ in range(8)]
        link.near.close(drain=True, timeout=SOON)
        assert all(operation.wait(SOON).ok for operation in running)
        assert (buffer.numpy() == 3).all()


def test_closing_leaves_nothing_behind(plane: dmaplane.Plane) -> None:
    if not plane.capabilities & dmaplane.Capability.ENDPOINT:
        pytest.skip("this plane has no endpoints")
    with dmaplane.open(plane="embedded") as far_plane:
        for path in PATHS:
            with far_plane.listen(require=path) as listener:
                for _ in range(5):
                    near, far = joined(plane, listener)
                    with far_plane.buffer(64) as buffer, buffer.region() as region:
                        near.region(region.key)
                    far.close()
                    near.close()
        for one in (plane, far_plane):
            left = one.statistics()
            assert (left.endpoints, left.regions, left.channels, left.buffers) == (0, 0, 0, 0)


def test_plane_close_ends_endpoints_and_listeners(link: Link) -> None:
    link.far_plane.close()
    assert link.far.closed
    assert link.listener.closed
    with pytest.raises(dmaplane.ClosedError):
        link.far.immediate().wait(1)
    with pytest.raises(dmaplane.PeerLostError):
        link.near.immediate().wait(SOON)


def test_shared_channel_close_ends_its_endpoints(link: Link) -> None:
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
def test_forgotten_endpoint_warns(link: Link) -> None:
    near, far = link.again()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del near
        gc.collect()
    assert any("endpoint" in str(one.message) for one in caught)
    far.close()


def test_interrupt_ends_a_wait(link: Link) -> None:
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
    buffer, region, remote = opened(link, 64)
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


@pytest.mark.parametrize("path", PATHS)
def test_killed_peer_is_noticed(plane: dmaplane.Plane, path: Any) -> None:
    if not plane.capabilities & dmaplane.Capability.ENDPOINT:
        pytest.skip("this plane has no endpoints")
    with plane.listen(require=path) as listener, plane.buffer(64) as dst:
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


# Errors say what to do.


def test_nobody_listens(link: Link) -> None:
    address = link.listener.address
    link.listener.close()
    with pytest.raises(dmaplane.UnreachableError, match="start the listener") as caught:
        link.near_plane.connect(address, timeout=5)
    assert address in str(caught.value)
    assert isinstance(caught.value, ConnectionError)


def test_address_that_is_taken(link: Link) -> None:
    with pytest.raises(dmaplane.AddressInUseError, match="0 for a free one"):
        link.near_plane.listen(link.listener.address)


@pytest.mark.parametrize("path", PATHS)
def test_secret_must_match_and_is_never_shown(plane: dmaplane.Plane, path: Any) -> None:
    if not plane.capabilities & dmaplane.Capability.ENDPOINT:
        pytest.skip("this plane has no endpoints")
    secret = "only-we-two-know"
    with dmaplane.open(plane="embedded") as far_plane:
        with far_plane.listen(secret=secret, require=path) as listener:
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                accepting = pool.submit(listener.accept, timeout=SOON)
                for wrong in (None, "another-secret", secret[:-1]):
                    with pytest.raises(dmaplane.NotAllowedError, match="secret") as caught:
                        plane.connect(listener.address, secret=wrong, timeout=SOON)
                    shown = str(caught.value) + repr(caught.value) + repr(listener)
                    assert secret not in shown
                    assert wrong is None or wrong not in shown
                with plane.connect(listener.address, secret=secret.encode()) as near:
                    with accepting.result(SOON) as far:
                        assert near.epoch == far.epoch


def test_required_path_that_is_not_there_names_the_broken_link(plane: dmaplane.Plane) -> None:
    if not plane.capabilities & dmaplane.Capability.ENDPOINT:
        pytest.skip("this plane has no endpoints")
    with dmaplane.open(plane="embedded") as far_plane:
        with far_plane.listen(require="tcp") as listener:
            with pytest.raises(dmaplane.UnsupportedError, match='require="shm"') as caught:
                plane.connect(listener.address, require="shm", timeout=5)
            assert "tcp only" in caught.value.needs
    with pytest.raises(dmaplane.UnsupportedError) as caught:
        plane.connect("192.0.2.1:7471", secret="x", require="shm", timeout=5)
    assert "no address of it" in caught.value.needs


def test_secret_is_mandatory_beyond_loopback(plane: dmaplane.Plane) -> None:
    if not plane.capabilities & dmaplane.Capability.ENDPOINT:
        pytest.skip("this plane has no endpoints")
    with pytest.raises(dmaplane.NotAllowedError, match="secret is mandatory"):
        plane.connect("192.0.2.1:7471", timeout=5)
    with pytest.raises(dmaplane.NotAllowedError, match="secret is mandatory"):
        plane.listen("0.0.0.0:0")


def test_accept_gives_up_in_time(link: Link) -> None:
    with pytest.raises(dmaplane.TimedOutError, match=link.listener.address):
        link.listener.accept(timeout=0.05)
    with pytest.raises(dmaplane.TimedOutError):
        link.listener.accept(timeout=0)
    near, far = link.again()
    near.close()
    far.close()


def test_close_of_a_listener_ends_accept(link: Link) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        accepting = pool.submit(link.listener.accept)
        time.sleep(0.05)
        link.listener.close()
        with pytest.raises(dmaplane.ClosedError):
            accepting.result(SOON)
    link.listener.close()
    assert link.near.ledger().state == "live", "what it accepted stays"


WRONG: list[tuple[str, Callable[[Link, Any], object], str]] = [
    ("address", lambda one, r: one.near_plane.connect("localhost"), "host:port"),
    ("address", lambda one, r: one.near_plane.connect(""), "1 .. 127"),
    ("address", lambda one, r: one.near_plane.connect("x" * 200 + ":1"), "1 .. 127"),
    ("address", lambda one, r: one.near_plane.listen(7471), "10.0.0.2:7471"),  # type: ignore[arg-type]
    ("secret", lambda one, r: one.near_plane.connect("127.0.0.1:1", secret=b"x" * 65), "64"),
    ("secret", lambda one, r: one.near_plane.connect("127.0.0.1:1", secret=""), "None"),
    ("require", lambda one, r: one.near_plane.connect("127.0.0.1:1", require="udp"), "tcp"),  # type: ignore[arg-type]
    ("window", lambda one, r: one.near_plane.connect("127.0.0.1:1", window=0), "1 .. "),
    ("window_bytes", lambda one, r: one.near_plane.connect("127.0.0.1:1", window_bytes=0), "1"),
    ("detect", lambda one, r: one.near_plane.connect("127.0.0.1:1", detect=0), "seconds"),
    ("timeout", lambda one, r: one.near_plane.connect("127.0.0.1:1", timeout=-1), "seconds"),
    ("backlog", lambda one, r: one.near_plane.listen(backlog=0), "65535"),
    ("channel", lambda one, r: one.near_plane.listen(channel=one.far.channel), "plane.channel()"),
    ("access", lambda one, r: one.near_plane.region(one.near_plane.buffer(8), "all"), "rw"),  # type: ignore[arg-type]
    ("source", lambda one, r: one.near_plane.region(b"x"), "plane.buffer()"),  # type: ignore[arg-type]
    ("key", lambda one, r: one.near.region(b""), "Region.key"),
    ("key", lambda one, r: one.near.region(b"x" * 65), "1 .. 64"),
    ("key", lambda one, r: one.near.region("key"), "bytes"),  # type: ignore[arg-type]
    ("imm", lambda one, r: one.near.write_imm(one.near_plane.buffer(64), r, 1 << 32), "2**32"),
    ("src, remote", lambda one, r: one.near.write(one.near_plane.buffer(65), r), "slice"),
    ("dst, remote", lambda one, r: one.near.read(one.near_plane.buffer(65), r), "slice"),
    ("remote", lambda one, r: one.near.write(one.near_plane.buffer(64), b""), "region(key)"),  # type: ignore[arg-type]
    ("remote", lambda one, r: one.far.write(one.far_plane.buffer(64), r), "import the key there"),
    ("src", lambda one, r: one.near.send(b"text"), "user="),  # type: ignore[arg-type]
    ("src", lambda one, r: one.near.send(one.far_plane.buffer(8)), "export"),
    ("stop", lambda one, r: r[:65], "at most 64"),
    ("count", lambda one, r: one.near.immediates(0), "at least 1"),
    ("operation", lambda one, r: one.near.rows("copy", one.near_plane.buffer(8)), "write_imm"),  # type: ignore[arg-type]
    ("remote", lambda one, r: one.near.rows("send", one.near_plane.buffer(8), r), "leave it out"),
    ("remote", lambda one, r: one.near.rows("write", one.near_plane.buffer(8)), "region(key)"),
    (
        "rows[2].local",
        lambda one, r: one.near.rows(
            "write", one.near_plane.buffer(64), r, local_offsets=[0, 8, 60], lengths=8
        ),
        "64 bytes",
    ),
    (
        "rows[1].remote",
        lambda one, r: one.near.rows(
            "write", one.near_plane.buffer(64), r, remote_offsets=[0, -8], lengths=8
        ),
        "64 bytes",
    ),
    (
        "rows[0].endpoint_id",
        lambda one, r: one.near.submit(np.zeros(2, dmaplane.SUBMISSION)),
        "endpoint.rows()",
    ),
]


@pytest.mark.parametrize(
    ("field", "act", "fix"), WRONG, ids=[f"{i}-{w[0]}" for i, w in enumerate(WRONG)]
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_bad_argument_names_the_field_and_the_fix(
    link: Link, field: str, act: Callable[[Link, Any], object], fix: str
) -> None:
    buffer, region, remote = opened(link, 64)
    with buffer, region:
        with pytest.raises(dmaplane.InvalidError) as caught:
            act(link, remote)
        assert caught.value.field == field
        assert fix in caught.value.fix
        assert caught.value.errno is None, "Python must refuse it before it asks the plane"


def test_encryption_that_is_not_there_is_refused(plane: dmaplane.Plane) -> None:
    if not plane.capabilities & dmaplane.Capability.ENDPOINT:
        pytest.skip("this plane has no endpoints")
    with pytest.raises(dmaplane.UnsupportedError, match="encrypt=True"):
        plane.listen(encrypt=True)

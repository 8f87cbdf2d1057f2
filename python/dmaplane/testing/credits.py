# SPDX-License-Identifier: MIT
"""L2: nothing is sent that the receiver has no room for. L11: what waits is counted and timed."""

from __future__ import annotations

import errno
import random
import time
from typing import TYPE_CHECKING

from dmaplane import _abi
from dmaplane.testing import _pair, _rig
from dmaplane.testing._case import MakePlane, case_over_fabrics
from dmaplane.testing._pair import recv, send, write, write_imm
from dmaplane.testing._rig import MIB, expect

if TYPE_CHECKING:
    from dmaplane._plane import Path
    from dmaplane.testing._pair import Side


def _settles(side: Side, count: int) -> None:
    """@count completions are here, and in a little while no more have come."""
    _rig.wait_until(lambda: side.completed() >= count, _rig.PATIENCE_S, f"{count} completions")
    time.sleep(0.03)
    assert side.completed() == count, f"{side.completed()} completions, room for {count}"


def _ledgers_agree(near: Side, far: Side, slots: int, length_bytes: int) -> None:
    """granted = available + in flight + completed, seen from both ends."""

    def differences() -> tuple[int, int]:
        sender, receiver = near.query(), far.query()
        return (
            receiver.granted_slots - sender.send_slots - sender.send_slots_in_flight - slots,
            receiver.granted_bytes - sender.send_bytes - sender.send_bytes_in_flight - length_bytes,
        )

    _rig.wait_until(
        lambda: differences() == (0, 0),
        _rig.PATIENCE_S,
        f"the ledgers agree; completed {slots} slots, {length_bytes} bytes",
    )


@case_over_fabrics("L2")
def window_is_never_exceeded(make_plane: MakePlane, path: Path) -> None:
    """Windows of one to five messages: so many complete without a RECV; each RECV lets one in."""
    for window in (1, 2, 3, 5):
        fields = {"window_slots": window, "window_bytes": MIB}
        with _pair.connected(make_plane, path, far_fields=fields) as (near, far):
            total = window + 6
            source, target = near.memory(total * 64), far.memory(total * 64)
            source.scramble(window)
            assert near.query().send_slots == window
            near.submit(*(send(source, 64, n * 64, user_data=n) for n in range(total)))
            _settles(near, window)
            assert near.query().operations == total - window
            assert near.query().send_slots == 0
            for n in range(total):
                far.submit(recv(target, 64, n * 64, user_data=n))
                assert int(far.wait()["user_data"][0]) == n
                if n < 2:
                    _settles(near, min(window + n + 1, total))
            assert _rig.results(near.wait(total)) == dict.fromkeys(range(total), 0)
            assert (target.bytes[: total * 64] == source.bytes[: total * 64]).all()
            _ledgers_agree(near, far, total, total * 64)


@case_over_fabrics("L2")
def window_of_bytes_is_never_exceeded(make_plane: MakePlane, path: Path) -> None:
    fields = {"window_slots": 16, "window_bytes": 1000}
    with _pair.connected(make_plane, path, far_fields=fields) as (near, far):
        source, target = near.memory(4096), far.memory(4096)
        source.scramble(1)
        near.submit(*(send(source, 400, n * 400, user_data=n) for n in range(6)))
        _settles(near, 2)
        assert near.query().send_bytes == 200
        far.submit(recv(target, 400))
        assert int(far.wait()["result"][0]) == 0
        _settles(near, 3)
        for n in range(1, 6):
            far.submit(recv(target, 400, n * 400))
            assert int(far.wait()["result"][0]) == 0
        assert _rig.results(near.wait(6)) == dict.fromkeys(range(6), 0)
        assert (target.bytes[:2400] == source.bytes[:2400]).all()
        _ledgers_agree(near, far, 6, 2400)


@case_over_fabrics("L2")
def nowait_is_eagain_without_credit(make_plane: MakePlane, path: Path) -> None:
    fields = {"window_slots": 1, "window_bytes": 4096}
    with _pair.connected(make_plane, path, far_fields=fields) as (near, far):
        source, target = near.memory(4096), far.memory(4096)
        now = send(source, 64, flags=_abi.SUBMIT_NOWAIT)
        assert near.result(now) == 0
        assert near.result(now) == -errno.EAGAIN
        far.submit(recv(target, 64))
        assert int(far.wait()["result"][0]) == 0
        _rig.wait_until(lambda: near.query().send_slots == 1, _rig.PATIENCE_S, "the credit is back")
        assert near.result(now) == 0
        near.submit(send(source, 64, user_data=5))
        assert near.result({**now, "user_data": 6}) == -errno.EAGAIN, "it overtook one that waits"
        assert near.query().operations == 1


@case_over_fabrics("L11")
def wait_for_credit_is_counted_and_timed(make_plane: MakePlane, path: Path) -> None:
    fields = {"window_slots": 1, "window_bytes": 4096}
    with _pair.connected(make_plane, path, far_fields=fields) as (near, far):
        source, target = near.memory(64), far.memory(64)
        far.submit(recv(target, 64))
        assert near.result(send(source, 64)) == 0
        far.wait()
        _rig.wait_until(lambda: near.query().send_slots == 1, _rig.PATIENCE_S, "the credit")
        assert (near.query().stalls, near.query().stall_ns) == (0, 0)
        near.submit(send(source, 64, user_data=1), send(source, 64, user_data=2))
        _settles(near, 1)
        paused = 0.05
        time.sleep(paused)
        far.submit(recv(target, 64), recv(target, 64))
        assert _rig.results(near.wait(2)) == {1: 0, 2: 0}
        found = near.query()
        assert found.stalls >= 1
        assert found.stall_ns >= paused * 1e9, f"{found.stall_ns} ns, it waited {paused} s"
        statistics = _abi.Statistics(scope=_abi.SCOPE_ENDPOINT, id=near.endpoint)
        expect(_rig.ask(near.plane, _abi.STATISTICS, statistics), 0)
        assert (statistics.stalls, statistics.stall_ns) == (found.stalls, found.stall_ns)
        histogram = _abi.Histogram(
            scope=_abi.SCOPE_ENDPOINT, id=near.endpoint, kind=_abi.HISTOGRAM_STALL
        )
        expect(_rig.ask(near.plane, _abi.HISTOGRAM, histogram), 0)
        assert histogram.samples >= 1
        assert histogram.maximum >= paused * 1e9


@case_over_fabrics("L11")
def statistics_of_an_endpoint_are_its_own(make_plane: MakePlane, path: Path) -> None:
    with _pair.connected(make_plane, path) as (near, far):
        source, target = near.memory(8192), far.memory(8192)
        remote = near.import_region(far.region(target))
        far.submit(recv(target, 64), recv(target, 64))
        found = near.results(
            send(source, 64, user_data=1),
            send(source, 64, user_data=2),
            write(source, remote, 8192, user_data=3),
            write(source, remote, 8192, target_offset=1, user_data=4),
        )
        assert found == {1: 0, 2: 0, 3: 0, 4: -errno.EINVAL}
        far.wait(2)
        told = []
        for side in (near, far):
            statistics = _abi.Statistics(scope=_abi.SCOPE_ENDPOINT, id=side.endpoint)
            expect(_rig.ask(side.plane, _abi.STATISTICS, statistics), 0)
            told.append(statistics)
            assert statistics.submissions == statistics.completions
        # One that is wrong in itself need not have reached the endpoint.
        assert told[0].submissions - told[0].errors == 3
        assert told[0].bytes == 128 + 8192
        assert (told[1].submissions, told[1].errors) == (2, 0)
        latency = _abi.Histogram(
            scope=_abi.SCOPE_ENDPOINT, id=near.endpoint, kind=_abi.HISTOGRAM_LATENCY
        )
        expect(_rig.ask(near.plane, _abi.HISTOGRAM, latency), 0)
        assert latency.samples >= 3
        for number, request in (
            (_abi.STATISTICS, _abi.Statistics(scope=_abi.SCOPE_ENDPOINT, id=4_000_000_000)),
            (_abi.HISTOGRAM, _abi.Histogram(scope=_abi.SCOPE_ENDPOINT, id=4_000_000_000)),
        ):
            expect(_rig.ask(near.plane, number, request), errno.ENOENT)


@case_over_fabrics("L2")
def credit_of_an_immediate_returns_when_its_event_is_read(
    make_plane: MakePlane, path: Path
) -> None:
    fields = {"window_slots": 2, "window_bytes": MIB}
    with _pair.connected(make_plane, path, far_fields=fields) as (near, far):
        source, target = near.memory(4096), far.memory(4096)
        remote = near.import_region(far.region(target))
        # Four windows: whatever is read ahead for the user, the rest has to wait.
        near.submit(*(write_imm(source, remote, 64, n, user_data=n) for n in range(64)))
        seen = []
        for n in range(64):
            event = far.event(_abi.EVENT_WRITE_IMM)
            seen.append(int(event["immediate"]))
            assert len(seen) == n + 1
        assert seen == list(range(64))
        assert _rig.results(near.wait(64)) == dict.fromkeys(range(64), 0)
        _ledgers_agree(near, far, 64, 64 * 64)


@case_over_fabrics("L2")
def unread_events_do_not_overflow_the_ring(make_plane: MakePlane, path: Path) -> None:
    """A ring of four completions, a window of 64 immediates, and RECVs in the same ring."""
    window = {"window_slots": 64, "window_bytes": MIB}
    with make_plane() as one, make_plane() as other:
        near_rings = _rig.Rings(one, slots=64)
        far_rings = _rig.Rings(other, slots=4, completion_slots=4)
        near, far = _pair.join(
            (one, near_rings), (other, far_rings), path, near_fields=window, far_fields=window
        )
        source, target = near.memory(65536), far.memory(65536)
        remote = near.import_region(far.region(target))
        far.submit(recv(target, 64), recv(target, 64))
        total = 60
        entries = [write_imm(source, remote, 64, n, user_data=n) for n in range(total)]
        near.submit(*entries, send(source, 64, user_data=100), send(source, 64, user_data=101))
        time.sleep(0.05)
        found = far_rings.query()
        assert found.unread <= 4
        seen = [int(far.event(_abi.EVENT_WRITE_IMM)["immediate"]) for _ in range(total)]
        assert seen == list(range(total)), "events were lost, repeated or out of order"
        assert not far.wait(2)["result"].any()
        assert not near.wait(total + 2)["result"].any()


@case_over_fabrics("L2")
def write_needs_no_credit(make_plane: MakePlane, path: Path) -> None:
    fields = {"window_slots": 1, "window_bytes": 64}
    with _pair.connected(make_plane, path, far_fields=fields) as (near, far):
        source, target = near.memory(MIB, fill=3), far.memory(MIB)
        remote = near.import_region(far.region(target))
        assert near.result(send(source, 64)) == 0
        _rig.wait_until(lambda: near.query().send_slots == 0, _rig.PATIENCE_S, "no credit")
        done = near.run(*(write(source, remote, MIB) for _ in range(4)))
        assert not done["result"].any()
        assert (target.bytes == 3).all()
        assert near.query().stalls == 0


@case_over_fabrics("L1")
def deadline_runs_while_waiting_for_credit(make_plane: MakePlane, path: Path) -> None:
    """What timed out or was cancelled was never sent, and its credit was not spent."""
    fields = {"window_slots": 1, "window_bytes": 4096}
    with _pair.connected(make_plane, path, far_fields=fields) as (near, far):
        source, target = near.memory(4096), far.memory(4096)
        source.bytes[:64], source.bytes[64:128] = 1, 2
        source.bytes[128:192], source.bytes[192:256] = 3, 4
        assert near.result(send(source, 64)) == 0
        soon = _rig.later(0.05)
        near.submit(send(source, 64, 64, user_data=2, deadline_ns=soon))
        near.submit(send(source, 64, 128, user_data=3))
        near.submit(send(source, 64, 192, user_data=4))
        assert _rig.results(near.wait()) == {2: -errno.ETIMEDOUT}
        assert time.monotonic_ns() >= soon
        assert near.cancel(3) == (0, 1)
        assert _rig.results(near.wait()) == {3: -errno.ECANCELED}
        for value in (1, 4):
            far.submit(recv(target, 64))
            assert int(far.wait()["result"][0]) == 0
            assert (target.bytes[:64] == value).all()
        assert _rig.results(near.wait()) == {4: 0}
        _ledgers_agree(near, far, 2, 128)


@case_over_fabrics("L2")
def ledgers_agree_after_a_storm(make_plane: MakePlane, path: Path) -> None:
    """Both directions, messages and immediates, small windows: nothing is minted or lost."""
    chance = random.Random(41)
    fields = {"window_slots": 3, "window_bytes": 5000}
    with _pair.connected(
        make_plane, path, slots=256, near_fields=fields, far_fields=fields
    ) as pair:
        total = 200
        spent = {}
        for side, peer in (pair, pair[::-1]):
            memory, target = side.memory(8192), peer.memory(8192)
            remote = side.import_region(peer.region(target))
            entries = []
            messages = slots = length = 0
            for n in range(total):
                size = chance.randint(1, 5000)
                if chance.random() < 0.5:
                    entries.append(send(memory, size, user_data=n))
                    messages += 1
                else:
                    entries.append(write_imm(memory, remote, size, n, user_data=n))
                slots, length = slots + 1, length + size
            spent[id(side)] = (entries, messages, slots, length)
        for side, peer in (pair, pair[::-1]):
            inbox = peer.memory(8192)
            peer.submit(*(recv(inbox, 8192, user_data=1000) for _ in range(30)))
            side.submit(*spent[id(side)][0][:200])
        _pump(pair, {id(side): spent[id(side)][1] for side in pair}, total)
        for side, peer in (pair, pair[::-1]):
            _ledgers_agree(side, peer, spent[id(side)][2], spent[id(side)][3])
            assert side.query().send_slots <= 3
            assert side.query().send_bytes <= 5000


def _pump(pair: tuple[Side, Side], messages: dict[int, int], total: int) -> None:
    """Each side keeps 30 RECVs posted until all that its peer sends has come."""
    sent = {id(side): 0 for side in pair}
    came = {id(side): 0 for side in pair}
    posted = {id(side): 30 for side in pair}
    wanted = {id(side): messages[id(peer)] for side, peer in (pair, pair[::-1])}
    inboxes = {id(side): side.memory(8192) for side in pair}
    limit = time.monotonic() + 2 * _rig.PATIENCE_S
    while any(sent[key] < total or came[key] < wanted[key] for key in sent):
        assert time.monotonic() < limit, f"sent {sent}, came {came} of {wanted}"
        for side in pair:
            key = id(side)
            side.rings.try_enter(0, 1, _rig.later(0.01))
            done = side.wait(side.completed())
            assert not done["result"].any()
            fresh = int((done["user_data"] == 1000).sum())
            came[key] += fresh
            sent[key] += len(done) - fresh
            more = min(fresh, max(0, wanted[key] - posted[key]))
            if more:
                side.submit(*(recv(inboxes[key], 8192, user_data=1000) for _ in range(more)))
                posted[key] += more
    for side, peer in (pair, pair[::-1]):
        immediates = total - messages[id(peer)]
        for _ in range(immediates):
            side.event(_abi.EVENT_WRITE_IMM)

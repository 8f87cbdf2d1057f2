# SPDX-License-Identifier: MIT
"""L5 on a connection: after cancel nothing touches the memory, here or there. L1: deadlines."""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING

from dmaplane import _abi
from dmaplane.testing import _pair, _rig
from dmaplane.testing._case import MakePlane, case_over_fabrics
from dmaplane.testing._pair import read as read_entry
from dmaplane.testing._pair import recv, send, write, write_imm
from dmaplane.testing._rig import MIB, expect

if TYPE_CHECKING:
    from dmaplane._plane import Path

LONG = 96 * MIB
POISON = 0xAA


@case_over_fabrics("L1")
def passed_deadline_moves_no_byte(make_plane: MakePlane, path: Path) -> None:
    with _pair.connected(make_plane, path) as (near, far):
        mine, target = near.memory(4096, fill=6), far.memory(4096, fill=5)
        remote = near.import_region(far.region(target))
        for late in (1, time.monotonic_ns() - 1):
            for entry in (
                send(mine, 64),
                recv(mine, 64),
                write(mine, remote, 64),
                write_imm(mine, remote, 64, 1),
                read_entry(mine, remote, 64),
            ):
                done = near.run({**entry, "deadline_ns": late})[0]
                assert int(done["result"]) == -errno.ETIMEDOUT
                assert int(done["length_bytes"]) == 0
        assert (target.bytes == 5).all()
        assert (mine.bytes == 6).all()
        far.submit(recv(target, 64))
        assert near.result(send(mine, 64, deadline_ns=_rig.later())) == 0
        assert int(far.wait()["result"][0]) == 0
        assert not far.events


@case_over_fabrics("L1")
def recv_ends_at_its_deadline(make_plane: MakePlane, path: Path) -> None:
    """And does not take the message that comes later."""
    with _pair.connected(make_plane, path) as (near, far):
        mine, target = near.memory(4096, fill=6), far.memory(8192)
        soon = _rig.later(0.03)
        far.submit(
            recv(target, 64, user_data=1),
            recv(target, 64, 4096, user_data=2, deadline_ns=soon),
        )
        assert _rig.results(far.wait()) == {2: -errno.ETIMEDOUT}
        assert time.monotonic_ns() >= soon
        far.submit(recv(target, 64, 6000, user_data=3))
        assert near.results(send(mine, 64, user_data=1), send(mine, 64, user_data=2)) == {
            1: 0,
            2: 0,
        }
        assert _rig.results(far.wait(2)) == {1: 0, 3: 0}
        assert (target.bytes[:64] == 6).all()
        assert not target.bytes[4096:4160].any(), "a RECV that had completed was written"
        assert (target.bytes[6000:6064] == 6).all()


@case_over_fabrics("L1")
def deadline_is_honoured_in_mid_transfer(make_plane: MakePlane, path: Path) -> None:
    """The completion comes in time, and says that nothing here touches the buffer any more."""
    with _pair.connected(make_plane, path) as (near, far):
        mine, target = near.memory(LONG), far.memory(LONG)
        remote = near.import_region(far.region(target))
        started = time.monotonic()
        assert near.result(write(mine, remote, LONG)) == 0
        whole = time.monotonic() - started
        stopped = 0
        for part in (64, 16, 4, 2):
            for entry in (write(mine, remote, LONG), read_entry(mine, remote, LONG)):
                mine.bytes[::64] = 1
                limit = time.monotonic_ns() + int(whole / part * 1e9)
                done = near.run({**entry, "deadline_ns": limit})[0]
                late = (time.monotonic_ns() - limit) / 1e9
                assert int(done["result"]) in (0, -errno.ETIMEDOUT)
                assert late < max(_rig.SECOND, whole), f"{late:.3f} s after the deadline"
                stopped += int(done["result"]) != 0
                mine.bytes[::64] = POISON
                time.sleep(0.02)
                assert (mine.bytes[::64] == POISON).all(), "the buffer was written afterwards"
                if entry["operation"] == _abi.OP_WRITE:
                    assert not (target.bytes[::64] == POISON).any(), "it was read afterwards"
                target.bytes[::64] = 0
        assert stopped, "nothing was stopped: the transfers are too short for this test"
        assert near.query().state == _abi.STATE_LIVE
        assert near.result(write(mine, remote, LONG)) == 0
        assert (target.bytes[::64] == POISON).all()


@case_over_fabrics("L5")
def cancelled_recv_is_not_written(make_plane: MakePlane, path: Path) -> None:
    with _pair.connected(make_plane, path) as (near, far):
        mine, target = near.memory(4096, fill=6), far.memory(12288)
        far.submit(*(recv(target, 64, 4096 * n, user_data=n + 1) for n in range(3)))
        assert far.cancel(2) == (0, 1)
        assert _rig.results(far.wait()) == {2: -errno.ECANCELED}
        assert near.results(send(mine, 64, user_data=1), send(mine, 64, user_data=2)) == {
            1: 0,
            2: 0,
        }
        assert _rig.results(far.wait(2)) == {1: 0, 3: 0}
        assert not target.bytes[4096:8192].any(), "a RECV that was cancelled was written"
        assert far.cancel(2)[0] == -errno.ENOENT


@case_over_fabrics("L5")
def cancelled_transfer_touches_neither_end(make_plane: MakePlane, path: Path) -> None:
    """Both memories are poisoned as soon as cancel has returned; the poison does not travel."""
    with _pair.connected(make_plane, path) as (near, far):
        mine, target = near.memory(LONG), far.memory(LONG)
        remote = near.import_region(far.region(target))
        started = time.monotonic()
        assert near.result(write(mine, remote, LONG)) == 0
        whole = time.monotonic() - started
        stopped = 0
        for round_ in range(6):
            for entry in (write(mine, remote, LONG), read_entry(mine, remote, LONG)):
                mine.bytes[::64], target.bytes[::64] = 1, 2
                near.submit({**entry, "user_data": 1}, {**entry, "user_data": 2})
                if round_:
                    came_to, was = (target, 2) if entry["operation"] == _abi.OP_WRITE else (mine, 1)
                    _rig.wait_until_begun(came_to.bytes, was)
                    time.sleep(whole * (round_ - 1) / 4)
                answer, count = near.cancel(flags=_abi.CANCEL_ALL)
                expect(answer, 0, errno.ENOENT)
                done = near.wait(2)["result"].tolist()
                assert set(done) <= {0, -errno.ECANCELED}
                assert done.count(-errno.ECANCELED) == count
                stopped += count
                mine.bytes[::64], target.bytes[::64] = POISON, POISON + 1
                time.sleep(0.03)
                assert (mine.bytes[::64] == POISON).all(), f"round {round_}: near end"
                if entry["operation"] == _abi.OP_WRITE:
                    assert (target.bytes[::64] == POISON + 1).all(), f"round {round_}: far end"
        assert stopped, "nothing was cancelled: the transfers are too short for this test"
        assert near.query().state == _abi.STATE_LIVE
        assert near.query().operations == 0
        assert near.result(write(mine, remote, LONG)) == 0
        assert (target.bytes[::64] == POISON).all()


@case_over_fabrics("L5")
def cancelled_message_does_not_arrive_by_halves(make_plane: MakePlane, path: Path) -> None:
    """A long message is cancelled on its way: it comes whole, as it was, or not at all."""
    size = 32 * MIB
    window = {"window_slots": 4, "window_bytes": 2 * size}
    with _pair.connected(make_plane, path, far_fields=window) as (near, far):
        mine, target = near.memory(size), far.memory(size)
        for round_ in range(8):
            mine.bytes[::64], target.bytes[::64] = round_ + 1, 0
            far.submit(recv(target, size, user_data=round_))
            near.submit(send(mine, size, user_data=1))
            if round_ == 0:
                started = time.monotonic()
                _rig.wait_until_begun(target.bytes[-64:], 0)
                whole = time.monotonic() - started
            elif round_ > 1:
                _rig.wait_until_begun(target.bytes, 0)
                time.sleep(whole * (round_ - 2) / 6)
            answer, _ = near.cancel(1)
            expect(answer, 0, errno.ENOENT)
            result = int(near.wait()["result"][0])
            assert result in (0, -errno.ECANCELED)
            mine.bytes[::64] = POISON
            if result:
                time.sleep(0.02)
                assert far.completed() == 0, "a cancelled message arrived"
                near_free = near.query()
                assert near_free.send_slots_in_flight == 0
                expect(far.cancel(round_)[0], 0)
            came = int(far.wait()["result"][0])
            assert came == (-errno.ECANCELED if result else 0)
            if came == 0:
                assert (target.bytes[::64] == round_ + 1).all()
        assert near.query().state == _abi.STATE_LIVE


@case_over_fabrics("L5")
def cancel_all_on_one_channel_leaves_others_alone(make_plane: MakePlane, path: Path) -> None:
    """Everything of every endpoint of the channel; nothing of another channel's."""
    with make_plane() as one, make_plane() as other:
        far_end = (other, _rig.Rings(other))
        first_ring, second_ring = _rig.Rings(one), _rig.Rings(one)
        a, _ = _pair.join((one, first_ring), far_end, path)
        b, far_b = _pair.join((one, first_ring), far_end, path)
        c, far_c = _pair.join((one, second_ring), far_end, path)
        memory = a.memory(4096)
        for side in (a, b, c):
            side.submit(*(recv(memory, 64, user_data=side.endpoint) for _ in range(5)))
        answer, count = a.cancel(flags=_abi.CANCEL_ALL)
        assert (answer, count) == (0, 10)
        assert set(a.wait(10)["result"].tolist()) == {-errno.ECANCELED}
        time.sleep(0.02)
        assert c.completed() == 0
        for side, peer in ((b, far_b), (c, far_c)):
            if side is b:
                side.submit(recv(memory, 64))
            assert peer.result(send(peer.memory(64), 64)) == 0
            assert int(side.wait()["result"][0]) == 0


@case_over_fabrics("L4")
def destroyed_channel_takes_its_endpoints_with_it(make_plane: MakePlane, path: Path) -> None:
    """Nothing of theirs is touched when it is gone, and the peers hear of it."""
    with _pair.connected(make_plane, path) as (near, far):
        mine, target = near.memory(LONG), far.memory(LONG)
        made = far.region(target)
        remote = near.import_region(made)
        near.submit(*(write(mine, remote, LONG) for _ in range(4)), recv(mine, 64))
        far.submit(recv(target, 64, user_data=9))
        near.rings.unmap()
        expect(_rig.destroy(near.plane, _abi.CHANNEL_DESTROY, near.rings.id), 0)
        mine.bytes[::64] = POISON
        lost = far.event(_abi.EVENT_ENDPOINT_LOST)
        assert int(lost["result"]) == -errno.ECONNRESET
        assert _rig.results(far.wait()) == {9: -errno.ECONNRESET}
        time.sleep(0.02)
        assert not (target.bytes[::64] == POISON).any()
        # What is left of it can be asked, and has to be destroyed, as anything has.
        found = near.query()
        assert (found.state, found.operations) == (_abi.STATE_DEAD, 0)
        expect(near.try_import(_pair.key_of(made))[0], errno.ECONNRESET, errno.ESTALE)
        expect(near.destroy_region(remote), 0)
        expect(near.destroy(), 0)
        found_all = near.plane.statistics()
        assert (found_all.endpoints, found_all.channels, found_all.regions) == (0, 0, 0)

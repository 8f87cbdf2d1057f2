# SPDX-License-Identifier: MIT
"""How connections end. L1: one completion each, with the reason. L4: everything is given back.

L7: what belonged to the connection is nothing to the next one.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import time
from typing import TYPE_CHECKING

from dmaplane import _abi
from dmaplane._plane import PATHS
from dmaplane.testing import _pair, _rig
from dmaplane.testing._case import MakePlane, case_over_fabrics
from dmaplane.testing._pair import (
    DETECT_MS,
    DETECTED_S,
    Meanwhile,
    Side,
    key_of,
    meet,
    read,
    recv,
    send,
    try_connect,
    write,
    write_imm,
)
from dmaplane.testing._rig import MIB, Child, Rings, expect

if TYPE_CHECKING:
    from dmaplane._plane import Path

LONG = 64 * MIB
GONE = (-errno.ECONNRESET, -errno.ESTALE)


def _all_kinds(side: Side, memory: _pair.Memory, remote: int) -> tuple[dict[str, int], ...]:
    """Some of everything; enough to be under way for a while."""
    long_ones = (
        write(memory, remote, LONG),
        read(memory, remote, LONG),
        write_imm(memory, remote, LONG, 1),
    )
    return (*long_ones, *long_ones, recv(memory, 64), recv(memory, 64))


def _is_over(side: Side, path: Path, user_data: int) -> None:
    """One event, once; and what is submitted from now on says so too."""
    lost = side.event(_abi.EVENT_ENDPOINT_LOST)
    assert int(lost["user_data"]) == user_data
    assert int(lost["result"]) < 0
    assert PATHS[int(lost["path"])] == path
    found = side.query()
    assert found.state == _abi.STATE_DEAD
    assert found.operations == 0
    memory = side.memory(64)
    assert side.result(send(memory, 64)) in GONE
    assert side.result(recv(memory, 64)) in GONE
    kinds = [int(event["operation"]) for event in side.events]
    assert _abi.EVENT_ENDPOINT_LOST not in kinds, "lost twice"


@case_over_fabrics("L1")
def destroyed_endpoint_is_lost_to_its_peer(make_plane: MakePlane, path: Path) -> None:
    fields = {**_pair.WINDOW, "user_data": 31}
    with _pair.connected(make_plane, path, near_fields=fields) as (near, far):
        memory = near.memory(4096)
        remote = near.import_region(far.region(far.memory(4096)))
        near.submit(recv(memory, 64, user_data=1), recv(memory, 64, user_data=2))
        expect(far.destroy(), 0)
        assert _rig.results(near.wait(2)) == {1: -errno.ECONNRESET, 2: -errno.ECONNRESET}
        _is_over(near, path, 31)
        for entry in (write(memory, remote, 64), read(memory, remote, 64)):
            assert near.result(entry) in GONE
        expect(near.destroy_region(remote), 0)
        expect(near.destroy(), 0)
        assert near.result(send(memory, 64)) == -errno.ENOENT
        assert near.plane.statistics().endpoints == far.plane.statistics().endpoints == 0


@case_over_fabrics("L3")
def endpoint_in_use_is_busy_or_ends_what_uses_it(make_plane: MakePlane, path: Path) -> None:
    """EBUSY and unchanged, the query naming the holders; or 0, and each has completed."""
    with _pair.connected(make_plane, path) as (near, far):
        memory, target = near.memory(LONG, fill=6), far.memory(LONG)
        made = far.region(target)
        remote = near.import_region(made)
        near.submit(*_all_kinds(near, memory, remote))
        answer = near.destroy()
        expect(answer, 0, errno.EBUSY)
        if answer:
            found = near.query()
            assert found.regions == 1
            assert found.state == _abi.STATE_LIVE
            answer, _ = near.cancel(flags=_abi.CANCEL_ALL)
            expect(answer, 0, errno.ENOENT)
            expect(near.destroy_region(remote, drain_until=_rig.later()), 0)
            expect(near.destroy(), 0)
        memory.bytes[::64] = 0xAA
        done = near.wait(8)
        assert set(done["result"].tolist()) <= {0, -errno.ECONNRESET, -errno.ECANCELED}
        far.event(_abi.EVENT_ENDPOINT_LOST)
        time.sleep(0.03)
        assert (memory.bytes[::64] == 0xAA).all(), "it still writes"
        assert not (target.bytes[::64] == 0xAA).any(), "it still reads"
        target.bytes[::64] = 1
        far.revoke(made)


@case_over_fabrics("L1")
def drained_endpoint_finishes_what_it_began(make_plane: MakePlane, path: Path) -> None:
    """All that was accepted, more than can be under way at once; in one piece or in many."""
    count, size = 12, MIB // 16
    with _pair.connected(make_plane, path, slots=512) as (near, far):
        source, target = near.memory(MIB), far.memory(MIB)
        block, landed = near.memory(16 * MIB), far.memory(16 * MIB)
        source.scramble(1)
        block.scramble(2)
        remote = near.import_region(far.region(landed))
        far.submit(*(recv(target, size, n * size, user_data=n) for n in range(count)))
        near.submit(
            *(write(block, remote, 16 * MIB, user_data=100 + n) for n in range(2)),
            *(write(source, remote, 64, user_data=1000 + n) for n in range(300)),
            *(send(source, size, n * size, user_data=n) for n in range(count)),
            write(block, remote, 16 * MIB, user_data=200),
        )
        with Meanwhile(lambda: near.destroy(drain_until=_rig.later())) as draining:
            assert _rig.results(far.wait(count)) == dict.fromkeys(range(count), 0)
            done = near.wait(count + 303)
            expect(near.destroy_region(remote), 0)
            expect(draining.answer(), 0)
        assert not done["result"].any()
        assert len(_rig.results(done)) == count + 303
        assert (target.bytes[: count * size] == source.bytes[: count * size]).all()
        assert (landed.bytes[64:] == block.bytes[64:]).all()
        expect(near.try_query()[0], errno.ENOENT)


@case_over_fabrics("L3")
def draining_endpoint_refuses_the_new_and_keeps_the_old(make_plane: MakePlane, path: Path) -> None:
    """A SEND that waits for credit is waited for; a RECV, which might wait for ever, is not."""
    window = {"window_slots": 1, "window_bytes": 4096}
    with _pair.connected(make_plane, path, far_fields=window) as (near, far):
        memory, target = near.memory(4096, fill=4), far.memory(4096)
        near.submit(*(send(memory, 64, user_data=n) for n in (1, 2)), recv(memory, 64, user_data=3))
        assert _rig.results(near.wait()) == {1: 0}
        expect(near.destroy(drain_until=_rig.later(0.03)), errno.ETIMEDOUT)
        assert near.query().state == _abi.STATE_DRAINING
        assert near.query().operations == 2
        assert near.result(send(memory, 64)) == -errno.ESTALE
        far.submit(recv(target, 64, user_data=1), recv(target, 64, 2048, user_data=2))
        expect(near.destroy(drain_until=_rig.later()), 0)
        assert _rig.results(near.wait(2)) == {2: 0, 3: -errno.ECANCELED}
        assert _rig.results(far.wait(2)) == {1: 0, 2: 0}
        assert (target.bytes[2048:2112] == 4).all()
        expect(near.try_query()[0], errno.ENOENT)


@case_over_fabrics("L4")
def closed_plane_is_lost_to_its_peers_at_once(make_plane: MakePlane, path: Path) -> None:
    """With everything under way in both directions, and several peers."""
    with make_plane() as one:
        ends = []
        other = make_plane()
        for n in range(3):
            near, far = _pair.join(
                (one, Rings(one)),
                (other, Rings(other)),
                path,
                near_fields={**_pair.WINDOW, "user_data": 50 + n},
            )
            memory, target = near.memory(LONG), far.memory(LONG)
            remote = near.import_region(far.region(target))
            far_remote = far.import_region(near.region(memory))
            near.submit(*_all_kinds(near, memory, remote))
            far.submit(*_all_kinds(far, target, far_remote))
            ends.append((near, n))
        started = time.monotonic()
        other.close()
        assert time.monotonic() - started < _rig.SECOND, "close took longer than a second"
        for near, n in ends:
            done = near.wait(8)
            assert set(done["result"].tolist()) <= {0, -errno.ECONNRESET}
            assert time.monotonic() - started < 2 * _rig.SECOND
            _is_over(near, path, 50 + n)
            expect(near.cancel(flags=_abi.CANCEL_ALL)[0], errno.ENOENT)


@case_over_fabrics("L7")
def nothing_of_a_lost_connection_works_on_the_next(make_plane: MakePlane, path: Path) -> None:
    """Same planes, same listener, same memory: a new epoch, and old ids are not honoured."""
    with make_plane() as one, make_plane() as other:
        near, far = (one, Rings(one)), (other, Rings(other))
        listener, bound = _pair.listen(other, far[1].id, path=path)
        a, b = meet(near, far, path, listener, bound)
        target, mine = b.memory(4096, fill=5), a.memory(4096, fill=6)
        made = b.region(target)
        old = a.import_region(made)
        expect(b.destroy(), 0)
        a.event(_abi.EVENT_ENDPOINT_LOST)
        c, d = meet(near, far, path, listener, bound)
        assert c.epoch != a.epoch
        assert c.result(write(mine, old, 64)) in (-errno.EINVAL, -errno.ENOENT, -errno.EACCES)
        assert a.result(write(mine, old, 64)) in GONE
        assert (target.bytes == 5).all()
        # The region itself is the far plane's and lives on; it has to be imported anew.
        fresh = c.import_region(made)
        assert c.result(write(mine, fresh, 64)) == 0
        assert (target.bytes[:64] == 6).all()
        expect(d.destroy(), 0)


def _serve(make_plane: MakePlane, path: Path, told: socket.socket) -> None:
    """A peer in a process of its own: listens, says where, accepts, grants, and then hangs on."""
    plane = make_plane()
    rings = Rings(plane)
    listener, bound = _pair.listen(plane, rings.id, path=path)
    told.sendall(bound.encode())
    fields = {"detect_ms": DETECT_MS}
    far = Side(plane, rings, _pair.accept(plane, listener, rings.id, **fields))
    memory = far.memory(LONG, fill=3)
    told.sendall(key_of(far.region(memory)))
    while True:
        far.submit(recv(memory, 4096))
        far.wait()


def _dial(make_plane: MakePlane, path: Path, child: Child) -> tuple[Side, int]:
    """Connects to such a child, and imports what it grants."""
    plane = make_plane()
    rings = Rings(plane)
    bound = child.hear().decode()
    fields = {**_pair.WINDOW, "detect_ms": DETECT_MS, "user_data": 61}
    answer, made = try_connect(plane, rings.id, bound, path=path, fields=fields)
    expect(answer, 0)
    near = Side(plane, rings, made)
    answer, imported = near.try_import(child.hear())
    expect(answer, 0)
    return near, imported.region_id


def _fds_are_back(fds: int) -> None:
    _rig.wait_until(lambda: _rig.open_fds() <= fds, _rig.SECOND, "every fd is back")


@case_over_fabrics("L4")
def killed_peer_is_noticed_and_leaves_nothing(make_plane: MakePlane, path: Path) -> None:
    """kill -9 with everything under way: one completion each, one event, and all is given back."""
    with make_plane():
        pass  # what is opened once and kept is open now
    for delay in (0.0, 0.005, 0.02):
        fds = _rig.open_fds()
        with Child(lambda told: _serve(make_plane, path, told)) as child:
            near, remote = _dial(make_plane, path, child)
            memory = near.memory(LONG)
            near.submit(*_all_kinds(near, memory, remote))
            time.sleep(delay)
            child.kill()
            killed = time.monotonic()
            done = near.wait(8)
            assert set(done["result"].tolist()) <= {0, -errno.ECONNRESET}
            assert (done["result"] == -errno.ECONNRESET).sum() >= 2, "the RECVs at least"
            assert time.monotonic() - killed < _rig.SECOND, "noticed after more than a second"
            memory.bytes[::64] = 0xAA
            _is_over(near, path, 61)
            assert (memory.bytes[::64] == 0xAA).all()
            expect(near.destroy_region(remote), 0)
            expect(near.destroy(), 0)
            found = near.plane.statistics()
            assert (found.endpoints, found.regions) == (0, 0)
            near.plane.close()
        _fds_are_back(fds)


@case_over_fabrics("L1")
def stopped_peer_is_lost_after_the_time_asked_for(make_plane: MakePlane, path: Path) -> None:
    """SIGSTOP: nothing is said any more, and nothing is closed."""
    with Child(lambda told: _serve(make_plane, path, told)) as child:
        near, _ = _dial(make_plane, path, child)
        memory = near.memory(4096)
        near.submit(recv(memory, 64, user_data=1))
        time.sleep(2 * DETECT_MS / 1000)
        assert near.query().state == _abi.STATE_LIVE, "an idle peer was taken for a dead one"
        os.kill(child.pid, signal.SIGSTOP)
        stopped = time.monotonic()
        assert _rig.results(near.wait()) == {1: -errno.ECONNRESET}
        assert time.monotonic() - stopped < DETECTED_S
        _is_over(near, path, 61)
        os.kill(child.pid, signal.SIGCONT)
        child.kill()
        near.plane.close()


@case_over_fabrics("L1")
def busy_peer_is_not_taken_for_a_dead_one(make_plane: MakePlane, path: Path) -> None:
    """Its program does nothing for several times the detection time; its plane answers."""
    fields = {**_pair.WINDOW, "detect_ms": DETECT_MS}
    with _pair.connected(make_plane, path, near_fields=fields, far_fields=fields) as (near, far):
        time.sleep(4 * DETECT_MS / 1000)
        source, target = near.memory(64, fill=8), far.memory(64)
        assert near.query().state == far.query().state == _abi.STATE_LIVE
        far.submit(recv(target, 64))
        assert near.result(send(source, 64)) == 0
        far.wait()
        assert (target.bytes[:64] == 8).all()

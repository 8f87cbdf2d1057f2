# SPDX-License-Identifier: MIT
"""What peers do to each other: they die, stop, dawdle, come back as somebody else.

Each time: one completion for each submission, with the right error; one event; nothing
touched afterwards; everything given back within a second.
"""

from __future__ import annotations

import errno
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from nursery import Nursery
from peers import bytes_of
from reach import FIELDS, ask, grant, join, reach

import dmaplane
from dmaplane import _abi
from dmaplane._library import crc32c
from dmaplane.testing import _pair, _rig
from dmaplane.testing._pair import DETECTED_S, Side, read, recv, send, write, write_imm
from dmaplane.testing._rig import MIB, Rings, expect

LONG = 64 * MIB
POISON = 0xAA
SERVER: dict[str, Any] = {"length_bytes": LONG, "fill": 3, "fields": FIELDS}
ENDS = (0, -errno.ECONNRESET)


def shared_mappings() -> int:
    """Memory files this process has mapped."""
    return Path("/proc/self/maps").read_text().count("memfd:")


def is_back(before: tuple[int, int]) -> None:
    """Fds and mappings are as few as they were, within a second."""

    def now() -> tuple[int, int]:
        return (_rig.open_fds(), shared_mappings())

    _rig.wait_until(
        lambda: all(more <= less for more, less in zip(now(), before, strict=True)),
        _rig.SECOND,
        f"fds and mappings {now()} are {before} again",
    )


def gives_back(side: Side, remote: int, before: tuple[int, int]) -> None:
    """After a loss: what is left can be destroyed, and then the system has all of it back."""
    started = time.monotonic()
    expect(side.destroy_region(remote), 0)
    expect(side.destroy(), 0)
    found = side.plane.statistics()
    assert (found.endpoints, found.regions) == (0, 0)
    is_back(before)
    assert time.monotonic() - started < _rig.SECOND


def is_lost(side: Side, memory: _pair.Memory) -> None:
    """The event, once; dead; and new work is told so."""
    lost = side.event(_abi.EVENT_ENDPOINT_LOST)
    assert int(lost["result"]) == -errno.ECONNRESET
    assert side.query().state == _abi.STATE_DEAD
    assert side.query().operations == 0
    assert side.result(send(memory, 64)) in (-errno.ECONNRESET, -errno.ESTALE)
    assert not [e for e in side.events if int(e["operation"]) == _abi.EVENT_ENDPOINT_LOST]


def kinds(memory: _pair.Memory, remote: int) -> dict[str, dict[str, int]]:
    """An operation of each kind, long enough to be caught half-way."""
    return {
        "write": write(memory, remote, LONG),
        "write_imm": write_imm(memory, remote, LONG, 1),
        "read": read(memory, remote, LONG),
        "send": send(memory, _pair.WINDOW["window_bytes"]),
        "recv": recv(memory, 4096),
    }


@pytest.mark.parametrize("kind", ["write", "write_imm", "read", "send", "recv"])
def test_peer_killed_in_mid_transfer(
    nursery: Nursery, plane: dmaplane.Plane, rings: Rings, path: str, kind: str
) -> None:
    memory = _pair.Memory(plane, LONG)
    before = None
    for round_ in range(4):
        with nursery.peer("serve", path=path, **SERVER) as peer:
            side, remote, _ = join(plane, rings, peer, path)
            count = 20 if kind == "recv" else 6
            memory.bytes[0] = 1
            side.submit(*([kinds(memory, remote)[kind]] * count))
            if round_ >= 2 and kind == "read":
                _rig.wait_until_begun(memory.bytes, 1)
            elif round_ >= 2 and kind in ("write", "write_imm"):
                # The first is over, so the second has begun, or is about to.
                _rig.wait_until(side.completed, _rig.PATIENCE_S, "one is over")
            peer.kill()
            killed = time.monotonic()
            done = side.wait(count)["result"].tolist()
            assert time.monotonic() - killed < _rig.SECOND
            assert set(done) <= set(ENDS), done
            is_lost(side, memory)
            memory.bytes[::64] = POISON
            time.sleep(0.01)
            assert (memory.bytes[::64] == POISON).all()
            assert side.completed() == 0
            expect(side.destroy_region(remote), 0)
            expect(side.destroy(), 0)
            # What is opened once and kept is open after the first round.
            before = before or (_rig.open_fds(), shared_mappings())
            is_back(before)
            found = plane.statistics()
            assert (found.endpoints, found.regions) == (0, 0)
            assert time.monotonic() - killed < _rig.SECOND


@pytest.mark.parametrize("kind", ["write", "read", "send"])
def test_stopped_peer_is_found_out_in_mid_transfer(
    nursery: Nursery, plane: dmaplane.Plane, rings: Rings, path: str, kind: str
) -> None:
    """What needs the peer's help ends with the connection; and the peer finds out when it wakes."""
    memory = _pair.Memory(plane, LONG)
    with nursery.peer("serve", path=path, **SERVER) as peer:
        side, remote, _ = join(plane, rings, peer, path)
        before = (_rig.open_fds(), shared_mappings())
        peer.signal(signal.SIGSTOP)
        stopped = time.monotonic()
        side.submit(*([kinds(memory, remote)[kind]] * 20))
        done = side.wait(20)["result"].tolist()
        is_lost(side, memory)
        assert time.monotonic() - stopped < DETECTED_S
        assert set(done) <= set(ENDS)
        memory.bytes[::64] = POISON
        gives_back(side, remote, before)
        peer.signal(signal.SIGCONT)
        assert ask(peer, "lost") == -errno.ECONNRESET
        if kind == "write":
            assert POISON not in ask(peer, "values"), "it still came out of the buffer"


def test_stopped_connection_does_not_hold_up_its_neighbour(
    nursery: Nursery, plane: dmaplane.Plane, rings: Rings, path: str
) -> None:
    """Two endpoints of one channel: one peer stands still, the other one is served all the time."""
    with (
        nursery.peer("serve", path=path, **SERVER) as still,
        nursery.peer("serve", path=path, **SERVER) as lively,
    ):
        a, a_remote, _ = join(plane, rings, still, path, user_data=1)
        b, b_remote, _ = join(plane, rings, lively, path, user_data=2)
        memory = a.memory(LONG, fill=5)
        still.signal(signal.SIGSTOP)
        a.submit(*(write(memory, a_remote, LONG, user_data=1000 + n) for n in range(3)))
        served = 0
        limit = time.monotonic() + DETECTED_S
        while served < 50 or not a.events:
            b.submit(write(memory, b_remote, 4096, user_data=served))
            assert int(a.wait_for(served)["result"]) == 0
            served += 1
            assert time.monotonic() < limit, "the peer that stands still is not found out"
        assert int(a.events[0]["user_data"]) == 1
        assert {int(a.wait_for(1000 + n)["result"]) for n in range(3)} <= set(ENDS)
        assert b.query().state == _abi.STATE_LIVE
        assert ask(lively, "checksum", size=4096) == crc32c(b"\x05" * 4096)


def test_slow_reader_is_waited_for(
    nursery: Nursery, plane: dmaplane.Plane, rings: Rings, path: str
) -> None:
    """No memory grows, a neighbour is served, and in the end every byte is there, in order."""
    total, size = 120, 60_000
    room = 17  # messages that fit into the window of a MiB
    with (
        nursery.peer("serve", path=path, **SERVER) as slow,
        nursery.peer("serve", path=path, **SERVER) as quick,
    ):
        a, _, _ = join(plane, rings, slow, path)
        b, _, _ = join(plane, rings, quick, path)
        memory = a.memory(total * size)
        memory.bytes[:] = bytes_of(7, len(memory.bytes))
        a.submit(*(send(memory, size, n * size, user_data=n) for n in range(total)))
        _rig.wait_until(lambda: a.query().stalls > 0, _rig.PATIENCE_S, "it waits for credit")
        resident = _resident_bytes()
        for n in range(60):
            b.submit(send(memory, 4096, user_data=5000 + n))
            assert int(a.wait_for(5000 + n)["result"]) == 0
            ask(quick, "post", size=4096)
            assert ask(quick, "wait") == [0]
        assert _resident_bytes() - resident < 32 * MIB
        assert a.completed() <= room
        assert a.query().operations >= total - room
        for first in range(0, total, 20):
            ask(slow, "post", size=size, at=first * size, count=20)
            assert ask(slow, "wait", count=20) == [0] * 20
        assert _rig.results(a.wait(total)) == dict.fromkeys(range(total), 0)
        assert ask(slow, "checksum", size=total * size) == crc32c(
            bytes(memory.bytes[: total * size])
        )


def _resident_bytes() -> int:
    words = Path("/proc/self/statm").read_text().split()
    return (int(words[1]) - int(words[2])) * 4096


def test_restarted_peer_on_the_same_address(
    nursery: Nursery, plane: dmaplane.Plane, rings: Rings, path: str
) -> None:
    """It comes back as somebody else. The old connection is lost, its rights are nothing to it."""
    address, old = _pair.LOOPBACK, None
    incarnations = set()
    for round_ in range(4):
        with nursery.peer("serve", path=path, address=address, **SERVER) as peer:
            said = peer.hear()
            address = said["bound"]
            incarnations.add(said["incarnation"])
            side = reach(plane, rings, address, path, user_data=round_)
            granted = peer.hear()
            remote = grant(side, granted)
            assert side.query().peer_incarnation == said["incarnation"]
            if old:
                before, before_remote, before_key = old
                got = before.result(write(before.memory(64, fill=9), before_remote, 64))
                assert got in (-errno.ECONNRESET, -errno.ESTALE)
                got = side.result(write(side.memory(64, fill=9), before_remote, 64))
                assert got in (-errno.EINVAL, -errno.ENOENT, -errno.EACCES, -errno.ESTALE)
                expect(side.try_import(before_key)[0], errno.ESTALE, errno.EACCES)
                assert ask(peer, "values") == [3], "a right on its predecessor was honoured"
                assert before.epoch != side.epoch or before.endpoint != side.endpoint
            memory = side.memory(64, fill=3)
            assert side.result(write(memory, remote, 64)) == 0
            peer.kill()
            is_lost(side, memory)
            old = (side, remote, bytes.fromhex(granted["key"]))
    assert len(incarnations) == 4


def _stages(side: Side, memory: _pair.Memory, remote: int) -> list[float]:
    """Moments of a transfer: before it begins, while it runs, when it is over."""
    started = time.monotonic()
    assert side.result(write(memory, remote, LONG)) == 0
    whole = time.monotonic() - started
    return [whole * part for part in (0.0, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 1.2)]


def test_cancel_at_every_stage(
    nursery: Nursery, plane: dmaplane.Plane, rings: Rings, path: str
) -> None:
    with nursery.peer("serve", path=path, **SERVER) as peer:
        side, remote, _ = join(plane, rings, peer, path)
        memory = side.memory(LONG)
        cancelled = 0
        for delay in _stages(side, memory, remote):
            for kind, entry in kinds(memory, remote).items():
                memory.bytes[::64] = 1
                side.submit({**entry, "user_data": 7})
                time.sleep(delay)
                answer, count = side.cancel(7)
                expect(answer, 0, errno.ENOENT)
                done = side.wait()
                assert _rig.results(done) == {7: -errno.ECANCELED if count else 0}, kind
                cancelled += count
                memory.bytes[::64] = POISON
                time.sleep(0.005)
                assert (memory.bytes[::64] == POISON).all(), f"{kind} after {delay} s"
                if kind == "write_imm" and not count:
                    assert ask(peer, "immediate") == 1
                if kind == "send" and not count:
                    ask(peer, "post", size=entry["length_bytes"])
                    assert ask(peer, "wait") == [0]
        assert cancelled, "nothing was cancelled"
        assert side.query().state == _abi.STATE_LIVE
        assert side.query().operations == 0
        assert POISON not in ask(peer, "values")


@pytest.mark.parametrize("what", ["endpoint", "channel", "plane"])
def test_close_at_every_stage(nursery: Nursery, path: str, what: str) -> None:
    """An end that is closed under everything: it returns at once, and the peer hears of it."""
    with dmaplane.open(plane="embedded"):
        pass  # what is opened once and kept is open now
    delays = [0.0]
    while delays:
        delay = delays.pop(0)
        before = (_rig.open_fds(), shared_mappings())
        with nursery.peer("serve", path=path, receives=8, **SERVER) as peer:
            held = (_rig.open_fds(), shared_mappings())
            plane = dmaplane.open(plane="embedded")
            rings = Rings(plane, slots=64)
            side, remote, said = join(plane, rings, peer, path)
            memory = side.memory(LONG)
            if delay == 0.0 and not delays:
                delays = _stages(side, memory, remote)[1:]
            entries = [*kinds(memory, remote).values()] * 3
            side.submit(*entries)
            time.sleep(delay)
            started = time.monotonic()
            _close(what, side, remote)
            if what == "endpoint":
                done = side.wait(len(entries))["result"].tolist()
                assert set(done) <= {*ENDS, -errno.ECANCELED}, done
            if what != "plane":
                memory.bytes[::64] = POISON
            assert ask(peer, "lost") == -errno.ECONNRESET
            assert time.monotonic() - started < 2 * _rig.SECOND
            assert POISON not in ask(peer, "values"), "it was still read after the end"
            if what != "plane":
                assert (memory.bytes[::64] == POISON).all(), "it was still written after the end"
            assert ask(peer, "revoke", region=said["region"]) == 0
            plane.close()
            is_back(held)
        is_back(before)


def test_channel_that_ends_while_its_executor_is_at_work(nursery: Nursery, path: str) -> None:
    """Its endpoints end with it, or the plane's end finds one of a channel that is no more."""
    with nursery.peer("end_under_fire", path=path, rounds=300) as peer:
        assert peer.hear() == 300


def _close(what: str, side: Side, remote: int) -> None:
    if what == "endpoint":
        side.cancel(flags=_abi.CANCEL_ALL)
        expect(side.destroy_region(remote, drain_until=_rig.later()), 0)
        expect(side.destroy(), 0)
    elif what == "channel":
        side.rings.unmap()
        expect(_rig.destroy(side.plane, _abi.CHANNEL_DESTROY, side.rings.id), 0)
    else:
        side.plane.close()

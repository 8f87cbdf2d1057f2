# SPDX-License-Identifier: MIT
"""L4: close and kill -9 return everything within a second, in any state."""

from __future__ import annotations

import os
import random
import signal
import socket
import time

from dmaplane import _abi
from dmaplane.testing import _rig
from dmaplane.testing._case import MakePlane, case
from dmaplane.testing._rig import MIB, Child, Mapped, Rings, copy_of, create_buffer, rows_of

CHILDREN = 5
CHILD_BYTES = 2 * 32 * MIB


def _memory_bytes() -> tuple[int, int]:
    """Of this machine: shared memory, and what no cache could give back, whoever has it."""
    found: dict[str, int] = {}
    with open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            found[name] = int(value.split()[0]) << 10
    return found["Shmem"], found["MemTotal"] - found["MemAvailable"]


def _kill_children(make_plane: MakePlane, chance: random.Random) -> None:
    for _ in range(CHILDREN):
        with Child(lambda told: _occupy(make_plane, told)) as child:
            assert child.hear() == b"busy"
            time.sleep(chance.random() * 0.02)
            child.kill()


def _occupy(make_plane: MakePlane, told: socket.socket) -> None:
    """Opens a plane, puts it to work, says so, and works until it is killed."""
    plane = make_plane()
    length = CHILD_BYTES // 2
    source, target = create_buffer(plane, length), create_buffer(plane, length)
    Mapped(plane, source).bytes[:] = 1
    rings = Rings(plane, slots=16)
    told.sendall(b"busy")
    while True:
        rings.put(rows_of(*([copy_of(source.buffer_id, target.buffer_id, length)] * 8)))
        rings.enter(8, 8)
        rings.take()


@case("L4")
def close_returns_every_fd_and_thread(make_plane: MakePlane) -> None:
    with make_plane():
        pass  # whatever is opened once and kept is open now
    fds, tasks = _rig.open_fds(), _rig.threads()
    for _ in range(5):
        with make_plane() as plane:
            mapped = [Mapped(plane, create_buffer(plane)) for _ in range(20)]
            rings = [Rings(plane, slots=8) for _ in range(8)]
            rings[0].put(rows_of({}, {}))
            rings[0].enter(2)
            for one in mapped:
                one.bytes[:] = 1
    assert _rig.open_fds() == fds
    _rig.wait_until(lambda: _rig.threads() == tasks, _rig.SECOND, "all threads are gone")


@case("L4")
def close_with_copies_in_flight_returns_within_a_second(make_plane: MakePlane) -> None:
    for _ in range(3):
        plane = make_plane()
        length = 128 * MIB
        source, target = create_buffer(plane, length), create_buffer(plane, length)
        rings = Rings(plane, slots=64)
        rings.put(rows_of(*([copy_of(source.buffer_id, target.buffer_id, length)] * 50)))
        assert rings.enter(50).accepted == 50
        started = time.monotonic()
        plane.close()
        assert time.monotonic() - started < _rig.SECOND


@case("L4")
def killed_child_leaves_nothing_behind(make_plane: MakePlane) -> None:
    """Five are killed at random moments; what they had of the machine's memory is back."""
    with make_plane() as plane, Rings(plane) as rings:
        fds, before = _rig.open_fds(), plane.statistics()
        chance = random.Random(4)
        lost: list[int] = []
        # Other programs use memory too; a leak comes in every round, and they do not.
        while len(lost) < 6 and (not lost or lost[-1] > CHILD_BYTES // 2):
            shared, used = _memory_bytes()
            _kill_children(make_plane, chance)
            limit = time.monotonic() + _rig.SECOND
            while True:
                found = _memory_bytes()
                more_shared, more_used = found[0] - shared, found[1] - used
                if max(more_shared, more_used) <= CHILD_BYTES // 2 or time.monotonic() > limit:
                    break
                time.sleep(0.01)
            assert more_shared <= CHILD_BYTES // 2, "shared memory of killed children remains"
            lost.append(more_used)
        assert lost[-1] <= CHILD_BYTES // 2, f"bytes of killed children, by round: {lost}"
        assert _rig.open_fds() == fds
        assert _rig.results(rings.run(rows_of({}, {}))) == {1: 0, 2: 0}
        after = plane.statistics()
        assert (after.buffers, after.channels) == (before.buffers, before.channels)


@case("L4")
def stopped_child_does_not_stop_its_parent(make_plane: MakePlane) -> None:
    with (
        make_plane() as plane,
        Rings(plane) as rings,
        Child(lambda told: _occupy(make_plane, told)) as child,
    ):
        assert child.hear() == b"busy"
        os.kill(child.pid, signal.SIGSTOP)
        assert _rig.results(rings.run(rows_of({}))) == {1: 0}
        os.kill(child.pid, signal.SIGCONT)
        child.kill()


@case("L4")
def destroy_in_any_order_returns_everything(make_plane: MakePlane) -> None:
    """Buffers and channels, mapped and not, idle and busy, destroyed in random order."""
    chance = random.Random(5)
    with make_plane() as plane:
        for _ in range(10):
            buffers = [create_buffer(plane, MIB) for _ in range(4)]
            rings = [Rings(plane, slots=8) for _ in range(3)]
            for ring in rings:
                a, b = chance.sample(buffers, 2)
                ring.put(rows_of(*([copy_of(a.buffer_id, b.buffer_id, MIB)] * 8)))
                ring.enter(8)
            chance.shuffle(rings)
            for ring in rings:
                ring.close()
            chance.shuffle(buffers)
            for made in buffers:
                _rig.expect(_rig.destroy(plane, _abi.BUFFER_DESTROY, made.buffer_id), 0)
            left = plane.statistics()
            assert (left.buffers, left.channels, left.mappings) == (0, 0, 0)
            assert left.in_flight == 0

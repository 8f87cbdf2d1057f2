# SPDX-License-Identifier: MIT
"""Channels of the kernel plane where the contract leaves off: threads, CPUs, mappings, waits.

L1 to L5 are the conformance suite's. Here is what only a kernel can do wrong: rings that
outlive their channel, workers on CPUs their owner may not use, waits and signals, events
that wait for room.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import re
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import attack
import foreign
import numpy as np
import pytest
from driver import Driver
from sharing import imported

import dmaplane
from dmaplane import _abi
from dmaplane.testing import _rig
from dmaplane.testing._rig import MIB, Rings

PAGE = mmap.PAGESIZE
ROUNDS = 200
COPYING = 32


@pytest.fixture
def plane() -> Iterator[dmaplane.Plane]:
    with dmaplane.open(plane="kernel") as made:
        yield made


def nops(count: int, **fields: int) -> np.ndarray:
    return _rig.rows_of(*[{"operation": _abi.OP_NOP, **fields}] * count)


def statistics(rings: Rings) -> _abi.Statistics:
    answer = _abi.Statistics(scope=_abi.SCOPE_CHANNEL, id=rings.id)
    _rig.expect(_rig.ask(rings.plane, _abi.STATISTICS, answer), 0)
    return answer


def workers() -> dict[int, set[int]]:
    """Our workers' process ids, and the CPUs each may run on."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "status").read_text()
        except OSError:
            continue
        if not status.startswith(f"Name:\tdmaplane:{os.getpid()}\n"):
            continue
        listed = re.search(r"^Cpus_allowed_list:\s+(\S+)$", status, re.MULTILINE)
        assert listed
        cpus: set[int] = set()
        for part in listed[1].split(","):
            first, _, last = part.partition("-")
            cpus |= set(range(int(first), int(last or first) + 1))
        found[int(folder.name)] = cpus
    return found


@pytest.fixture
def on_last_cpu() -> Iterator[int]:
    """This thread may run there only."""
    before = os.sched_getaffinity(0)
    last = max(before)
    os.sched_setaffinity(0, {last})
    yield last
    os.sched_setaffinity(0, before)


# ---- mappings


def test_rings_outlive_their_channel(plane: dmaplane.Plane) -> None:
    rings = Rings(plane)
    rings.run(nops(3))
    rings.put(nops(5))
    rings.enter(5, 5)
    _rig.expect(_rig.destroy(plane, _abi.CHANNEL_DESTROY, rings.id), 0)
    others = [Rings(plane) for _ in range(8)]
    for other in others:
        other.run(nops(64))
    # What was told is still there to be taken; what we write reaches nobody.
    assert len(rings.take()) == 5
    rings.put(nops(9))
    assert rings.control.submit_head == 8
    _, answer = rings.try_enter(9)
    _rig.expect(answer, errno.ENOENT)
    rings.unmap()
    for other in others:
        other.close()


def test_rings_are_mapped_shared_writable_and_no_further_than_they_go(
    plane: dmaplane.Plane,
) -> None:
    made = _abi.ChannelCreate(slots=64)
    _rig.expect(_rig.ask(plane, _abi.CHANNEL_CREATE, made), 0)
    fd = plane._fd  # type: ignore[attr-defined]

    def mapped(length: int, flags: int, protection: int) -> int:
        try:
            mmap.mmap(fd, length, flags, protection, offset=made.map_offset).close()
        except OSError as reason:
            return reason.errno or 0
        return 0

    both = mmap.PROT_READ | mmap.PROT_WRITE
    assert mapped(made.map_bytes, mmap.MAP_SHARED, both) == 0
    assert mapped(PAGE, mmap.MAP_SHARED, both) == 0
    assert mapped(made.map_bytes + PAGE, mmap.MAP_SHARED, both) == errno.EINVAL
    assert mapped(made.map_bytes, mmap.MAP_PRIVATE, both) == errno.EINVAL
    assert mapped(made.map_bytes, mmap.MAP_SHARED, mmap.PROT_READ) == errno.EINVAL


def test_split_mapping_counts_as_two(plane: dmaplane.Plane) -> None:
    rings = Rings(plane)
    assert rings.query().mappings == 1
    libc = ctypes.CDLL(None, use_errno=True)
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    assert libc.munmap(rings._address + PAGE, PAGE) == 0
    assert rings.query().mappings == 2
    rings.unmap()
    assert rings.query().mappings == 0
    rings.close()


# ---- who works where


def test_bound_workers_stay_where_they_were_bound(plane: dmaplane.Plane) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    for cpu in cpus:
        with Rings(plane, flags=_abi.CHANNEL_BIND_CPU, cpu=cpu) as rings:
            assert list(workers().values()) == [{cpu}]
            rings.run(nops(3))
    with Rings(plane, flags=_abi.CHANNEL_BIND_NODE, node=0):
        local = Path("/sys/devices/system/node/node0/cpulist").read_text().strip()
        (allowed,) = workers().values()
        assert allowed <= set(cpus)
        assert local == "-".join(str(cpu) for cpu in sorted({min(allowed), max(allowed)}))
    _rig.wait_until(lambda: not workers(), _rig.SECOND, "the worker is gone with its channel")


def test_worker_gets_no_cpu_its_creator_may_not_use(
    plane: dmaplane.Plane, on_last_cpu: int
) -> None:
    with Rings(plane, workers=4) as rings:
        assert list(workers().values()) == [{on_last_cpu}]
        rings.run(nops(1))
    for fields in (
        {"flags": _abi.CHANNEL_BIND_CPU, "cpu": on_last_cpu - 1},
        {"flags": _abi.CHANNEL_BIND_CPU, "cpu": 1 << 20},
        {"flags": _abi.CHANNEL_BIND_NODE, "node": 0},
        {"flags": _abi.CHANNEL_BIND_NODE, "node": 63},
        {"flags": _abi.CHANNEL_BIND_NODE, "node": 1 << 20},
    ):
        request = _abi.ChannelCreate(slots=8, **fields)
        _rig.expect(_rig.ask(plane, _abi.CHANNEL_CREATE, request), errno.EINVAL)


def test_waiter_does_short_work_itself_and_leaves_a_bound_worker_its_own(
    plane: dmaplane.Plane,
) -> None:
    with (
        Rings(plane) as free,
        Rings(plane, flags=_abi.CHANNEL_BIND_CPU, cpu=0) as bound,
    ):
        for _ in range(ROUNDS):
            free.run(nops(1))
            bound.run(nops(1))
        # Nobody had to be woken, against worker and waiter each time but when they met awake.
        assert statistics(free).wakeups < ROUNDS // 10
        assert statistics(bound).wakeups > ROUNDS // 2


def test_large_copies_are_shared_and_still_cancelled(plane: dmaplane.Plane) -> None:
    length = 32 * MIB
    source, target = (_rig.create_buffer(plane, length) for _ in range(2))
    with (
        Rings(plane, workers=4) as rings,
        _rig.Mapped(plane, source) as ours,
        _rig.Mapped(plane, target) as theirs,
    ):
        ours.bytes[:] = np.random.default_rng(1).integers(0, 256, length, np.uint8)
        row = _rig.copy_of(source.buffer_id, target.buffer_id, length)
        (done,) = rings.run(_rig.rows_of(row))
        assert (done["result"], done["length_bytes"]) == (0, length)
        assert np.array_equal(ours.bytes, theirs.bytes)
        for delay in range(8):
            rings.put(_rig.rows_of(row))
            rings.enter(1)
            time.sleep(delay / 1000)
            request = _abi.Cancel(channel_id=rings.id, flags=_abi.CANCEL_ALL)
            _rig.expect(_rig.ask(plane, _abi.CANCEL, request), 0, errno.ENOENT)
            theirs.bytes[:] = 0
            time.sleep(0.005)
            assert not theirs.bytes.any(), "somebody still wrote after the cancel"
            (done,) = rings.take_exactly(1)
            assert int(done["result"]) in (0, -errno.ECANCELED)
            assert done["result"] or int(done["length_bytes"]) == length


def test_close_is_prompt_however_many_channels_copy() -> None:
    length = 64 * MIB
    for _ in range(2):
        plane = dmaplane.open(plane="kernel")
        source, target = (_rig.create_buffer(plane, length).buffer_id for _ in range(2))
        row = _rig.copy_of(source, target, length)
        for _ in range(COPYING):
            rings = Rings(plane, slots=16, flags=_abi.CHANNEL_BIND_CPU, cpu=0)
            rings.put(_rig.rows_of(*[row] * 16))
            rings.enter(16)
        time.sleep(0.05 * _rig.SLOWNESS)
        began = time.monotonic()
        plane.close()
        assert time.monotonic() - began < _rig.SECOND * attack.SLOWNESS


# ---- waits


def test_signal_ends_a_wait_that_has_accepted_nothing(plane: dmaplane.Plane) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: heard.append(number))
    try:
        with Rings(plane) as rings:
            for submit, wanted in ((0, -errno.EINTR), (1, 0)):
                rings.put(nops(submit))
                request = _abi.Enter(
                    size=ctypes.sizeof(_abi.Enter),
                    channel_id=rings.id,
                    submit_count=submit,
                    wait_count=5,
                )
                signal.setitimer(signal.ITIMER_REAL, 0.05 * _rig.SLOWNESS)
                assert plane.command(_abi.ENTER, request) == wanted
                assert request.accepted == submit
            assert request.unread == 1
    finally:
        signal.signal(signal.SIGALRM, before)
    assert len(heard) == 2


def test_destroy_sends_waiters_home(plane: dmaplane.Plane) -> None:
    rings = Rings(plane)
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda: answers.append(rings.try_enter(0, 1)[1])) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.05 * _rig.SLOWNESS)
    rings.unmap()
    _rig.expect(_rig.destroy(plane, _abi.CHANNEL_DESTROY, rings.id), 0)
    for thread in threads:
        thread.join(_rig.PATIENCE_S)
    # Who came too late found no channel.
    assert len(answers) == 4
    assert set(answers) <= {-errno.ESTALE, -errno.ENOENT}
    assert -errno.ESTALE in answers


def test_waiters_who_want_different_numbers_are_all_woken(plane: dmaplane.Plane) -> None:
    with Rings(plane, slots=64) as rings:
        reached: list[int] = []

        def wait(count: int) -> None:
            request, answer = rings.try_enter(0, count)
            _rig.expect(answer, 0)
            assert request.unread >= count
            reached.append(count)

        threads = [threading.Thread(target=wait, args=(count,)) for count in (64, 3, 17, 40, 3)]
        for thread in threads:
            thread.start()
        for _ in range(64):
            rings.put(nops(1))
            rings.enter(1)
        for thread in threads:
            thread.join(_rig.PATIENCE_S)
        assert sorted(reached) == [3, 3, 17, 40, 64]
        rings.take()


def test_eventfd_is_written_once_per_arming(plane: dmaplane.Plane) -> None:
    event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    with Rings(plane, flags=_abi.CHANNEL_EVENTFD, eventfd=event) as rings:
        rings.run(nops(1))
        assert not select.select([event], [], [], 0)[0]
        for _ in range(3):
            rings.control.event_armed = 1
            for _ in range(4):
                rings.put(nops(1))
                rings.enter(1)
            rings.take_exactly(4)
            assert rings.control.event_armed == 0
            assert os.eventfd_read(event) == 1
            assert not select.select([event], [], [], 0)[0]
    with Path("/dev/null").open() as other:
        os.close(event)
        for wrong in (event, other.fileno(), -1):
            request = _abi.ChannelCreate(slots=8, flags=_abi.CHANNEL_EVENTFD, eventfd=wrong)
            _rig.expect(_rig.ask(plane, _abi.CHANNEL_CREATE, request), errno.EINVAL)


def test_poll_wakes_for_a_completion(plane: dmaplane.Plane) -> None:
    fd = plane._fd  # type: ignore[attr-defined]
    with Rings(plane, flags=_abi.CHANNEL_BIND_CPU, cpu=0) as rings:
        assert not select.select([fd], [], [], 0)[0]
        threading.Timer(0.05 * _rig.SLOWNESS, lambda: rings.enter(1)).start()
        rings.put(nops(1))
        assert select.select([fd], [], [], _rig.PATIENCE_S)[0] == [fd]
        rings.take_exactly(1)
        assert not select.select([fd], [], [], 0)[0]


# ---- events


@pytest.fixture
def movers(standin: Callable[[str], Driver]) -> Iterator[list[foreign.Exporter]]:
    """Several, since the debug kernel complains of more than seven mappings of one page."""
    module = standin("dmabuf_exporter")
    module.load()
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(foreign.Exporter()) for _ in range(8)]
    assert module.wait_users(0, _rig.PATIENCE_S), "somebody still holds the stand-in"
    module.unload()


def test_events_wait_for_room_and_arrive_once_in_order(
    plane: dmaplane.Plane, movers: list[foreign.Exporter]
) -> None:
    """Forty buffers are revoked, and the ring has one slot nobody has reserved."""
    fds = [mover.create(PAGE) for mover in movers]
    twins = [imported(plane, fd).buffer_id for fd in fds for _ in range(5)]
    with (
        Rings(plane, slots=4, completion_slots=4) as small,
        Rings(plane, slots=64) as large,
    ):
        small.put(nops(3))
        small.enter(3, 3)
        for mover in movers:
            mover.move()
        large.enter(0, 40)
        told = large.take()
        assert sorted(int(row["user_data"]) for row in told) == twins
        assert set(told["operation"]) == {_abi.EVENT_BUFFER_REVOKED}
        assert statistics(large).events == 40
        # One fits beside three completions that nobody has taken.
        _rig.wait_until(lambda: small.query().unread == 4, _rig.PATIENCE_S, "the first event")
        gone = twins.pop(30)
        _rig.expect(_rig.destroy(plane, _abi.BUFFER_DESTROY, gone), 0)
        seen: list[int] = []
        while len(seen) < 3 + len(twins):
            small.enter(0, 1)
            seen.extend(int(row["user_data"]) for row in small.take())
        order = [int(row["user_data"]) for row in told if int(row["user_data"]) != gone]
        assert seen == [1, 2, 3, *order]
        # No more of them; and a channel made afterwards is told nothing.
        with Rings(plane) as late:
            for rings in (small, late):
                _, answer = rings.try_enter(0, 1, _rig.later(0.02))
                _rig.expect(answer, errno.ETIMEDOUT)
    for identity in twins:
        _rig.expect(_rig.destroy(plane, _abi.BUFFER_DESTROY, identity), 0)
    for fd in fds:
        os.close(fd)


def test_event_takes_no_slot_an_operation_has_reserved(
    plane: dmaplane.Plane, movers: list[foreign.Exporter]
) -> None:
    fd = movers[0].create(PAGE)
    twin = imported(plane, fd).buffer_id
    length = 32 * MIB
    source, target = (_rig.create_buffer(plane, length).buffer_id for _ in range(2))
    with Rings(plane, slots=4, completion_slots=4) as rings:
        rings.put(_rig.rows_of(*[_rig.copy_of(source, target, length)] * 4))
        rings.enter(4)
        movers[0].move()
        rings.enter(0, 4)
        done = rings.take()
        assert list(done["operation"]) == [_abi.OP_COPY] * 4
        rings.enter(0, 1)
        (event,) = rings.take()
        assert (int(event["user_data"]), int(event["flags"])) == (twin, _abi.COMPLETE_EVENT)
    _rig.expect(_rig.destroy(plane, _abi.BUFFER_DESTROY, twin), 0)
    os.close(fd)

# SPDX-License-Identifier: MIT
"""L1: exactly one completion per accepted submission, in time. L2: no queue overflows."""

from __future__ import annotations

import errno
import itertools
import random
import time
from typing import TYPE_CHECKING

import numpy as np

from dmaplane import _abi
from dmaplane._library import crc32c
from dmaplane._plane import Capability
from dmaplane.testing import _rig
from dmaplane.testing._case import MakePlane, case
from dmaplane.testing._rig import MIB, Mapped, Rings, copy_of, create_buffer, results, rows_of

if TYPE_CHECKING:
    from dmaplane._plane import Plane


@case("L1")
def each_operation_does_what_it_says(make_plane: MakePlane) -> None:
    with make_plane() as plane, Rings(plane) as rings:
        source, target = create_buffer(plane, 8192), create_buffer(plane, 8192)
        with Mapped(plane, source) as read, Mapped(plane, target) as written:
            assert not read.bytes.any(), "a new buffer is zeroed"
            read.bytes[:] = np.arange(8192, dtype=np.uint32).astype(np.uint8)
            done = rings.run(
                rows_of(
                    {"operation": _abi.OP_NOP},
                    copy_of(
                        source.buffer_id, target.buffer_id, 1001, source_offset=3, target_offset=7
                    ),
                    {
                        "operation": _abi.OP_FILL,
                        "target_id": target.buffer_id,
                        "target_offset": 4096,
                        "length_bytes": 64,
                        "immediate": 0x11223344,
                    },
                    {"operation": _abi.OP_FENCE},
                )
            )
            assert results(done) == {1: 0, 2: 0, 3: 0, 4: 0}
            moved = {int(one["user_data"]): one for one in done}
            assert [int(moved[n]["length_bytes"]) for n in (1, 2, 3, 4)] == [0, 1001, 64, 0]
            assert [int(moved[n]["path"]) for n in (1, 2)] == [_abi.PATH_NONE, _abi.PATH_LOCAL]
            assert int(moved[2]["operation"]) == _abi.OP_COPY
            assert (written.bytes[7:1008] == read.bytes[3:1004]).all()
            assert bytes(written.bytes[4096:4160]) == bytes.fromhex("44332211") * 16
            written.bytes[7:1008] = 0
            written.bytes[4096:4160] = 0
            assert not written.bytes.any(), "bytes outside the ranges were changed"


@case("L1")
def copy_is_right_at_every_alignment(make_plane: MakePlane) -> None:
    """Around every size where a copy loop may change its ways, at odd places."""
    chance = random.Random(1)
    with make_plane() as plane, Rings(plane) as rings:
        source, target = create_buffer(plane, 8 * MIB), create_buffer(plane, 8 * MIB)
        with Mapped(plane, source) as read, Mapped(plane, target) as written:
            read.bytes[:] = np.frombuffer(chance.randbytes(8 * MIB), np.uint8)
            for size in (1, 2, 7, 8, 15, 63, 64, 65, 4095, 4096, 65537, MIB + 1, 5 * MIB + 3):
                at, to = chance.randrange(129), chance.randrange(129)
                written.bytes[: size + 400] = 0xEE
                entry = copy_of(
                    source.buffer_id, target.buffer_id, size, source_offset=at, target_offset=to
                )
                done = rings.run(rows_of(entry))
                assert results(done) == {1: 0}
                assert (written.bytes[to : to + size] == read.bytes[at : at + size]).all(), size
                assert (written.bytes[:to] == 0xEE).all(), f"before {size} bytes at {to}"
                assert (written.bytes[to + size : size + 400] == 0xEE).all(), f"after {size}"


@case("L1", needs=Capability.CHECKSUM)
def checksum_is_of_the_bytes_moved(make_plane: MakePlane) -> None:
    chance = random.Random(2)
    assert crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C
    with make_plane() as plane, Rings(plane) as rings:
        source, target = create_buffer(plane, 3 * MIB), create_buffer(plane, 3 * MIB)
        with Mapped(plane, source) as read, Mapped(plane, target) as written:
            read.bytes[:9] = np.frombuffer(b"123456789", np.uint8)
            read.bytes[9:] = np.frombuffer(chance.randbytes(3 * MIB - 9), np.uint8)
            for size in (9, 1, 4096, 3 * MIB - 5):
                wanted = crc32c(bytes(read.bytes[:size]))
                flags = _abi.SUBMIT_CHECKSUM
                copy = copy_of(source.buffer_id, target.buffer_id, size)
                done = rings.run(
                    rows_of(
                        {**copy, "flags": flags},
                        {**copy, "flags": flags | _abi.SUBMIT_VERIFY, "checksum": wanted},
                        {**copy, "flags": flags | _abi.SUBMIT_VERIFY, "checksum": wanted ^ 1},
                    )
                )
                assert results(done) == {1: 0, 2: 0, 3: -errno.EBADMSG}, size
                first = done[done["user_data"] == 1][0]
                assert int(first["flags"]) & _abi.COMPLETE_CHECKSUM
                assert int(first["checksum"]) == wanted
                assert (written.bytes[:size] == read.bytes[:size]).all()


def _wrong_rows(buffer: int, other: int, length: int) -> tuple[tuple[dict[str, int], int], ...]:
    """Submissions that are wrong in themselves, and what they complete with."""
    fill = {"operation": _abi.OP_FILL, "target_id": buffer, "length_bytes": 64}
    copy = copy_of(buffer, other, 64)
    return (
        ({"operation": 999}, errno.EINVAL),
        ({"flags": 1 << 15}, errno.EINVAL),
        ({"endpoint_id": 5}, errno.EINVAL),
        ({"source_id": buffer}, errno.EINVAL),
        ({"target_offset": 1}, errno.EINVAL),
        ({"length_bytes": 1}, errno.EINVAL),
        ({"immediate": 1}, errno.EINVAL),
        ({"checksum": 1}, errno.EINVAL),
        ({**fill, "source_id": buffer}, errno.EINVAL),
        ({**fill, "length_bytes": 0}, errno.EINVAL),
        ({**fill, "length_bytes": 62}, errno.EINVAL),
        ({**fill, "target_offset": 2}, errno.EINVAL),
        ({**fill, "target_id": 4_000_000_000}, errno.ENOENT),
        ({**copy, "source_id": 4_000_000_000}, errno.ENOENT),
        ({**copy, "length_bytes": 0}, errno.EINVAL),
        ({**copy, "length_bytes": length + 1}, errno.EINVAL),
        ({**copy, "source_offset": length - 63}, errno.EINVAL),
        ({**copy, "immediate": 1}, errno.EINVAL),
        ({**copy, "target_id": buffer}, errno.EINVAL),
        ({**copy, "target_id": buffer, "target_offset": 63}, errno.EINVAL),
        ({**copy, "checksum": 1}, errno.EINVAL),
    )


@case("L1")
def wrong_submission_completes_with_its_error(make_plane: MakePlane) -> None:
    with make_plane() as plane, Rings(plane) as rings:
        buffer, other = create_buffer(plane).buffer_id, create_buffer(plane).buffer_id
        length = _rig.query_buffer(plane, buffer).length_bytes
        for entry, wanted in _wrong_rows(buffer, other, length):
            done = rings.run(rows_of({**entry, "user_data": 77}, {"user_data": 78}))
            found = results(done)
            assert found == {77: -wanted, 78: 0}, (
                f"{entry}: got {_rig.name_of(found[77])}, wanted {_rig.name_of(-wanted)}"
            )
        huge = copy_of(buffer, other, (1 << 64) - 8, source_offset=16)
        found = results(rings.run(rows_of(huge)))
        assert -found[1] in (errno.EINVAL, errno.EOVERFLOW)


@case("L1")
def failed_link_cancels_the_rest_of_its_chain(make_plane: MakePlane) -> None:
    link = _abi.SUBMIT_LINK
    with make_plane() as plane, Rings(plane) as rings:
        found = results(
            rings.run(
                rows_of(
                    {"flags": link},
                    {"operation": 999, "flags": link},
                    {"flags": link},
                    {},
                    {"flags": link},
                    {},
                )
            )
        )
        assert found == {
            1: 0,
            2: -errno.EINVAL,
            3: -errno.ECANCELED,
            4: -errno.ECANCELED,
            5: 0,
            6: 0,
        }


@case("L1")
def failed_link_cancels_what_is_submitted_after_it_failed(make_plane: MakePlane) -> None:
    """The chain is open until its next entry comes, in whatever call; no byte of that moves."""
    with make_plane() as plane, Rings(plane) as rings:
        source, target = create_buffer(plane), create_buffer(plane)
        copy = copy_of(source.buffer_id, target.buffer_id, 4096)
        fill = {"operation": _abi.OP_FILL, "target_id": target.buffer_id, "length_bytes": 64}
        with Mapped(plane, source) as read, Mapped(plane, target) as written:
            read.bytes[:] = 1
            for follower in (copy, {**fill, "immediate": 0x01010101}, {}):
                for broken in ({"operation": 999}, {**copy, "deadline_ns": 1}):
                    first = rings.run(rows_of({**broken, "flags": _abi.SUBMIT_LINK}))
                    assert set(results(first).values()) <= {-errno.EINVAL, -errno.ETIMEDOUT}
                    assert results(rings.run(rows_of(follower))) == {1: -errno.ECANCELED}
                    assert not written.bytes.any(), "a cancelled operation moved bytes"
            assert results(rings.run(rows_of(copy))) == {1: 0}


@case("L1")
def linked_copies_run_in_order(make_plane: MakePlane) -> None:
    with make_plane() as plane, Rings(plane) as rings:
        buffers = [create_buffer(plane, 65536) for _ in range(4)]
        ids = [made.buffer_id for made in buffers]
        with Mapped(plane, buffers[0]) as first, Mapped(plane, buffers[3]) as end:
            for round_ in range(1, 50):
                first.bytes[:] = round_
                hops = [
                    copy_of(a, b, 65536, flags=_abi.SUBMIT_LINK if b != ids[3] else 0)
                    for a, b in itertools.pairwise(ids)
                ]
                assert set(results(rings.run(rows_of(*hops))).values()) == {0}
                assert (end.bytes == round_).all(), f"round {round_}"


@case("L1")
def fence_completes_after_all_before_it(make_plane: MakePlane) -> None:
    with make_plane() as plane, Rings(plane, slots=64, workers=2) as rings:
        source, target = create_buffer(plane, 4 * MIB), create_buffer(plane, 4 * MIB)
        for _ in range(5):
            entries = [copy_of(source.buffer_id, target.buffer_id, 4 * MIB), *([{}] * 10)]
            rows = rows_of(*entries, {"operation": _abi.OP_FENCE}, *entries)
            done = rings.run(rows)["user_data"].tolist()
            fence = done.index(12)
            assert set(done[:fence]) == set(range(1, 12)), "before the fence"
            assert set(done[fence + 1 :]) == set(range(13, 24)), "after the fence"


@case("L1")
def passed_deadline_completes_without_moving_a_byte(make_plane: MakePlane) -> None:
    with make_plane() as plane, Rings(plane) as rings:
        source, target = create_buffer(plane), create_buffer(plane)
        with Mapped(plane, source) as read, Mapped(plane, target) as written:
            read.bytes[:] = 1
            past = time.monotonic_ns() - 1
            entry = copy_of(source.buffer_id, target.buffer_id, 4096)
            done = rings.run(rows_of({**entry, "deadline_ns": past}, {"deadline_ns": 1}, {}))
            assert results(done) == {1: -errno.ETIMEDOUT, 2: -errno.ETIMEDOUT, 3: 0}
            assert not written.bytes.any()
            late = done[done["user_data"] == 1][0]
            assert int(late["length_bytes"]) == 0
            done = rings.run(rows_of({**entry, "deadline_ns": _rig.later()}))
            assert results(done) == {1: 0}


@case("L1")
def deadline_is_honoured_while_a_long_copy_runs(make_plane: MakePlane) -> None:
    """One copy that takes much longer than its deadline, and one that waits behind it."""
    length = 256 * MIB
    with make_plane() as plane, Rings(plane) as rings:
        source, target = create_buffer(plane, length), create_buffer(plane, length)
        with Mapped(plane, source) as read, Mapped(plane, target) as written:
            read.bytes[::4096] = 1
            entry = copy_of(source.buffer_id, target.buffer_id, length)
            started = time.monotonic()
            assert results(rings.run(rows_of(entry))) == {1: 0}
            whole = time.monotonic() - started
            written.bytes[::4096] = 0
            limit = time.monotonic_ns() + int(whole / 8 * 1e9)
            started = time.monotonic()
            rings.put(rows_of({**entry, "deadline_ns": limit}, {**entry, "deadline_ns": limit}))
            assert rings.enter(2).accepted == 2
            done = rings.take_exactly(2)
            late = time.monotonic() - started
            assert results(done) == {1: -errno.ETIMEDOUT, 2: -errno.ETIMEDOUT}
            assert late < whole / 8 + max(0.25, whole / 2), (
                f"the deadline was {whole / 8:.3f} s, completions came after {late:.3f} s"
            )
            moved = int(done["length_bytes"].max())
            assert moved < length
            beyond = -(-moved // 4096) * 4096
            assert not written.bytes[beyond::4096].any(), "more bytes changed than it says"


@case("L2")
def full_ring_answers_again_and_loses_nothing(make_plane: MakePlane) -> None:
    with make_plane() as plane, Rings(plane, slots=4, completion_slots=4) as rings:
        rings.put(rows_of({}, {}, {}, {}))
        assert rings.enter(4, 4).accepted == 4
        rings.put(rows_of({"user_data": 5}, {"user_data": 6}))
        request, answer = rings.try_enter(2)
        _rig.expect(answer, errno.EAGAIN)
        assert request.accepted == 0
        first = results(rings.take())
        assert set(first) == {1, 2, 3, 4}
        assert rings.enter(2, 2).accepted == 2
        assert set(results(rings.take())) == {5, 6}


@case("L2")
def satisfied_wait_succeeds_with_nothing_accepted(make_plane: MakePlane) -> None:
    """What is unread already is there to be taken, room for more or not."""
    with make_plane() as plane, Rings(plane, slots=4, completion_slots=4) as rings:
        rings.put(rows_of({}, {}, {}, {}))
        assert rings.enter(4, 4).accepted == 4
        rings.put(rows_of({"user_data": 5}))
        for wait in (1, 4):
            for deadline in (1, 0, _rig.later()):
                answer = rings.enter(1, wait, deadline)
                assert (answer.accepted, answer.unread) == (0, 4)
        assert set(results(rings.take())) == {1, 2, 3, 4}
        assert rings.enter(1, 1).accepted == 1
        assert set(results(rings.take())) == {5}
        _, refused = rings.try_enter(1)
        _rig.expect(refused, errno.EAGAIN)


@case("L2")
def accepting_reserves_the_completion(make_plane: MakePlane) -> None:
    """Fewer are accepted than asked for when completions are not taken; none is lost."""
    with make_plane() as plane, Rings(plane, slots=8, completion_slots=8) as rings:
        sent = accepted = 0
        seen: set[int] = set()
        chance = random.Random(3)
        while len(seen) < 500:
            room = 8 - ((rings.control.submit_tail - rings.control.submit_head) & 0xFFFFFFFF)
            batch = min(chance.randint(0, 8), room)
            rings.put(rows_of(*({"user_data": sent + n + 1} for n in range(batch))))
            sent += batch
            pending = (rings.control.submit_tail - rings.control.submit_head) & 0xFFFFFFFF
            if pending:
                request, answer = rings.try_enter(pending)
                _rig.expect(answer, 0, errno.EAGAIN)
                accepted += request.accepted if not answer else 0
            if chance.random() < 0.4:
                _, answer = rings.try_enter(0, 1 if accepted > len(seen) else 0)
                _rig.expect(answer, 0)
                for number in results(rings.take()):
                    assert number not in seen
                    seen.add(number)
            assert accepted - len(seen) <= 8
        assert seen <= set(range(1, sent + 1))


def _random_row(chance: random.Random, buffers: list[int], number: int) -> dict[str, int]:
    entry: dict[str, int] = {"user_data": number}
    draw = chance.random()
    if draw < 0.35:
        source, target = chance.sample(buffers, 2)
        entry.update(copy_of(source, target, chance.choice((1, 4096, 65536, MIB))))
    elif draw < 0.5:
        entry.update(operation=_abi.OP_FILL, target_id=chance.choice(buffers), length_bytes=4096)
    elif draw < 0.6:
        entry["operation"] = _abi.OP_FENCE
    elif draw < 0.65:
        entry["operation"] = 1234
    elif draw < 0.7:
        entry.update(copy_of(buffers[0], 3_999_999_999, 64))
    if chance.random() < 0.25:
        entry["flags"] = _abi.SUBMIT_LINK
    if chance.random() < 0.2:
        entry["deadline_ns"] = time.monotonic_ns() + chance.choice((-1, 1_000, 200_000, 10**9))
    return entry


def _mix(plane: Plane, seed: int, wanted: int) -> None:
    chance = random.Random(seed)
    slots = chance.choice((1, 2, 8, 64))
    buffers = [create_buffer(plane, MIB).buffer_id for _ in range(3)]
    workers = chance.choice((1, 2))
    with Rings(
        plane, slots, completion_slots=slots * chance.choice((1, 4)), workers=workers
    ) as rings:
        sent = 0
        seen: dict[int, int] = {}
        limit = time.monotonic() + _rig.PATIENCE_S
        while len(seen) < wanted:
            assert time.monotonic() < limit, f"seed {seed}: {len(seen)} of {wanted} completed"
            pending = (rings.control.submit_tail - rings.control.submit_head) & 0xFFFFFFFF
            batch = min(chance.randint(0, slots), slots - pending, wanted - sent)
            rings.put(rows_of(*(_random_row(chance, buffers, sent + n + 1) for n in range(batch))))
            sent += batch
            _, answer = rings.try_enter(pending + batch)
            _rig.expect(answer, 0, errno.EAGAIN)
            if chance.random() < 0.3:
                cancel = _abi.Cancel(channel_id=rings.id, deadline_ns=_rig.later())
                if chance.random() < 0.3:
                    cancel.flags = _abi.CANCEL_ALL
                else:
                    cancel.user_data = chance.randint(1, max(1, sent))
                _rig.expect(_rig.ask(plane, _abi.CANCEL, cancel), 0, errno.ENOENT)
            if chance.random() < 0.6:
                for number, result in results(rings.take()).items():
                    assert number not in seen, f"seed {seed}: {number} completed twice"
                    assert 1 <= number <= sent, f"seed {seed}: nobody submitted {number}"
                    seen[number] = result
        after = rings.query()
        assert (after.operations, after.unread) == (0, 0), f"seed {seed}"


@case("L1")
def every_mix_completes_each_submission_once(make_plane: MakePlane) -> None:
    """Links, deadlines, cancels, fences, errors, full rings, in random order; seeds are fixed."""
    for seed in range(12):
        with make_plane() as plane:
            _mix(plane, seed, 400)


@case("L1")
def wait_ends_at_its_deadline(make_plane: MakePlane) -> None:
    with make_plane() as plane, Rings(plane) as rings:
        started = time.monotonic()
        _, answer = rings.try_enter(0, 1, _rig.later(0.05))
        _rig.expect(answer, errno.ETIMEDOUT)
        assert 0.045 < time.monotonic() - started < _rig.SECOND
        _, answer = rings.try_enter(0, 1, 1)
        _rig.expect(answer, errno.ETIMEDOUT)
        rings.put(rows_of({}))
        request, answer = rings.try_enter(1, 2, _rig.later(0.05))
        _rig.expect(answer, 0)
        assert (request.accepted, request.unread) == (1, 1)
        _, answer = rings.try_enter(0, rings.completion_slots + 1, 1)
        _rig.expect(answer, errno.EINVAL)

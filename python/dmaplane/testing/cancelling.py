# SPDX-License-Identifier: MIT
"""L5: cancel is a fence. When it has returned, nothing touches the buffers any more."""

from __future__ import annotations

import errno
import time

from dmaplane import _abi
from dmaplane.testing import _rig
from dmaplane.testing._case import MakePlane, case
from dmaplane.testing._rig import MIB, Mapped, Rings, copy_of, create_buffer, rows_of


def _cancel(rings: Rings, user_data: int = 0, flags: int = 0) -> tuple[int, int]:
    request = _abi.Cancel(
        channel_id=rings.id, user_data=user_data, flags=flags, deadline_ns=_rig.later()
    )
    answer = _rig.ask(rings.plane, _abi.CANCEL, request)
    return answer, request.cancelled


@case("L5")
def nothing_touches_a_buffer_after_cancel(make_plane: MakePlane) -> None:
    """The target is poisoned at once after cancel; no poisoned byte may change."""
    length = 128 * MIB
    with make_plane() as plane, Rings(plane, slots=16, workers=2) as rings:
        source, target = create_buffer(plane, length), create_buffer(plane, length)
        with Mapped(plane, source) as read, Mapped(plane, target) as written:
            read.bytes[:] = 1
            entry = copy_of(source.buffer_id, target.buffer_id, length, user_data=9)
            started = time.monotonic()
            assert _rig.results(rings.run(rows_of(entry))) == {9: 0}
            whole = time.monotonic() - started
            written.bytes[::64] = 0xAA
            stopped = 0
            for round_ in range(6):
                rings.put(rows_of(*([entry] * 4)))
                assert rings.enter(4).accepted == 4
                if round_:
                    _rig.wait_until_begun(written.bytes, 0xAA)
                    time.sleep(whole * (round_ - 1))
                answer, count = _cancel(rings, 9)
                _rig.expect(answer, 0, errno.ENOENT)
                written.bytes[::64] = 0xAA
                stopped += count
                time.sleep(0.03)
                assert (written.bytes[::64] == 0xAA).all(), f"round {round_}: written after cancel"
                done = rings.take_exactly(4)["result"].tolist()
                assert done.count(-errno.ECANCELED) == count
                assert set(done) <= {0, -errno.ECANCELED}
            assert stopped, "no round cancelled anything: the copies are too short for this test"


@case("L5")
def cancel_finds_by_user_data_only(make_plane: MakePlane) -> None:
    length = 64 * MIB
    with make_plane() as plane, Rings(plane, slots=16) as rings:
        source, target = (
            create_buffer(plane, length).buffer_id,
            create_buffer(plane, length).buffer_id,
        )
        numbers = (1, 2, 3, 2, 5)
        count = 0
        # The first one may have run before we came to cancel it: then once more.
        for _ in range(20):
            rings.put(rows_of(*(copy_of(source, target, length, user_data=n) for n in numbers)))
            assert rings.enter(5).accepted == 5
            answer, count = _cancel(rings, 2)
            _rig.expect(answer, 0, errno.ENOENT)
            done = rings.take_exactly(5)
            twos = done[done["user_data"] == 2]["result"].tolist()
            assert twos.count(-errno.ECANCELED) == count
            assert not done[done["user_data"] != 2]["result"].any()
            if count == 2:
                break
        assert count == 2, "never were both cancelled: the copies are too short for this test"


@case("L5")
def cancel_all_stops_everything(make_plane: MakePlane) -> None:
    with make_plane() as plane, _rig.busy_channel(plane) as (rings, _, _target):
        started = time.monotonic()
        answer, count = _cancel(rings, flags=_abi.CANCEL_ALL)
        _rig.expect(answer, 0)
        assert time.monotonic() - started < _rig.SECOND
        after = rings.query()
        assert after.operations == 0
        done = rings.take_exactly(16)["result"].tolist()
        assert done.count(-errno.ECANCELED) == count
        assert count >= 8


@case("L5")
def cancel_of_nothing_is_enoent(make_plane: MakePlane) -> None:
    with make_plane() as plane, Rings(plane) as rings:
        _rig.expect(_cancel(rings, 1)[0], errno.ENOENT)
        _rig.expect(_cancel(rings, flags=_abi.CANCEL_ALL)[0], errno.ENOENT)
        _rig.expect(_cancel(rings, 1, _abi.CANCEL_ALL)[0], errno.EINVAL)
        rings.run(rows_of({"user_data": 1}))
        _rig.expect(_cancel(rings, 1)[0], errno.ENOENT)


@case("L5")
def cancelled_link_cancels_the_rest_of_its_chain(make_plane: MakePlane) -> None:
    length = 64 * MIB
    with make_plane() as plane, Rings(plane, slots=16) as rings:
        source, target = (
            create_buffer(plane, length).buffer_id,
            create_buffer(plane, length).buffer_id,
        )
        copy = copy_of(source, target, length)
        rings.put(
            rows_of(
                {**copy, "user_data": 1},
                {**copy, "user_data": 2, "flags": _abi.SUBMIT_LINK},
                {**copy, "user_data": 3, "flags": _abi.SUBMIT_LINK},
                {"user_data": 4},
                {"user_data": 5},
            )
        )
        assert rings.enter(5).accepted == 5
        _rig.expect(_cancel(rings, 2)[0], 0)
        found = _rig.results(rings.take_exactly(5))
        assert [found[n] for n in (2, 3, 4)] == [-errno.ECANCELED] * 3
        assert [found[n] for n in (1, 5)] == [0, 0]

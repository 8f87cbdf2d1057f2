# SPDX-License-Identifier: MIT
"""L3: nothing is freed while anything can reach it; destroy says who, drain waits."""

from __future__ import annotations

import errno
import mmap
import os
import threading
import time

from dmaplane import _abi
from dmaplane._plane import Capability
from dmaplane.testing import _rig
from dmaplane.testing._case import MakePlane, case
from dmaplane.testing._rig import Mapped, Rings, create_buffer, destroy, query_buffer, rows_of

DESTROY = _abi.BUFFER_DESTROY


@case("L3")
def mapping_holds_its_buffer(make_plane: MakePlane) -> None:
    with make_plane() as plane:
        made = create_buffer(plane)
        first, second = Mapped(plane, made), Mapped(plane, made)
        assert query_buffer(plane, made.buffer_id).mappings == 2
        first.bytes[0] = 42
        _rig.expect(destroy(plane, DESTROY, made.buffer_id), errno.EBUSY)
        first.unmap()
        _rig.expect(destroy(plane, DESTROY, made.buffer_id), errno.EBUSY)
        after = query_buffer(plane, made.buffer_id)
        assert (after.mappings, after.state) == (1, _abi.STATE_LIVE), "EBUSY changed it"
        assert second.bytes[0] == 42, "the memory went while it was mapped"
        second.unmap()
        _rig.expect(destroy(plane, DESTROY, made.buffer_id), 0)
        gone = _abi.BufferQuery(buffer_id=made.buffer_id)
        _rig.expect(_rig.ask(plane, _abi.BUFFER_QUERY, gone), errno.ENOENT)


@case("L3")
def operation_in_flight_holds_its_buffers(make_plane: MakePlane) -> None:
    with make_plane() as plane, _rig.busy_channel(plane) as (rings, source, target):
        for identity in (source, target):
            assert query_buffer(plane, identity).operations > 0
            _rig.expect(destroy(plane, DESTROY, identity), errno.EBUSY)
        done = rings.take_exactly(16)
        assert not done["result"].any(), "a refused destroy disturbed the copies"
        for identity in (source, target):
            assert query_buffer(plane, identity).operations == 0
            _rig.expect(destroy(plane, DESTROY, identity), 0)


@case("L3", needs=Capability.EXPORT | Capability.EXPORT_TRACKED)
def export_holds_its_buffer(make_plane: MakePlane) -> None:
    with make_plane() as plane:
        made = create_buffer(plane)
        export = _abi.BufferExport(buffer_id=made.buffer_id)
        _rig.expect(_rig.ask(plane, _abi.BUFFER_EXPORT, export), 0)
        try:
            assert query_buffer(plane, made.buffer_id).exports == 1
            _rig.expect(destroy(plane, DESTROY, made.buffer_id), errno.EBUSY)
        finally:
            os.close(export.fd)
        _rig.wait_until(
            lambda: query_buffer(plane, made.buffer_id).exports == 0,
            _rig.SECOND,
            "the export is gone",
        )
        _rig.expect(destroy(plane, DESTROY, made.buffer_id), 0)


@case("L3", needs=Capability.EXPORT | Capability.EXPORT_TRACKED)
def every_export_and_each_of_its_mappings_holds(make_plane: MakePlane) -> None:
    """A plane may say 1 where it only knows that there are some, but never 0 too early."""
    with make_plane() as plane:
        made = create_buffer(plane, 8192)
        first, second = (_rig.export_buffer(plane, made.buffer_id) for _ in range(2))

        def held(at_most: int) -> None:
            exports = query_buffer(plane, made.buffer_id).exports
            assert 1 <= exports <= at_most, f"{exports} exports"
            _rig.expect(destroy(plane, DESTROY, made.buffer_id), errno.EBUSY)

        held(2)
        again = os.dup(first)
        os.close(first)
        held(2)
        os.close(again)
        held(1)
        seen = mmap.mmap(second, 8192, mmap.MAP_SHARED, mmap.PROT_READ)
        os.close(second)
        held(1)
        with Mapped(plane, made) as mapped:
            mapped.bytes[-1] = 7
        assert seen[8191] == 7
        seen.close()
        _rig.wait_until(
            lambda: query_buffer(plane, made.buffer_id).exports == 0, _rig.SECOND, "exports gone"
        )
        _rig.expect(destroy(plane, DESTROY, made.buffer_id), 0)


@case("L3", needs=_rig.SHARES)
def import_holds_the_memory_it_came_from(make_plane: MakePlane) -> None:
    """Importing what one exported oneself: the two buffers are one memory, and two lives."""
    with make_plane() as plane:
        made = create_buffer(plane, 8192)
        fd = _rig.export_buffer(plane, made.buffer_id)
        twin = _abi.BufferImport(fd=fd)
        _rig.expect(_rig.ask(plane, _abi.BUFFER_IMPORT, twin), 0)
        os.close(fd)
        assert twin.buffer_id != made.buffer_id
        if Capability.EXPORT_TRACKED in plane.capabilities:
            assert query_buffer(plane, made.buffer_id).exports >= 1
            _rig.expect(destroy(plane, DESTROY, made.buffer_id), errno.EBUSY)
        with Mapped(plane, twin) as mapped:
            mapped.bytes[:] = 5
            with Mapped(plane, made) as original:
                assert (original.bytes == 5).all()
        _rig.expect(destroy(plane, DESTROY, twin.buffer_id), 0)
        _rig.wait_until(
            lambda: query_buffer(plane, made.buffer_id).exports == 0, _rig.SECOND, "exports gone"
        )
        _rig.expect(destroy(plane, DESTROY, made.buffer_id), 0)


@case("L3")
def drain_without_holders_is_destroy(make_plane: MakePlane) -> None:
    with make_plane() as plane:
        made = create_buffer(plane)
        _rig.expect(destroy(plane, DESTROY, made.buffer_id, drain_until=1), 0)


@case("L3")
def draining_refuses_new_use_and_keeps_the_old(make_plane: MakePlane) -> None:
    with make_plane() as plane, Rings(plane) as rings:
        made, other = create_buffer(plane), create_buffer(plane)
        held = Mapped(plane, made)
        answer = destroy(plane, DESTROY, made.buffer_id, drain_until=_rig.later(0.02))
        _rig.expect(answer, errno.ETIMEDOUT)
        held.bytes[:] = 9
        assert query_buffer(plane, made.buffer_id).state == _abi.STATE_DRAINING
        copy = _rig.copy_of(made.buffer_id, other.buffer_id, 64)
        done = rings.run(rows_of(copy, {}))
        assert _rig.results(done) == {1: -errno.ESTALE, 2: 0}
        again = plane._map(4096, _rig.BOTH, made.map_offset)
        _rig.expect(again, errno.ESTALE)
        if Capability.EXPORT in plane.capabilities:
            export = _abi.BufferExport(buffer_id=made.buffer_id)
            _rig.expect(_rig.ask(plane, _abi.BUFFER_EXPORT, export), errno.ESTALE)
        assert (held.bytes == 9).all()
        held.unmap()
        answer = destroy(plane, DESTROY, made.buffer_id, drain_until=_rig.later())
        _rig.expect(answer, 0, errno.ENOENT)
        _rig.expect(destroy(plane, DESTROY, made.buffer_id), errno.ENOENT)


@case("L3")
def drain_returns_when_the_last_holder_goes(make_plane: MakePlane) -> None:
    with make_plane() as plane:
        made = create_buffer(plane)
        held = Mapped(plane, made)
        answers: list[tuple[int, float]] = []

        def drain() -> None:
            answer = destroy(plane, DESTROY, made.buffer_id, drain_until=_rig.later())
            answers.append((answer, time.monotonic()))

        waiting = threading.Thread(target=drain)
        waiting.start()
        time.sleep(0.05)
        assert not answers, "drain did not wait"
        let_go = time.monotonic()
        held.unmap()
        waiting.join(_rig.PATIENCE_S)
        assert answers, "drain never returned"
        assert answers[0][0] == 0, _rig.name_of(answers[0][0])
        assert answers[0][1] - let_go < _rig.SECOND


@case("L3")
def drain_waits_for_operations(make_plane: MakePlane) -> None:
    with make_plane() as plane, _rig.busy_channel(plane) as (rings, _, target):
        _rig.expect(destroy(plane, DESTROY, target, drain_until=_rig.later()), 0)
        done = rings.take_exactly(16)
        assert not done["result"].any(), "drain is for the new, not for what is in flight"


@case("L3")
def destroyed_channel_cancels_and_drained_channel_finishes(make_plane: MakePlane) -> None:
    for drain in (False, True):
        with make_plane() as plane:
            length = 64 * _rig.MIB
            source, target = create_buffer(plane, length), create_buffer(plane, length)
            with Mapped(plane, source) as read, Mapped(plane, target) as written:
                read.bytes[-1] = 7
                rings = Rings(plane, slots=16)
                entry = _rig.copy_of(source.buffer_id, target.buffer_id, length)
                rings.put(rows_of(*([entry] * 8)))
                assert rings.enter(8).accepted == 8
                rings.unmap()
                limit = _rig.later() if drain else None
                answer = destroy(plane, _abi.CHANNEL_DESTROY, rings.id, drain_until=limit)
                _rig.expect(answer, 0)
                read.bytes[:] = 200
                snapshot = written.bytes[::4096].copy()
                time.sleep(0.02)
                assert (written.bytes[::4096] == snapshot).all(), "it still moves bytes"
                assert not (snapshot == 200).any()
                if drain:
                    assert written.bytes[-1] == 7, "drain did not finish the work"
            for made in (source, target):
                _rig.expect(destroy(plane, DESTROY, made.buffer_id), 0)


@case("L3")
def statistics_name_what_is_alive(make_plane: MakePlane) -> None:
    with make_plane() as plane:

        def now() -> tuple[int, int, int, int]:
            s = plane.statistics()
            return (s.buffers, s.buffer_bytes, s.mappings, s.channels)

        assert now() == (0, 0, 0, 0)
        made = create_buffer(plane, 8192)
        assert now()[:2] == (1, query_buffer(plane, made.buffer_id).length_bytes)
        with Mapped(plane, made), Rings(plane):
            assert now()[2:] == (2, 1)
        assert now()[2:] == (0, 0)
        _rig.expect(destroy(plane, DESTROY, made.buffer_id), 0)
        assert now() == (0, 0, 0, 0)

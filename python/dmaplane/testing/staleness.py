# SPDX-License-Identifier: MIT
"""L7: nothing stale is ever honoured. Ids are not reused; an old one gets an error."""

from __future__ import annotations

import ctypes
import errno

from dmaplane import _abi
from dmaplane.testing import _rig
from dmaplane.testing._case import MakePlane, case
from dmaplane.testing._rig import Mapped, Rings, copy_of, create_buffer, rows_of


@case("L7")
def ids_are_never_reused(make_plane: MakePlane) -> None:
    with make_plane() as plane:
        buffers: set[int] = set()
        channels: set[int] = set()
        for _ in range(300):
            made = create_buffer(plane)
            assert made.buffer_id not in buffers
            assert made.buffer_id > 0
            buffers.add(made.buffer_id)
            _rig.expect(_rig.destroy(plane, _abi.BUFFER_DESTROY, made.buffer_id), 0)
        for _ in range(60):
            rings = Rings(plane, slots=1)
            assert rings.id not in channels
            assert rings.id > 0
            channels.add(rings.id)
            rings.close()


@case("L7")
def stale_buffer_id_reaches_nothing(make_plane: MakePlane) -> None:
    with make_plane() as plane, Rings(plane) as rings:
        old, other = create_buffer(plane), create_buffer(plane)
        _rig.expect(_rig.destroy(plane, _abi.BUFFER_DESTROY, old.buffer_id), 0)
        successor = create_buffer(plane)
        with Mapped(plane, successor) as newest, Mapped(plane, other) as written:
            newest.bytes[:] = 5
            requests: tuple[tuple[int, ctypes.Structure], ...] = (
                (_abi.BUFFER_QUERY, _abi.BufferQuery(buffer_id=old.buffer_id)),
                (_abi.BUFFER_DESTROY, _abi.Destroy(id=old.buffer_id)),
                (
                    _abi.BUFFER_SYNC,
                    _abi.BufferSync(
                        flags=_abi.SYNC_FOR_READ, buffer_id=old.buffer_id, length_bytes=64
                    ),
                ),
                (_abi.BUFFER_EXPORT, _abi.BufferExport(buffer_id=old.buffer_id)),
            )
            for number, request in requests:
                _rig.expect(_rig.ask(plane, number, request), errno.ENOENT, errno.EOPNOTSUPP)
            done = rings.run(
                rows_of(
                    copy_of(old.buffer_id, other.buffer_id, 64),
                    copy_of(other.buffer_id, old.buffer_id, 64),
                    {"operation": _abi.OP_FILL, "target_id": old.buffer_id, "length_bytes": 64},
                )
            )
            assert set(_rig.results(done).values()) == {-errno.ENOENT}
            assert (newest.bytes == 5).all()
            assert not written.bytes.any()
            answer = plane._map(4096, _rig.BOTH, old.map_offset)
            _rig.expect(answer, errno.ENOENT, errno.EINVAL)


@case("L7")
def stale_channel_id_reaches_nothing(make_plane: MakePlane) -> None:
    with make_plane() as plane:
        rings = Rings(plane, slots=4)
        rings.close()
        with Rings(plane, slots=4) as successor:
            successor.put(rows_of({}))
            requests: tuple[tuple[int, ctypes.Structure], ...] = (
                (_abi.ENTER, _abi.Enter(channel_id=rings.id, submit_count=1)),
                (_abi.CANCEL, _abi.Cancel(channel_id=rings.id, flags=_abi.CANCEL_ALL)),
                (_abi.CHANNEL_QUERY, _abi.ChannelQuery(channel_id=rings.id)),
                (_abi.CHANNEL_DESTROY, _abi.Destroy(id=rings.id)),
                (_abi.STATISTICS, _abi.Statistics(scope=_abi.SCOPE_CHANNEL, id=rings.id)),
                (_abi.HISTOGRAM, _abi.Histogram(scope=_abi.SCOPE_CHANNEL, id=rings.id)),
            )
            for number, request in requests:
                _rig.expect(_rig.ask(plane, number, request), errno.ENOENT)
            assert successor.control.submit_head == 0


@case("L7")
def ids_of_one_plane_mean_nothing_on_another(make_plane: MakePlane) -> None:
    with make_plane() as first, make_plane() as second:
        made = [create_buffer(first) for _ in range(3)][-1]
        foreign = _abi.BufferQuery(buffer_id=made.buffer_id)
        _rig.expect(_rig.ask(second, _abi.BUFFER_QUERY, foreign), errno.ENOENT)


@case("L7")
def every_open_is_a_new_incarnation(make_plane: MakePlane) -> None:
    seen: set[int] = set()
    for _ in range(20):
        with make_plane() as plane:
            assert plane.incarnation not in seen
            seen.add(plane.incarnation)

# SPDX-License-Identifier: MIT
"""L12: nobody with the fd can crash a plane or reach memory that was not granted."""

from __future__ import annotations

import ctypes
import errno
import os
import random

import numpy as np

from dmaplane import _abi
from dmaplane.testing import _rig
from dmaplane.testing._case import MakePlane, case
from dmaplane.testing._rig import Mapped, Rings, create_buffer, rows_of


@case("L12")
def impossible_tail_is_a_protocol_error(make_plane: MakePlane) -> None:
    for tail in (9, 1 << 31, 0xFFFFFFFF):
        with make_plane() as plane, Rings(plane, slots=8) as rings, Rings(plane) as bystander:
            rings.control.submit_tail = tail
            _, answer = rings.try_enter(8)
            _rig.expect(answer, errno.EPROTO)
            assert _rig.results(bystander.run(rows_of({}))) == {1: 0}


@case("L12")
def impossible_completion_head_is_a_protocol_error(make_plane: MakePlane) -> None:
    for head in (1, 17, 1 << 31, (1 << 32) - 17):
        with make_plane() as plane, Rings(plane, slots=8) as rings, Rings(plane) as bystander:
            rings.control.complete_head = head
            rings.put(rows_of({}))
            _, answer = rings.try_enter(1, 1)
            _rig.expect(answer, errno.EPROTO)
            assert _rig.results(bystander.run(rows_of({}))) == {1: 0}


@case("L12")
def scribbled_plane_words_crash_nothing(make_plane: MakePlane) -> None:
    """The plane's own words lie in memory the user can write. It must not believe them."""
    chance = random.Random(6)
    with make_plane() as plane, Rings(plane) as bystander:
        for _ in range(50):
            rings = Rings(plane, slots=8)
            rings.put(rows_of({}, {}))
            for word in ("submit_head", "complete_tail", "submit_tail", "complete_head"):
                if chance.random() < 0.6:
                    setattr(rings.control, word, chance.getrandbits(32))
            for _ in range(3):
                request = _abi.Enter(
                    channel_id=rings.id,
                    submit_count=chance.choice((0, 1, 8, 0xFFFFFFFF)),
                    wait_count=chance.choice((0, 1)),
                    deadline_ns=1,
                )
                answer = _rig.ask(plane, _abi.ENTER, request)
                allowed = (0, errno.EPROTO, errno.EAGAIN, errno.ETIMEDOUT, errno.EINVAL)
                _rig.expect(answer, *allowed)
            rings.close()
        assert _rig.results(bystander.run(rows_of({}))) == {1: 0}
        assert plane.statistics().in_flight == 0


@case("L12")
def random_submissions_reach_only_granted_memory(make_plane: MakePlane) -> None:
    """Garbage in every field. Each completes; buffers never named keep their bytes."""
    chance = random.Random(7)
    with make_plane() as plane, Rings(plane, slots=64) as rings:
        guards = [create_buffer(plane, 65536) for _ in range(4)]
        named = [create_buffer(plane, 65536).buffer_id for _ in range(2)]
        mapped = [Mapped(plane, guard) for guard in guards]
        for guard in mapped:
            guard.bytes[:] = 0x5A
        forbidden = {guard.buffer_id for guard in guards}
        for _ in range(60):
            rows = np.frombuffer(chance.randbytes(64 * 64), dtype=_abi.SUBMISSION).copy()
            rows["user_data"] = np.arange(64)
            wild = np.array([chance.random() < 0.5 for _ in range(64)])
            rows["operation"][~wild] = chance.choice((0, 1, 2, 3))
            rows["flags"][~wild] &= 7
            rows["endpoint_id"][~wild] = 0
            for field in ("source_id", "target_id"):
                rows[field][~wild] = chance.choice(named)
                rows[field][np.isin(rows[field], list(forbidden))] = 0
            for field in ("source_offset", "target_offset", "length_bytes"):
                tame = np.array([chance.random() < 0.7 for _ in range(64)])
                rows[field][tame] %= 70_000
            rows["deadline_ns"] = 0
            done = rings.run(rows)
            assert set(_rig.results(done)) == set(range(64))
        for guard in mapped:
            assert (guard.bytes == 0x5A).all(), "a buffer nobody named was changed"
            guard.unmap()


@case("L12")
def rows_changed_after_entering_are_read_once(make_plane: MakePlane) -> None:
    """A row is what it was when it was accepted, whatever is written into the slot later."""
    length = 16 * _rig.MIB
    with make_plane() as plane, Rings(plane, slots=8) as rings:
        a, b = create_buffer(plane, length), create_buffer(plane, length)
        guard = create_buffer(plane, length)
        with Mapped(plane, guard) as guarded:
            entry = _rig.copy_of(a.buffer_id, b.buffer_id, length)
            rings.put(rows_of(*([entry] * 8)))
            assert rings.enter(8).accepted == 8
            rings.submissions["target_id"] = guard.buffer_id
            rings.submissions["length_bytes"] = (1 << 63) + 1
            with Mapped(plane, a) as read:
                read.bytes[:] = 3
            done = rings.take_exactly(8)
            assert not done["result"].any()
            assert not guarded.bytes.any()


@case("L12")
def random_commands_crash_nothing(make_plane: MakePlane) -> None:
    """Random structs at random commands; the plane still serves afterwards."""
    chance = random.Random(8)
    # kind USER names memory by address, which is the caller's own risk: not drawn here
    skipped = {"BUFFER_IMPORT", "BUFFER_CREATE", "CHANNEL_CREATE"}
    with make_plane() as plane:
        rings = Rings(plane)  # a random CHANNEL_DESTROY may end it
        ids = [0, 1, 2, 5, rings.id, create_buffer(plane).buffer_id]
        for _ in range(4000):
            command = chance.choice([one for one in _abi.COMMANDS if one.name not in skipped])
            size = ctypes.sizeof(command.struct)
            content = bytearray(chance.randbytes(size) if chance.random() < 0.5 else bytes(size))
            if chance.random() < 0.9:
                content[0:4] = size.to_bytes(4, "little")
                content[4:8] = chance.choice((0, 0, 1, 2)).to_bytes(4, "little")
                content[8:12] = chance.choice(ids).to_bytes(4, "little")
            else:
                content[0:4] = chance.randint(0, size).to_bytes(4, "little")
            if command.name in ("ENTER", "CANCEL"):
                content[-24:-16] = (1).to_bytes(8, "little")
            deadline = getattr(command.struct, "deadline_ns", None)
            if deadline is not None:
                content[deadline.offset : deadline.offset + 8] = (1).to_bytes(8, "little")
            room = ctypes.create_string_buffer(bytes(content), size)
            answer = plane.command(command.number, room)
            assert answer <= 0, f"{command.name}: {answer}"
            if answer == 0 and command.name == "BUFFER_EXPORT":
                os.close(_abi.BufferExport.from_buffer(room).fd)
        with Rings(plane) as fresh:
            assert _rig.results(fresh.run(rows_of({}))) == {1: 0}


@case("L12")
def mapping_beyond_the_object_is_refused(make_plane: MakePlane) -> None:
    with make_plane() as plane:
        made = create_buffer(plane, 8192)
        assert made.map_bytes >= 8192
        for length, offset in (
            (made.map_bytes + 4096, made.map_offset),
            (0, made.map_offset),
            (4096, made.map_offset + 1),
            (4096, 1 << 62),
            (1 << 60, made.map_offset),
        ):
            answer = plane._map(length, _rig.BOTH, offset)
            # ENOMEM: what mmap(2) says of a length that no address space has.
            allowed = (errno.EINVAL, errno.ENOENT, errno.EOVERFLOW)
            _rig.expect(answer, *allowed, *((errno.ENOMEM,) if length >> 47 else ()))
        _rig.expect(plane._unmap(0x1000, 4096), errno.EINVAL, errno.ENOENT)
        assert plane.statistics().mappings == 0

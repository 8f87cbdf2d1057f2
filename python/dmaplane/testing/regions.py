# SPDX-License-Identifier: MIT
"""Registered memory. L12: a peer reaches what was granted and no byte more. L9: wrong at once.

L3: what is registered is held. What happens when a grant is taken back is in revoking.py.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import random
from typing import TYPE_CHECKING

import numpy as np

from dmaplane import _abi
from dmaplane._plane import Capability
from dmaplane.testing import _pair, _rig
from dmaplane.testing._case import MakePlane, case, case_over_fabrics
from dmaplane.testing._pair import Memory, key_of, read, write, write_imm
from dmaplane.testing._rig import Rings, create_buffer, expect

if TYPE_CHECKING:
    from dmaplane._plane import Path, Plane

REGION = Capability.REGION
READ, WRITE = _abi.ACCESS_REMOTE_READ, _abi.ACCESS_REMOTE_WRITE
LOCAL = _abi.ACCESS_LOCAL_WRITE


def _create(
    plane: Plane, buffer: int, access: int, offset: int, length_bytes: int
) -> tuple[int, _abi.RegionCreate]:
    request = _abi.RegionCreate(
        buffer_id=buffer, access=access, offset=offset, length_bytes=length_bytes
    )
    return _rig.ask(plane, _abi.REGION_CREATE, request), request


def _query(plane: Plane, identity: int) -> _abi.RegionQuery:
    answer = _abi.RegionQuery(region_id=identity)
    expect(_rig.ask(plane, _abi.REGION_QUERY, answer), 0)
    return answer


@case("L3", needs=REGION)
def region_holds_its_buffer(make_plane: MakePlane) -> None:
    with make_plane() as plane:
        buffer = create_buffer(plane, 8192).buffer_id
        made = []
        for n in range(3):
            answer, region = _create(plane, buffer, READ | WRITE, 100 * n, 1000)
            expect(answer, 0)
            made.append(region)
            assert _rig.query_buffer(plane, buffer).regions == n + 1
            found = _query(plane, region.region_id)
            assert (found.state, found.buffer_id) == (_abi.STATE_LIVE, buffer)
            assert (found.offset, found.length_bytes) == (100 * n, 1000)
            assert (found.access, found.generation) == (READ | WRITE, region.generation)
            assert (found.endpoint_id, found.operations) == (0, 0)
        assert plane.statistics().regions == 3
        for region in made:
            expect(_rig.destroy(plane, _abi.BUFFER_DESTROY, buffer), errno.EBUSY)
            expect(_rig.destroy(plane, _abi.REGION_DESTROY, region.region_id), 0)
            expect(_rig.destroy(plane, _abi.REGION_DESTROY, region.region_id), errno.ENOENT)
        assert plane.statistics().regions == 0
        expect(_rig.destroy(plane, _abi.BUFFER_DESTROY, buffer), 0)


@case("L7", needs=REGION)
def generation_and_key_never_repeat(make_plane: MakePlane) -> None:
    with make_plane() as plane:
        buffer = create_buffer(plane, 4096).buffer_id
        generations: set[int] = set()
        keys: set[bytes] = set()
        ids: set[int] = set()
        for _ in range(200):
            answer, made = _create(plane, buffer, READ, 0, 4096)
            expect(answer, 0)
            assert made.generation not in generations
            assert key_of(made) not in keys
            assert made.region_id not in ids
            generations.add(made.generation)
            keys.add(key_of(made))
            ids.add(made.region_id)
            expect(_rig.destroy(plane, _abi.REGION_DESTROY, made.region_id), 0)


@case("L12", needs=REGION)
def wrong_region_is_refused(make_plane: MakePlane) -> None:
    with make_plane() as plane:
        buffer = create_buffer(plane, 8192).buffer_id
        overflow = (errno.EINVAL, errno.EOVERFLOW)
        wrong: tuple[tuple[tuple[int, int, int, int], tuple[int, ...]], ...] = (
            ((buffer, READ, 0, 0), (errno.EINVAL,)),
            ((buffer, READ, 0, 8193), (errno.EINVAL,)),
            ((buffer, READ, 8192, 1), (errno.EINVAL,)),
            ((buffer, READ, 1, 8192), (errno.EINVAL,)),
            ((buffer, READ, (1 << 64) - 8, 16), overflow),
            ((buffer, READ, 8, (1 << 64) - 8), overflow),
            ((buffer, 1 << 3, 0, 64), (errno.EINVAL,)),
            ((buffer, 1 << 31, 0, 64), (errno.EINVAL,)),
            ((4_000_000_000, READ, 0, 64), (errno.ENOENT,)),
            ((0, READ, 0, 64), (errno.ENOENT, errno.EINVAL)),
        )
        for arguments, wanted in wrong:
            answer, _ = _create(plane, *arguments)
            assert -answer in wanted, f"{arguments}: {_rig.name_of(answer)}"
        request = _abi.RegionQuery(region_id=buffer)
        expect(_rig.ask(plane, _abi.REGION_QUERY, request), errno.ENOENT)
        expect(_rig.destroy(plane, _abi.REGION_DESTROY, buffer), errno.ENOENT)
        assert plane.statistics().regions == 0
        assert _rig.query_buffer(plane, buffer).regions == 0


@case("L3", needs=REGION)
def draining_buffer_takes_no_region_and_waits_for_those_it_has(make_plane: MakePlane) -> None:
    with make_plane() as plane:
        buffer = create_buffer(plane, 8192).buffer_id
        answer, made = _create(plane, buffer, READ, 0, 64)
        expect(answer, 0)
        drain = _rig.destroy(plane, _abi.BUFFER_DESTROY, buffer, drain_until=_rig.later(0.02))
        expect(drain, errno.ETIMEDOUT)
        expect(_create(plane, buffer, READ, 0, 64)[0], errno.ESTALE)
        with _pair.Meanwhile(
            lambda: _rig.destroy(plane, _abi.BUFFER_DESTROY, buffer, drain_until=_rig.later())
        ) as draining:
            expect(_rig.destroy(plane, _abi.REGION_DESTROY, made.region_id), 0)
            expect(draining.answer(), 0, errno.ENOENT)


def _pages(count: int) -> tuple[mmap.mmap, int]:
    area = mmap.mmap(-1, count * mmap.PAGESIZE)
    return area, int(np.frombuffer(area, np.uint8).ctypes.data)


def _take_away(address: int, length_bytes: int) -> None:
    """Pages under whoever has them. The range stays ours: nobody else's memory lands in it."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    assert libc.mprotect(address, length_bytes, 0) == 0


@case("L9", needs=REGION | Capability.USER)
def memory_that_is_gone_fails_at_registration(make_plane: MakePlane) -> None:
    """User memory that is no longer mapped. Where a plane pins it, it is still there."""
    page = mmap.PAGESIZE
    with make_plane() as plane:
        for first, count in ((0, 8), (0, 1), (7, 1), (3, 1)):
            area, address = _pages(8)
            area.write(bytes(8 * page))
            made = create_buffer(plane, 8 * page, kind=_abi.KIND_USER, user_addr=address)
            _take_away(address + first * page, count * page)
            answer, region = _create(plane, made.buffer_id, READ | WRITE, 0, 8 * page)
            if answer == 0:  # pinned: proved by what the canary just read and wrote
                expect(_rig.destroy(plane, _abi.REGION_DESTROY, region.region_id), 0)
            else:
                expect(answer, errno.EFAULT)
                assert plane.statistics().regions == 0
                assert _rig.query_buffer(plane, made.buffer_id).regions == 0
                clear = (0, first) if first else (count, 8 - count)
                if clear[1]:
                    there = (clear[0] * page, clear[1] * page)
                    answer, region = _create(plane, made.buffer_id, READ | WRITE, *there)
                    expect(answer, 0)
                    expect(_rig.destroy(plane, _abi.REGION_DESTROY, region.region_id), 0)
            expect(_rig.destroy(plane, _abi.BUFFER_DESTROY, made.buffer_id), 0)


@case("L9", needs=REGION | Capability.USER)
def read_only_memory_is_not_registered_for_writing(make_plane: MakePlane) -> None:
    page = mmap.PAGESIZE
    area, address = _pages(2)
    area.write(bytes(2 * page))
    refused = (errno.EPERM, errno.EACCES, errno.EFAULT, errno.EINVAL)
    with make_plane() as plane:
        made = create_buffer(
            plane,
            2 * page,
            kind=_abi.KIND_USER,
            user_addr=address,
            flags=_abi.BUFFER_READ_ONLY,
        )
        for access in (WRITE, READ | WRITE, LOCAL):
            answer, _ = _create(plane, made.buffer_id, access, 0, 2 * page)
            assert -answer in refused, f"access {access}: {_rig.name_of(answer)}"
        answer, region = _create(plane, made.buffer_id, READ, 0, 2 * page)
        expect(answer, 0)
        expect(_rig.destroy(plane, _abi.REGION_DESTROY, region.region_id), 0)
        expect(_rig.destroy(plane, _abi.BUFFER_DESTROY, made.buffer_id), 0)


@case("L9", needs=REGION)
def canary_leaves_the_bytes_as_they_were(make_plane: MakePlane) -> None:
    with make_plane() as plane:
        memory = Memory(plane, 1 << 20)
        memory.scramble(1)
        before = memory.bytes.copy()
        for offset, length in ((0, 1 << 20), (1, 4095), (4095, 2), (77, 1)):
            for access in (READ, WRITE, READ | WRITE | LOCAL, 0):
                answer, region = _create(plane, memory.id, access, offset, length)
                expect(answer, 0, *((errno.EINVAL,) if not access else ()))
                if answer == 0:
                    expect(_rig.destroy(plane, _abi.REGION_DESTROY, region.region_id), 0)
        assert (memory.bytes == before).all()


@case_over_fabrics("L12")
def right_that_was_not_granted_is_eacces(make_plane: MakePlane, path: Path) -> None:
    with _pair.connected(make_plane, path) as (near, far):
        target, mine = far.memory(4096, fill=5), near.memory(4096, fill=6)
        for access in (READ, WRITE, READ | WRITE, LOCAL):
            made = far.region(target, access)
            answer, imported = near.try_import(key_of(made))
            if answer:
                expect(answer, errno.EACCES)  # a grant of nothing need not be taken
                assert access == LOCAL
                continue
            assert imported.access & (READ | WRITE) == access & (READ | WRITE)
            assert imported.length_bytes == 4096
            remote = imported.region_id
            wanted = 0 if access & WRITE else -errno.EACCES
            for entry in (write(mine, remote, 64), write_imm(mine, remote, 64, 1)):
                assert near.result(entry) == wanted, f"access {access}"
            wanted = 0 if access & READ else -errno.EACCES
            assert near.result(read(near.memory(4096), remote, 64)) == wanted, f"access {access}"
            if not access & WRITE:
                assert (target.bytes == 5).all()
            target.bytes[:] = 5
            if access & WRITE:
                far.event(_abi.EVENT_WRITE_IMM)
            expect(near.destroy_region(remote), 0)
            far.revoke(made)
        assert not far.events


@case_over_fabrics("L12")
def forged_key_is_refused(make_plane: MakePlane, path: Path) -> None:
    """Any byte of a key that is changed makes it a key to nothing."""
    chance = random.Random(31)
    refused = (errno.EACCES, errno.ESTALE, errno.EINVAL, errno.ENOENT)
    with _pair.connected(make_plane, path) as (near, far):
        target = far.memory(8192, fill=5)
        key = key_of(far.region(target, READ | WRITE, 0, 4096))
        for place in range(len(key)):
            forged = bytearray(key)
            forged[place] ^= 1 << chance.randrange(8)
            answer, _ = near.try_import(bytes(forged))
            assert -answer in refused, f"byte {place}: {_rig.name_of(answer)}"
        for forged_key in (b"", key[:-1], key[: len(key) // 2], bytes(len(key)), bytes(64)):
            answer, _ = near.try_import(forged_key)
            assert -answer in refused, f"{len(forged_key)} bytes: {_rig.name_of(answer)}"
        request = _abi.RegionImport(endpoint_id=near.endpoint, key_bytes=65)
        expect(_rig.ask(near.plane, _abi.REGION_IMPORT, request), errno.EINVAL)
        request = _abi.RegionImport(endpoint_id=4_000_000_000, key_bytes=len(key))
        _pair.blob(request.key, key)
        expect(_rig.ask(near.plane, _abi.REGION_IMPORT, request), errno.ENOENT)
        # A key of our own: the peer does not know it.
        own = key_of(near.region(near.memory(4096)))
        assert -near.try_import(own)[0] in refused
        assert near.query().state == _abi.STATE_LIVE
        answer, imported = near.try_import(key)
        expect(answer, 0)
        assert near.result(write(near.memory(64, fill=6), imported.region_id, 64)) == 0
        assert (target.bytes[:64] == 6).all()
        assert (target.bytes[64:] == 5).all()
        assert near.plane.statistics().regions == 2


@case_over_fabrics("L12")
def region_of_another_connection_is_refused(make_plane: MakePlane, path: Path) -> None:
    """Imported on one endpoint it is nothing on another, of the same peer or not."""
    refused = (errno.EINVAL, errno.ENOENT, errno.EACCES)
    with make_plane() as one, make_plane() as other, make_plane() as third:
        near = (one, Rings(one))
        ends = [(other, Rings(other)), (third, Rings(third))]
        first, far = _pair.join(near, ends[0], path)
        second, _ = _pair.join(near, ends[0], path)
        foreign, _ = _pair.join(near, ends[1], path)
        target, mine = far.memory(4096, fill=5), first.memory(4096, fill=6)
        remote = first.import_region(far.region(target))
        for side in (second, foreign):
            for entry in (
                write(mine, remote, 64),
                write_imm(mine, remote, 64, 1),
                read(mine, remote, 64),
            ):
                got = side.result(entry)
                assert -got in refused, _rig.name_of(got)
        answer, _ = foreign.try_import(key_of(far.region(target)))
        expect(answer, errno.EACCES, errno.ESTALE)
        assert (target.bytes == 5).all()
        assert (mine.bytes == 6).all()
        for side in (first, second, foreign):
            assert side.query().state == _abi.STATE_LIVE
        assert first.result(write(mine, remote, 64)) == 0


@case_over_fabrics("L3")
def imported_region_is_a_holder_of_its_endpoint(make_plane: MakePlane, path: Path) -> None:
    with _pair.connected(make_plane, path) as (near, far):
        target = far.memory(4096)
        made = far.region(target, READ)
        ids = [near.import_region(made) for _ in range(3)]
        assert near.query().regions == 3
        assert len(set(ids)) == 3
        for n, identity in enumerate(ids):
            found = _query(near.plane, identity)
            assert (found.endpoint_id, found.buffer_id) == (near.endpoint, 0)
            assert (found.access, found.length_bytes) == (READ, 4096)
            assert found.generation == made.generation
            assert near.result(read(near.memory(64), identity, 64)) == 0
            expect(near.destroy_region(identity), 0)
            assert near.query().regions == 2 - n
            got = near.result(read(near.memory(64), identity, 64))
            expect(got, errno.ENOENT)
        assert far.plane.statistics().regions == 1
        far.revoke(made)


@case_over_fabrics("L12")
def neighbours_of_a_region_are_out_of_reach(make_plane: MakePlane, path: Path) -> None:
    """Many regions in one buffer, granted one each; writes at every edge stay in theirs."""
    size = 1000
    with _pair.connected(make_plane, path) as (near, far):
        target, mine = far.memory(16 * size), near.memory(2 * size, fill=7)
        for n in range(0, 16, 2):
            made = far.region(target, READ | WRITE, n * size, size)
            remote = near.import_region(made)
            for offset, length, good in (
                (0, size, True),
                (size - 1, 1, True),
                (size - 1, 2, False),
                (0, size + 1, False),
                (size, 1, False),
            ):
                for entry in (
                    write(mine, remote, length, target_offset=offset),
                    read(mine, remote, length, source_offset=offset),
                ):
                    got = near.result(entry)
                    expect(got, 0 if good else errno.EINVAL)
            expect(near.destroy_region(remote), 0)
            far.revoke(made)
        blocks = target.bytes[: 16 * size].reshape(16, size)
        assert (blocks[::2] == 7).all()
        assert not blocks[1::2].any()

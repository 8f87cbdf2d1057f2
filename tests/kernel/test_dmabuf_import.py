# SPDX-License-Identifier: MIT
"""dma-bufs of drivers nobody here wrote, as buffers of ours: vgem, udmabuf, the system heap.

L3, L7 and L12. Bytes are compared on both sides, through mappings and through COPY. The
stand-in is the driver that moves its memory; an import of it is revoked.
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Final

import foreign
import pytest
from driver import Driver
from sharing import (
    LENGTH,
    MIB,
    PAGE,
    content,
    copied,
    destroy,
    export,
    imported,
    noise,
    put,
    revoked,
    try_export,
    try_import,
)

import dmaplane
from dmaplane import _abi
from dmaplane.testing import _rig


@pytest.fixture
def plane() -> Iterator[dmaplane.Plane]:
    with dmaplane.open(plane="kernel") as made:
        yield made


@pytest.fixture
def other() -> Iterator[dmaplane.Plane]:
    with dmaplane.open(plane="kernel") as made:
        yield made


@pytest.fixture
def vgem() -> Iterator[foreign.Vgem]:
    driver = foreign.Vgem()
    yield driver
    driver.close()


@pytest.fixture(scope="module", autouse=True)
def stand_in(standin: Callable[[str], Driver]) -> Iterator[None]:
    """foreign.Exporter can be opened."""
    module = standin("dmabuf_exporter")
    module.load()
    yield
    assert module.wait_users(0, _rig.PATIENCE_S), "somebody still holds the stand-in"
    module.unload()


@pytest.fixture
def mover() -> Iterator[foreign.Exporter]:
    with foreign.Exporter() as made:
        yield made


FOREIGN: Final = ("vgem", "udmabuf", "heap", "mover")


@pytest.fixture(params=FOREIGN)
def make_foreign(request: pytest.FixtureRequest) -> Callable[[int], int]:
    """Each driver that makes dma-bufs: length -> fd."""
    if request.param in ("udmabuf", "heap"):
        maker: Callable[[int], int] = getattr(foreign, request.param)
        return maker
    made: Callable[[int], int] = request.getfixturevalue(request.param).create
    return made


# ---- theirs, here


def test_foreign_memory_is_a_buffer_like_any_other(
    plane: dmaplane.Plane, make_foreign: Callable[[int], int]
) -> None:
    fd = make_foreign(LENGTH)
    twin = imported(plane, fd)
    assert twin.length_bytes == LENGTH
    own = _rig.create_buffer(plane, LENGTH)
    put(plane, own, noise(LENGTH))
    # Into it by COPY, seen through both mappings; back through COPY from what they wrote.
    assert copied(plane, own.buffer_id, twin.buffer_id, LENGTH) == 0
    with foreign.mapped(fd, LENGTH) as there:
        assert there[:] == noise(LENGTH)
        assert content(plane, twin) == noise(LENGTH)
        there[:] = noise(LENGTH, 2)
    assert copied(plane, twin.buffer_id, own.buffer_id, LENGTH) == 0
    assert content(plane, own) == noise(LENGTH, 2)
    put(plane, twin, noise(LENGTH, 3))
    with foreign.mapped(fd, LENGTH) as there:
        assert there[:] == noise(LENGTH, 3)
    # Both first: udmabuf keeps the direction of the first time, and syncs every way after it.
    for flags in (3, _abi.SYNC_FOR_READ, _abi.SYNC_FOR_WRITE):
        for end in (0, _abi.SYNC_END):
            request = _abi.BufferSync(
                buffer_id=twin.buffer_id, flags=flags | end, length_bytes=LENGTH
            )
            _rig.expect(_rig.ask(plane, _abi.BUFFER_SYNC, request), 0)
    found = _rig.query_buffer(plane, twin.buffer_id)
    assert (found.kind, found.placement) == (_abi.KIND_IMPORTED, _abi.PLACEMENT_UNKNOWN)
    os.close(fd)
    assert copied(plane, twin.buffer_id, own.buffer_id, PAGE) == 0, "the import does not hold it"
    _rig.expect(destroy(plane, twin.buffer_id), 0)


def test_foreign_memory_exported_again_is_the_same_dmabuf(
    plane: dmaplane.Plane, make_foreign: Callable[[int], int]
) -> None:
    fd = make_foreign(PAGE)
    twin = imported(plane, fd)
    again = export(plane, twin.buffer_id)
    assert os.path.sameopenfile(fd, again)
    _rig.expect(try_export(plane, twin.buffer_id, _abi.EXPORT_READ_ONLY), errno.EOPNOTSUPP)
    os.close(fd)
    _rig.expect(destroy(plane, twin.buffer_id), 0)
    with foreign.mapped(again, PAGE) as there:
        there[:] = noise(PAGE)
    os.close(again)


def test_mappings_of_foreign_memory_hold_it_as_often_as_they_are_split_and_forked(
    plane: dmaplane.Plane, make_foreign: Callable[[int], int]
) -> None:
    fd = make_foreign(4 * PAGE)
    twin = imported(plane, fd)
    os.close(fd)
    libc = ctypes.CDLL(None, use_errno=True)

    def mappings() -> int:
        assert plane.statistics().mappings == _rig.query_buffer(plane, twin.buffer_id).mappings
        return plane.statistics().mappings

    address = plane._map(4 * PAGE, _rig.BOTH, twin.map_offset)
    assert address > 0
    assert mappings() == 1
    _rig.expect(destroy(plane, twin.buffer_id), errno.EBUSY)
    # A hole in the middle leaves two.
    assert libc.munmap(ctypes.c_void_p(address + PAGE), ctypes.c_size_t(PAGE)) == 0
    assert mappings() == 2

    def body(told: socket.socket) -> None:
        (ctypes.c_ubyte * PAGE).from_address(address)[0] = 17
        told.sendall(b"wrote")
        told.recv(1)

    with _rig.Child(body) as child:
        assert child.hear() == b"wrote"
        assert mappings() == 4
        assert (ctypes.c_ubyte * PAGE).from_address(address)[0] == 17
        child.socket.sendall(b".")
        child.join()
    _rig.wait_until(lambda: mappings() == 2, _rig.SECOND, "the child's mappings end")
    assert libc.munmap(ctypes.c_void_p(address + 2 * PAGE), ctypes.c_size_t(2 * PAGE)) == 0
    assert mappings() == 1
    _rig.expect(plane._unmap(address, PAGE), 0)
    assert mappings() == 0
    _rig.expect(destroy(plane, twin.buffer_id), 0)


def test_plane_closed_with_foreign_memory_mapped_lets_go_at_the_last_unmap(
    mover: foreign.Exporter, driver: Driver
) -> None:
    before = driver.users
    fd = mover.create(PAGE)
    libc = ctypes.CDLL(None, use_errno=True)
    with dmaplane.open(plane="kernel") as plane:
        twin = imported(plane, fd)
        os.close(fd)
        address = plane._map(PAGE, _rig.BOTH, twin.map_offset)
        assert address > 0
        plane._mapped.clear()  # type: ignore[attr-defined]
    assert driver.users > before
    assert mover.look().counts()[:2] == (1, 1)
    (ctypes.c_ubyte * PAGE).from_address(address)[0] = 1
    assert libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(PAGE)) == 0
    _rig.wait_until(lambda: driver.users == before, _rig.SECOND, "the module is let go")
    assert mover.look().counts() == (0, 0, 0, 0)


def test_foreign_memory_imported_read_only_is_not_written(
    plane: dmaplane.Plane, make_foreign: Callable[[int], int]
) -> None:
    fd = make_foreign(PAGE)
    with foreign.mapped(fd, PAGE) as there:
        there[:] = noise(PAGE)
    twin = imported(plane, fd, _abi.IMPORT_READ_ONLY)
    own = _rig.create_buffer(plane, PAGE)
    _rig.expect(plane._map(PAGE, _rig.BOTH, twin.map_offset), errno.EPERM, errno.EACCES)
    assert content(plane, twin, _rig.READ) == noise(PAGE)
    assert copied(plane, own.buffer_id, twin.buffer_id, PAGE) in (-errno.EPERM, -errno.EACCES)
    assert copied(plane, twin.buffer_id, own.buffer_id, PAGE) == 0
    assert content(plane, own) == noise(PAGE)
    _rig.expect(try_export(plane, twin.buffer_id), errno.EPERM)
    os.close(fd)


def test_memory_without_a_kernel_address_is_shared_but_not_copied(
    plane: dmaplane.Plane, mover: foreign.Exporter
) -> None:
    fd = mover.create(PAGE, mover.BARE)
    twin = imported(plane, fd)
    own = _rig.create_buffer(plane, PAGE)
    assert copied(plane, own.buffer_id, twin.buffer_id, PAGE) == -errno.EOPNOTSUPP
    assert copied(plane, twin.buffer_id, own.buffer_id, PAGE) == -errno.EOPNOTSUPP
    _rig.expect(plane._map(PAGE, _rig.BOTH, twin.map_offset), errno.EOPNOTSUPP)
    _rig.expect(destroy(plane, twin.buffer_id), 0)
    os.close(fd)


@pytest.mark.parametrize("flags", [0, foreign.Exporter.RELUCTANT], ids=["pinned", "unpinned"])
def test_import_takes_one_of_each_and_gives_all_back(
    plane: dmaplane.Plane, mover: foreign.Exporter, flags: int
) -> None:
    fd = mover.create(5 * PAGE, flags)
    twin = imported(plane, fd)
    attached, mapped, pinned, addressed = mover.look().counts()
    assert (attached, mapped, addressed) == (1, 1, 1)
    assert pinned <= (1 if flags else 2)
    os.close(fd)
    _rig.expect(destroy(plane, twin.buffer_id), 0)
    assert mover.look().counts() == (0, 0, 0, 0)


# ---- taken away


def test_moved_memory_is_revoked_and_its_old_pages_are_left_alone(
    plane: dmaplane.Plane, mover: foreign.Exporter
) -> None:
    length = 4 * MIB
    fd = mover.create(length)
    twin = imported(plane, fd)
    own = _rig.create_buffer(plane, length)
    put(plane, own, bytes([1]) * length)
    with _rig.Rings(plane, slots=64) as rings, _rig.Mapped(plane, twin) as there:
        copy = _rig.copy_of(own.buffer_id, twin.buffer_id, length)
        rings.put(_rig.rows_of(*[copy] * 32))
        rings.enter(32)
        mover.move()
        # Nobody writes to the old pages any more: not the copies, not our mapping.
        assert mover.look().changed_bytes == 0
        there.bytes[:PAGE] = 9
        done = rings.take_exactly(32 + 1)
        events = done[done["flags"] & _abi.COMPLETE_EVENT != 0]
        assert [int(row["user_data"]) for row in events] == [twin.buffer_id]
        answers = {int(row["result"]) for row in done}
        assert answers <= {0, -errno.ESTALE}
        assert -errno.ESTALE in answers, "all copies were over before the move: nothing shown"
        assert mover.look().changed_bytes == 0
        assert copied(plane, own.buffer_id, twin.buffer_id, PAGE) == -errno.ESTALE
        assert _rig.query_buffer(plane, twin.buffer_id).state == _abi.STATE_REVOKED
    # The device is off them too; what was mapped is the exporter's, and went on in new pages.
    attached, mapped, _, _ = mover.look().counts()
    assert (attached, mapped) == (1, 0)
    with foreign.mapped(fd, PAGE) as direct:
        assert direct[:] == bytes([9]) * PAGE
    os.close(fd)
    _rig.expect(destroy(plane, twin.buffer_id), 0)
    assert mover.look().counts() == (0, 0, 0, 0)


def test_every_import_of_moved_memory_hears_of_it(
    plane: dmaplane.Plane, other: dmaplane.Plane, mover: foreign.Exporter
) -> None:
    fd = mover.create(PAGE)
    twins = [(where, imported(where, fd)) for where in (plane, plane, other)]
    bystander = _rig.create_buffer(plane, PAGE)
    with _rig.Rings(plane) as rings, _rig.Rings(other) as others:
        mover.move()
        revoked(other, others, twins[2][1].buffer_id)
        seen: list[int] = []

        def heard() -> bool:
            rings.try_enter(0, 1, _rig.later(0.01))
            seen.extend(int(entry["user_data"]) for entry in rings.take())
            return len(seen) == 2

        _rig.wait_until(heard, _rig.PATIENCE_S, "both events")
        assert sorted(seen) == sorted(twin.buffer_id for _, twin in twins[:2])
    assert _rig.query_buffer(plane, bystander.buffer_id).state == _abi.STATE_LIVE
    # What is imported afterwards has the new pages.
    fresh = imported(plane, fd)
    put(plane, fresh, noise(PAGE))
    with foreign.mapped(fd, PAGE) as there:
        assert there[:] == noise(PAGE)
    assert mover.look().changed_bytes == 0
    for where, twin in twins:
        _rig.expect(destroy(where, twin.buffer_id), 0)
    os.close(fd)


def test_move_while_buffers_come_and_go_finds_no_gap(plane: dmaplane.Plane) -> None:
    """Import, copy, map and destroy race with a move of the same dma-buf, many times."""
    own = _rig.create_buffer(plane, 64 * PAGE)
    put(plane, own, bytes([1]) * 64 * PAGE)
    answers: set[int] = set()
    with _rig.Rings(plane, slots=16, completion_slots=1024) as rings:
        for turn in range(40):
            with foreign.Exporter() as mover:
                fd = mover.create(64 * PAGE)
                moving = threading.Timer(random.Random(turn).random() * 0.02, mover.move)
                moving.start()
                for _ in range(6):
                    answer, twin = try_import(plane, fd)
                    _rig.expect(answer, 0, errno.ESTALE)
                    if answer:
                        continue
                    rows = _rig.rows_of(
                        *[_rig.copy_of(own.buffer_id, twin.buffer_id, 64 * PAGE)] * 3
                    )
                    rings.put(rows)
                    rings.enter(3, 3)
                    done = rings.take()
                    answers |= {
                        int(row["result"]) for row in done if not row["flags"] & _abi.COMPLETE_EVENT
                    }
                    _rig.expect(destroy(plane, twin.buffer_id, _rig.later()), 0)
                moving.join()
                os.close(fd)
                assert mover.look().changed_bytes == 0
                assert mover.look().counts() == (0, 0, 0, 0)
    assert answers <= {0, -errno.ESTALE}


# ---- wrong


def test_what_is_no_dmabuf_is_refused(plane: dmaplane.Plane) -> None:
    read, write = os.pipe()
    memory = os.memfd_create("memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(memory, PAGE)
    device = os.open("/dev/dmaplane", os.O_RDWR | os.O_CLOEXEC)
    for fd in (read, write, memory, device):
        _rig.expect(try_import(plane, fd)[0], errno.EINVAL)
        os.close(fd)
    for fd in (-1, 1_000_000, memory):
        _rig.expect(try_import(plane, fd)[0], errno.EINVAL)
    assert plane.statistics().buffers == 0

# SPDX-License-Identifier: MIT
"""Export and import: one buffer, several processes (A4 of the mission; L3, L4, L12)."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import socket
import time
from typing import TYPE_CHECKING

from dmaplane import _abi
from dmaplane._plane import Capability
from dmaplane.testing import _rig
from dmaplane.testing._case import MakePlane, case
from dmaplane.testing._rig import MIB, Child, Mapped, Rings, copy_of, create_buffer, rows_of

if TYPE_CHECKING:
    from dmaplane._plane import Plane


def _export(plane: Plane, identity: int, flags: int = 0) -> int:
    fd = _rig.export_buffer(plane, identity, flags)
    assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    return fd


def _import(plane: Plane, fd: int, flags: int = 0) -> tuple[int, _abi.BufferImport]:
    request = _abi.BufferImport(fd=fd, flags=flags)
    return _rig.ask(plane, _abi.BUFFER_IMPORT, request), request


def _imported(plane: Plane, fd: int, flags: int = 0) -> _abi.BufferImport:
    answer, made = _import(plane, fd, flags)
    _rig.expect(answer, 0)
    return made


@case("L3", needs=_rig.SHARES)
def imported_buffer_is_the_same_memory(make_plane: MakePlane) -> None:
    with make_plane() as plane, make_plane() as other:
        made = create_buffer(plane, 8192)
        fd = _export(plane, made.buffer_id)
        for where in (plane, other):
            twin = _imported(where, fd)
            assert twin.length_bytes == 8192
            with Mapped(plane, made) as here, Mapped(where, twin) as there:
                here.bytes[5] = 55
                assert there.bytes[5] == 55
                there.bytes[6] = 66
                assert here.bytes[6] == 66
            assert _rig.query_buffer(where, twin.buffer_id).kind == _abi.KIND_IMPORTED
            _rig.expect(_rig.destroy(where, _abi.BUFFER_DESTROY, twin.buffer_id), 0)
        os.close(fd)


@case("L3", needs=_rig.SHARES)
def exported_memory_outlives_its_buffer(make_plane: MakePlane) -> None:
    with make_plane() as other:
        with make_plane() as plane:
            made = create_buffer(plane, 8192)
            with Mapped(plane, made) as here:
                here.bytes[:] = 77
            fd = _export(plane, made.buffer_id)
        twin = _imported(other, fd)
        os.close(fd)
        with Mapped(other, twin) as there:
            assert (there.bytes == 77).all()


@case("L4", needs=_rig.SHARES)
def buffer_works_across_processes_and_survives_kill(make_plane: MakePlane) -> None:
    """The child imports, copies into the shared buffer, and is killed in the middle of it."""
    with make_plane() as plane:
        made = create_buffer(plane, 32 * MIB)
        fd = _export(plane, made.buffer_id)

        def body(told: socket.socket) -> None:
            mine = make_plane()
            twin = _imported(mine, fd)
            own = create_buffer(mine, 32 * MIB)
            Mapped(mine, own).bytes[:] = 0x77
            rings = Rings(mine, slots=8)
            copy = copy_of(own.buffer_id, twin.buffer_id, 32 * MIB)
            assert set(_rig.results(rings.run(rows_of(copy))).values()) == {0}
            told.sendall(b"copied")
            while True:
                rings.run(rows_of(copy))

        with Child(body) as child, Mapped(plane, made) as here:
            assert child.hear() == b"copied"
            assert (here.bytes == 0x77).all()
            child.kill()
            here.bytes[:] = 1
            time.sleep(0.02)
            assert (here.bytes == 1).all(), "a dead process still writes"
        os.close(fd)
        with contextlib.suppress(AssertionError):
            _rig.wait_until(
                lambda: _rig.query_buffer(plane, made.buffer_id).exports == 0,
                _rig.SECOND,
                "exports",
            )
        _rig.expect(_rig.destroy(plane, _abi.BUFFER_DESTROY, made.buffer_id), 0)


@case("L12", needs=_rig.SHARES)
def read_only_export_cannot_be_written(make_plane: MakePlane) -> None:
    with make_plane() as plane, make_plane() as other, Rings(other) as rings:
        made = create_buffer(plane, 4096)
        fd = _export(plane, made.buffer_id, _abi.EXPORT_READ_ONLY)
        try:
            mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE).close()
        except PermissionError:
            pass
        else:
            raise AssertionError("a read-only export could be mapped for writing")
        answer, _ = _import(other, fd)
        _rig.expect(answer, errno.EPERM)
        twin = _imported(other, fd, _abi.IMPORT_READ_ONLY)
        _rig.expect(other._map(4096, _rig.BOTH, twin.map_offset), errno.EPERM, errno.EACCES)
        own = create_buffer(other, 4096)
        with Mapped(plane, made) as here, Mapped(other, twin, _rig.READ) as there:
            here.bytes[:] = 3
            assert (there.bytes == 3).all()
            done = rings.run(
                rows_of(
                    copy_of(own.buffer_id, twin.buffer_id, 64),
                    copy_of(twin.buffer_id, own.buffer_id, 64),
                )
            )
            found = _rig.results(done)
            assert -found[1] in (errno.EPERM, errno.EACCES), _rig.name_of(found[1])
            assert found[2] == 0
            assert (here.bytes == 3).all()
        os.close(fd)


@case("L12", needs=Capability.IMPORT)
def memory_file_that_could_shrink_is_refused(make_plane: MakePlane) -> None:
    with make_plane() as plane:
        unsealed = os.memfd_create("unsealed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(unsealed, 4096)
        answer, _ = _import(plane, unsealed)
        _rig.expect(answer, errno.EPERM)
        os.close(unsealed)
        empty = os.memfd_create("empty", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        fcntl.fcntl(empty, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        answer, _ = _import(plane, empty)
        _rig.expect(answer, errno.EINVAL)
        os.close(empty)
        assert plane.statistics().buffers == 0


@case("L12", needs=_rig.IMPORTS)
def fd_that_is_no_memory_is_refused(make_plane: MakePlane) -> None:
    with make_plane() as plane:
        read, write = os.pipe()
        for fd in (read, write, -1, 1_000_000):
            answer, _ = _import(plane, fd)
            _rig.expect(answer, errno.EINVAL, errno.EBADF)
        os.close(read)
        os.close(write)
        for path, mode in ((__file__, os.O_RDONLY), ("/dev/zero", os.O_RDWR)):
            fd = os.open(path, mode | os.O_CLOEXEC)
            answer, _ = _import(plane, fd)
            _rig.expect(answer, errno.EINVAL, errno.EPERM)
            os.close(fd)
        assert plane.statistics().buffers == 0


@case("L12", needs=Capability.EXPORT)
def export_can_neither_shrink_nor_grow(make_plane: MakePlane) -> None:
    with make_plane() as plane:
        made = create_buffer(plane, 8192)
        fd = _export(plane, made.buffer_id)
        for length in (0, 4096, 1 << 20):
            try:
                os.ftruncate(fd, length)
            except OSError:
                continue
            raise AssertionError(f"the exported memory could be resized to {length}")
        os.close(fd)


@case("L12", needs=Capability.USER)
def user_memory_is_used_in_place(make_plane: MakePlane) -> None:
    memory = bytearray(70_001)
    address = _address_of(memory)
    with make_plane() as plane, Rings(plane) as rings:
        user = create_buffer(plane, 70_000, kind=_abi.KIND_USER, user_addr=address + 1)
        other = create_buffer(plane, 80_000)
        with Mapped(plane, other) as mapped:
            mapped.bytes[:] = 8
            copy = copy_of(other.buffer_id, user.buffer_id, 69_000, target_offset=500)
            assert _rig.results(rings.run(rows_of(copy))) == {1: 0}
            assert memory[501:69_501] == b"\x08" * 69_000
            assert not any(memory[:501])
            assert not any(memory[69_501:])
        too_long = copy_of(other.buffer_id, user.buffer_id, 70_001)
        assert _rig.results(rings.run(rows_of(too_long))) == {1: -errno.EINVAL}
        read_only = create_buffer(
            plane, 64, kind=_abi.KIND_USER, user_addr=address, flags=_abi.BUFFER_READ_ONLY
        )
        found = _rig.results(
            rings.run(
                rows_of(
                    copy_of(read_only.buffer_id, other.buffer_id, 64),
                    copy_of(other.buffer_id, read_only.buffer_id, 64),
                )
            )
        )
        assert found[1] == 0
        assert -found[2] in (errno.EPERM, errno.EACCES), _rig.name_of(found[2])


@case("L12", needs=Capability.USER)
def user_memory_that_is_not_mapped_is_efault(make_plane: MakePlane) -> None:
    with make_plane() as plane:
        area = mmap.mmap(-1, 8192)
        address = _address_of(area)
        area.close()
        for where in (0, 8, address, (1 << 64) - 4096):
            request = _abi.BufferCreate(
                length_bytes=4096, kind=_abi.KIND_USER, node=-1, user_addr=where
            )
            answer = _rig.ask(plane, _abi.BUFFER_CREATE, request)
            _rig.expect(answer, errno.EFAULT, errno.EINVAL, errno.EOVERFLOW, errno.EPERM)


def _address_of(memory: bytearray | mmap.mmap) -> int:
    import numpy as np

    return int(np.frombuffer(memory, np.uint8).ctypes.data)

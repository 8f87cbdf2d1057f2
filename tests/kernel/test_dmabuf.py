# SPDX-License-Identifier: MIT
"""Our dma-bufs with drivers nobody here wrote: who holds what, for how long, and may do what.

L3, L4, L7 and L12. vgem is the kernel's own; the stand-in imports in the ways vgem does not.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import random
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import foreign
import numpy as np
import pytest
from driver import Driver
from ivshmem import BAR, Ivshmem
from sharing import (
    LENGTH,
    MIB,
    PAGE,
    content,
    destroy,
    export,
    imported,
    noise,
    put,
    released,
    revoked,
    try_export,
    try_import,
)

import dmaplane
from dmaplane import _abi
from dmaplane.testing import _rig

KINDS: Final = {
    "pages": {"kind": _abi.KIND_PAGES},
    "huge": {"kind": _abi.KIND_HUGE, "flags": _abi.BUFFER_HUGE_PREFER},
    "coherent": {"kind": _abi.KIND_COHERENT},
}
FDS: Final = Path("/proc/self/fd")


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
    """foreign.Importer can be opened."""
    module = standin("dmabuf_importer")
    module.load()
    yield
    assert module.wait_users(0, _rig.PATIENCE_S), "somebody still holds the stand-in"
    module.unload()


@pytest.fixture
def importer() -> Iterator[foreign.Importer]:
    with foreign.Importer() as made:
        yield made


# ---- ours, elsewhere


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_vgem_imports_ours_and_sees_the_same_bytes(
    plane: dmaplane.Plane, vgem: foreign.Vgem, kind: dict[str, int]
) -> None:
    made = _rig.create_buffer(plane, LENGTH, **kind)
    length = made.map_bytes
    before, after = noise(length), noise(length, 2)
    put(plane, made, before)
    ours = export(plane, made.buffer_id)
    handle = vgem.take(ours)
    os.close(ours)
    theirs = vgem.export(handle)
    with foreign.mapped(theirs, length) as there:
        foreign.sync(theirs, foreign.SYNC_READ)
        assert there[:] == before
        foreign.sync(theirs, foreign.SYNC_READ | foreign.SYNC_END)
        foreign.sync(theirs, foreign.SYNC_WRITE)
        there[:] = after
        foreign.sync(theirs, foreign.SYNC_WRITE | foreign.SYNC_END)
    os.close(theirs)
    assert content(plane, made) == after
    # Only vgem holds it now.
    assert _rig.query_buffer(plane, made.buffer_id).exports == 1
    _rig.expect(destroy(plane, made.buffer_id), errno.EBUSY)
    vgem.close_handle(handle)
    released(plane, made.buffer_id)
    _rig.expect(destroy(plane, made.buffer_id), 0)


def test_many_importers_at_once_share_one_memory(plane: dmaplane.Plane, vgem: foreign.Vgem) -> None:
    # The DMA debugging of the kernel counts to seven devices on one page, and then complains.
    made = _rig.create_buffer(plane, 16 * PAGE)
    ours = [export(plane, made.buffer_id) for _ in range(8)]
    assert _rig.query_buffer(plane, made.buffer_id).exports == 8
    with contextlib.ExitStack() as stack:
        handles = [vgem.take(fd) for fd in ours[:3]]
        devices = [stack.enter_context(foreign.Importer()) for _ in range(4)]
        for index, device in enumerate(devices):
            # Two of them on the same dma-buf, in all three directions.
            attach = device.attach if index % 2 else device.attach_static
            assert attach(ours[2 + index // 2]) == 0
            assert device.map(index % 3) == 0
        planes = [stack.enter_context(dmaplane.open(plane="kernel")) for _ in range(8)]
        twins = [imported(where, fd) for where, fd in zip(planes, ours, strict=True)]
        put(plane, made, noise(16 * PAGE))
        for fd in ours:
            foreign.sync(fd, foreign.SYNC_READ | foreign.SYNC_WRITE)
            foreign.sync(fd, foreign.SYNC_READ | foreign.SYNC_WRITE | foreign.SYNC_END)
        for where, twin in zip(planes, twins, strict=True):
            assert content(where, twin) == noise(16 * PAGE)
        for fd in ours:
            os.close(fd)
        _rig.expect(destroy(plane, made.buffer_id), errno.EBUSY)
        assert _rig.query_buffer(plane, made.buffer_id).exports == 8
        for handle in handles:
            vgem.close_handle(handle)
        for device in devices[::2]:
            device.detach()
    released(plane, made.buffer_id)
    _rig.expect(destroy(plane, made.buffer_id), 0)


def test_sync_reaches_every_device_and_refuses_what_it_does_not_know(
    plane: dmaplane.Plane, importer: foreign.Importer
) -> None:
    made = _rig.create_buffer(plane, PAGE)
    fd = export(plane, made.buffer_id)
    assert importer.attach_static(fd) == 0
    assert importer.map(importer.FROM_DEVICE) == 0
    for flags in (1, 2, 3):
        foreign.sync(fd, flags)
        foreign.sync(fd, flags | foreign.SYNC_END)
    for flags in (0, foreign.SYNC_END, 8, 1 << 40):
        with pytest.raises(OSError) as refused:
            foreign.sync(fd, flags)
        assert refused.value.errno == errno.EINVAL
    for sync_flags in (_abi.SYNC_FOR_READ, _abi.SYNC_FOR_READ | _abi.SYNC_END):
        request = _abi.BufferSync(buffer_id=made.buffer_id, flags=sync_flags, length_bytes=PAGE)
        _rig.expect(_rig.ask(plane, _abi.BUFFER_SYNC, request), 0)
    os.close(fd)


def test_export_is_mapped_at_any_page_and_not_beyond_its_end(plane: dmaplane.Plane) -> None:
    for kind in KINDS.values():
        made = _rig.create_buffer(plane, 8 * PAGE, **kind)
        put(plane, made, noise(8 * PAGE))
        fd = export(plane, made.buffer_id)
        assert os.lseek(fd, 0, os.SEEK_END) == made.map_bytes
        with foreign.mapped(fd, 3 * PAGE, offset=5 * PAGE) as there:
            assert there[:] == noise(8 * PAGE)[5 * PAGE :]
            with pytest.raises((OSError, ValueError, SystemError)):
                there.resize(4 * PAGE)
        for offset, length in ((made.map_bytes, PAGE), (PAGE, made.map_bytes)):
            with pytest.raises(OSError), foreign.mapped(fd, length, offset=offset):
                pass
        with pytest.raises(OSError):
            mmap.mmap(fd, PAGE, mmap.MAP_PRIVATE, mmap.PROT_READ)
        os.close(fd)


def test_what_is_not_whole_pages_of_the_plane_is_not_exported(plane: dmaplane.Plane) -> None:
    area = bytearray(3 * PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    for start, length in ((address, PAGE + 5), (-(-address // PAGE) * PAGE, PAGE)):
        user = _rig.create_buffer(plane, length, kind=_abi.KIND_USER, user_addr=start)
        _rig.expect(try_export(plane, user.buffer_id), errno.EOPNOTSUPP)
        _rig.expect(try_export(plane, user.buffer_id, _abi.EXPORT_DMABUF), errno.EOPNOTSUPP)


# ---- read-only


def test_read_only_export_is_read_only_for_everybody(
    plane: dmaplane.Plane, other: dmaplane.Plane, vgem: foreign.Vgem, importer: foreign.Importer
) -> None:
    made = _rig.create_buffer(plane, 2 * PAGE)
    put(plane, made, noise(2 * PAGE))
    fd = export(plane, made.buffer_id, _abi.EXPORT_READ_ONLY)
    with pytest.raises(PermissionError), foreign.mapped(fd, PAGE):
        pass
    for mode in (os.O_RDWR, os.O_WRONLY):
        with pytest.raises(OSError):
            os.open(FDS / str(fd), mode)
    # A device that could write there is refused; one that only reads is not.
    with pytest.raises(PermissionError):
        vgem.take(fd)
    assert importer.attach(fd) == errno.EPERM
    assert importer.attach_static(fd) == 0
    assert importer.map(importer.BIDIRECTIONAL) == errno.EPERM
    assert importer.map(importer.FROM_DEVICE) == errno.EPERM
    assert importer.map(importer.TO_DEVICE) == 0
    importer.detach()
    _rig.expect(try_import(other, fd)[0], errno.EPERM)
    twin = imported(other, fd, _abi.IMPORT_READ_ONLY)
    assert content(other, twin, _rig.READ) == noise(2 * PAGE)
    # Neither the import nor an export of the import gives more than it got.
    _rig.expect(other._map(PAGE, _rig.BOTH, twin.map_offset), errno.EPERM, errno.EACCES)
    _rig.expect(try_export(other, twin.buffer_id), errno.EPERM)
    again = export(other, twin.buffer_id, _abi.EXPORT_READ_ONLY)
    with pytest.raises(PermissionError), foreign.mapped(again, PAGE):
        pass
    with foreign.mapped(again, 2 * PAGE, write=False) as there:
        assert there[:] == noise(2 * PAGE)
        address = np.frombuffer(there, np.uint8).ctypes.data
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mprotect(ctypes.c_void_p(address), PAGE, _rig.BOTH) == -1
        assert ctypes.get_errno() == errno.EACCES
        del address
    for end in (fd, again):
        os.close(end)
    # Who was refused holds nothing.
    _rig.expect(destroy(other, twin.buffer_id), 0)
    released(plane, made.buffer_id)
    _rig.expect(destroy(plane, made.buffer_id), 0)


# ---- who holds what


@pytest.mark.parametrize("holder", ["fd", "mapping", "import", "attachment"])
def test_export_held_anywhere_keeps_the_buffer(
    plane: dmaplane.Plane, other: dmaplane.Plane, vgem: foreign.Vgem, holder: str
) -> None:
    made = _rig.create_buffer(plane, PAGE)
    fd = export(plane, made.buffer_id)
    with contextlib.ExitStack() as stack:
        if holder == "fd":
            stack.callback(os.close, os.dup(fd))
        elif holder == "mapping":
            stack.enter_context(foreign.mapped(fd, PAGE))
        elif holder == "import":
            twin = imported(other, fd)
            stack.callback(destroy, other, twin.buffer_id)
        else:
            stack.callback(vgem.close_handle, vgem.take(fd))
        os.close(fd)
        assert _rig.query_buffer(plane, made.buffer_id).exports == 1
        _rig.expect(destroy(plane, made.buffer_id), errno.EBUSY)
        _rig.expect(destroy(plane, made.buffer_id, _rig.later(0.05)), errno.ETIMEDOUT)
        # It drains: no new use, but the old goes on.
        _rig.expect(try_export(plane, made.buffer_id), errno.ESTALE)
        _rig.expect(plane._map(PAGE, _rig.BOTH, made.map_offset), errno.ESTALE)
    released(plane, made.buffer_id)
    _rig.expect(destroy(plane, made.buffer_id), 0)


def test_drain_returns_when_the_last_export_goes(plane: dmaplane.Plane) -> None:
    made = _rig.create_buffer(plane, PAGE)
    fd = export(plane, made.buffer_id)
    closing = threading.Timer(0.3, os.close, [fd])
    closing.start()
    began = time.monotonic()
    _rig.expect(destroy(plane, made.buffer_id, _rig.later()), 0)
    assert time.monotonic() - began > 0.25
    closing.join()


def test_exported_memory_outlives_buffer_and_plane(vgem: foreign.Vgem, driver: Driver) -> None:
    with dmaplane.open(plane="kernel") as plane:
        made = _rig.create_buffer(plane, LENGTH)
        put(plane, made, noise(made.map_bytes))
        fd = export(plane, made.buffer_id)
        handle = vgem.take(fd)
    assert driver.users >= 1, "the export does not hold the module"
    with foreign.mapped(fd, made.map_bytes) as there:
        os.close(fd)
        assert there[:] == noise(made.map_bytes)
        again = vgem.export(handle)
        vgem.close_handle(handle)
    with foreign.mapped(again, made.map_bytes) as there, dmaplane.open(plane="kernel") as late:
        assert there[:] == noise(made.map_bytes)
        assert content(late, imported(late, again)) == noise(made.map_bytes)
        os.close(again)


def test_export_goes_to_another_process_which_dies_with_it(plane: dmaplane.Plane) -> None:
    made = _rig.create_buffer(plane, MIB)

    def body(told: socket.socket) -> None:
        message, fds, _, _ = socket.recv_fds(told, 16, 1)
        mine = dmaplane.open(plane="kernel")
        twin = imported(mine, fds[0])
        direct = mmap.mmap(fds[0], MIB)
        os.close(fds[0])
        with _rig.Mapped(mine, twin) as there:
            there.bytes[:] = int(message)
        assert direct[:] == bytes([int(message)]) * MIB
        told.sendall(b"done")
        time.sleep(60)

    with _rig.Child(body) as child:
        fd = export(plane, made.buffer_id)
        socket.send_fds(child.socket, [b"42"], [fd])
        os.close(fd)
        assert child.hear() == b"done"
        assert content(plane, made) == b"*" * MIB
        assert _rig.query_buffer(plane, made.buffer_id).exports == 1
        _rig.expect(destroy(plane, made.buffer_id), errno.EBUSY)
        child.kill()
    released(plane, made.buffer_id)
    _rig.expect(destroy(plane, made.buffer_id), 0)


def test_export_of_an_import_holds_both_and_a_long_chain_is_no_deeper(
    plane: dmaplane.Plane, other: dmaplane.Plane
) -> None:
    made = _rig.create_buffer(plane, PAGE)
    put(plane, made, noise(PAGE))
    fd = export(plane, made.buffer_id)
    chain = []
    for _ in range(200):
        twin = imported(other, fd)
        os.close(fd)
        fd = export(other, twin.buffer_id)
        chain.append(twin)
    assert content(other, chain[-1]) == noise(PAGE)
    # Each import is held by the export that was made of it, the buffer by all of them.
    for twin in chain:
        _rig.expect(destroy(other, twin.buffer_id), errno.EBUSY)
    assert _rig.query_buffer(plane, made.buffer_id).exports == 201
    os.close(fd)
    for twin in reversed(chain):
        released(other, twin.buffer_id)
        _rig.expect(destroy(other, twin.buffer_id), 0)
    released(plane, made.buffer_id)
    _rig.expect(destroy(plane, made.buffer_id), 0)


def test_without_a_free_descriptor_nothing_is_exported_and_nothing_kept(
    plane: dmaplane.Plane,
) -> None:
    made = _rig.create_buffer(plane, PAGE)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (_rig.open_fds() - 1, limits[1]))
    try:
        answer = try_export(plane, made.buffer_id)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    _rig.expect(answer, errno.EMFILE)
    assert _rig.query_buffer(plane, made.buffer_id).exports == 0
    _rig.expect(destroy(plane, made.buffer_id), 0)


def test_storm_of_exports_and_imports_leaves_nothing(
    plane: dmaplane.Plane, other: dmaplane.Plane
) -> None:
    made = [_rig.create_buffer(plane, (1 + index) * PAGE) for index in range(4)]
    failures: list[BaseException] = []

    def storm(seed: int) -> None:
        chance = random.Random(seed)
        held: list[int] = []
        try:
            for _ in range(150):
                one = chance.choice(made)
                fd = export(plane, one.buffer_id, chance.choice([0, _abi.EXPORT_READ_ONLY]))
                twin = imported(other, fd, _abi.IMPORT_READ_ONLY)
                assert twin.length_bytes == one.length_bytes
                held.append(fd)
                if chance.random() < 0.7:
                    os.close(held.pop(chance.randrange(len(held))))
                with _rig.Mapped(other, twin, _rig.READ) as there:
                    assert there.bytes[0] == 0
                _rig.expect(destroy(other, twin.buffer_id), 0)
        except BaseException as reason:
            failures.append(reason)
        finally:
            for fd in held:
                os.close(fd)

    threads = [threading.Thread(target=storm, args=[seed]) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]
    assert other.statistics().buffers == 0
    for one in made:
        released(plane, one.buffer_id)
        _rig.expect(destroy(plane, one.buffer_id), 0)


# ---- taken away


@pytest.mark.parametrize("twice", [False, True], ids=["export", "export-of-import"])
def test_peer_memory_that_goes_is_taken_from_every_importer(
    other: dmaplane.Plane, vgem: foreign.Vgem, share: Path, twice: bool
) -> None:
    device = Ivshmem(share / "ivshmem")
    with contextlib.ExitStack() as stack:
        plane = stack.enter_context(dmaplane.open(plane="kernel"))
        buffer = stack.enter_context(plane.buffer(PAGE, peer=device.address, peer_bar=BAR))
        fd = export(plane, buffer.id)
        if twice:
            import_of_it = imported(plane, fd)
            os.close(fd)
            fd = export(plane, import_of_it.buffer_id)
        stack.callback(os.close, fd)
        rings = stack.enter_context(_rig.Rings(other))
        twin = imported(other, fd)
        # Who could not be told does not get it; a device that cannot reach it gets no address.
        with pytest.raises(OSError) as refused:
            vgem.take(fd)
        assert refused.value.errno == errno.EOPNOTSUPP
        told, late = (stack.enter_context(foreign.Importer()) for _ in range(2))
        assert told.attach_static(fd) == errno.EOPNOTSUPP
        assert told.attach_slow(fd) == 0
        assert told.map(told.BIDIRECTIONAL) == errno.EOPNOTSUPP
        assert told.look() == (0, 0)
        device.remove()
        try:
            notified, stopping = told.look()
            assert notified == 1
            assert not stopping, "the memory went before a device that uses it had stopped"
            assert late.attach(fd) == errno.ESTALE
            with pytest.raises(OSError) as gone:
                foreign.sync(fd, foreign.SYNC_READ)
            assert gone.value.errno == errno.ESTALE
            with pytest.raises(OSError) as unmapped, foreign.mapped(fd, PAGE):
                pass
            assert unmapped.value.errno == errno.ESTALE
            _rig.expect(try_import(other, fd)[0], errno.ESTALE)
            revoked(other, rings, twin.buffer_id)
            _rig.expect(destroy(other, twin.buffer_id), 0)
        finally:
            device.rescan()

# SPDX-License-Identifier: MIT
"""What memory costs whom, who else can reach it, and that all of it comes back (L3, L4, L12)."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import re
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import kmsg
import numpy as np
import pagemap
import pytest
from driver import Driver

import dmaplane
from dmaplane import _abi
from dmaplane.testing import _rig
from dmaplane.testing._rig import MIB, Child, Mapped, Rings, create_buffer, query_buffer

PAGE = pagemap.PAGE
NOBODY = 65534
MEMORY = Path("/sys/kernel/debug/dmaplane/memory")
CGROUPS = Path("/sys/fs/cgroup")
KILLED = ("Out of memory", "oom-kill", "oom_reaper", "invoked oom-killer", "allocation failure")
MREMAP_MAYMOVE, MREMAP_FIXED = 1, 2


@pytest.fixture
def plane() -> Iterator[dmaplane.Plane]:
    with dmaplane.open(plane="kernel") as plane:
        yield plane


def held() -> tuple[int, int]:
    """Memories the module has, and bytes charged for them."""
    words = dict(word.split("=", 1) for word in MEMORY.read_text().split())
    return int(words["memories"]), int(words["charged_bytes"])


@pytest.fixture(autouse=True)
def everything_comes_back() -> Iterator[None]:
    yield
    _rig.wait_until(lambda: held() == (0, 0), 1.0, "no memory and no charge is left")


def create(plane: dmaplane.Plane, length: int, **fields: int) -> tuple[int, _abi.BufferCreate]:
    request = _abi.BufferCreate(length_bytes=length, **{"node": -1, **fields})
    return _rig.ask(plane, _abi.BUFFER_CREATE, request), request


def gone(plane: dmaplane.Plane, made: _abi.BufferCreate) -> None:
    _rig.expect(_rig.destroy(plane, _abi.BUFFER_DESTROY, made.buffer_id), 0)


def locked_kib() -> int:
    found = re.search(r"^VmLck:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1])


def meminfo(name: str) -> int:
    """A line of /proc/meminfo in bytes, 0 if there is none."""
    found = re.search(rf"^{name}:\s+(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found[1]) << 10 if found else 0


def available_bytes() -> int:
    return meminfo("MemAvailable") + sum(pagemap.kept_bytes(node) for node in pagemap.nodes())


@contextlib.contextmanager
def area(length: int) -> Iterator[tuple[mmap.mmap, int]]:
    """Anonymous memory of ours and its address."""
    memory = mmap.mmap(-1, length, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    view = ctypes.c_char.from_buffer(memory)
    address = ctypes.addressof(view)
    del view
    try:
        yield memory, address
    finally:
        memory.close()


@contextlib.contextmanager
def bytes_allowed(driver: Driver, limit: int) -> Iterator[None]:
    parameter = driver.folder / "parameters/bytes_max"
    before = parameter.read_text()
    parameter.write_text(str(limit))
    try:
        yield
    finally:
        parameter.write_text(before)


def run_child(body: Callable[[socket.socket], None]) -> None:
    """@body in a process of its own; what it raises is raised here."""
    with Child(lambda told: (body(told), told.sendall(b"done"))[1]) as child:
        child.socket.settimeout(200.0)
        assert child.hear() == b"done"
        child.join()


# ---- the memlock limit


def test_pinned_user_memory_is_charged_and_given_back(plane: dmaplane.Plane) -> None:
    before = locked_kib()
    with area(MIB) as (_, address):
        made = create_buffer(plane, MIB, kind=_abi.KIND_USER, user_addr=address)
        assert locked_kib() == before + 1024
        # Two pages for two bytes, if they are in two.
        across = create_buffer(plane, 2, kind=_abi.KIND_USER, user_addr=address + PAGE - 1)
        assert locked_kib() == before + 1024 + 2 * PAGE // 1024
        gone(plane, across)
        gone(plane, made)
        assert locked_kib() == before
        with dmaplane.open(plane="kernel") as passing:
            create_buffer(passing, MIB, kind=_abi.KIND_USER, user_addr=address)
            assert locked_kib() == before + 1024
        _rig.wait_until(lambda: locked_kib() == before, 1.0, "close gives the charge back")


def test_memory_that_cannot_be_pinned_is_not_charged(plane: dmaplane.Plane) -> None:
    before = locked_kib()
    hole = mmap.mmap(-1, 4 * MIB)
    address = ctypes.addressof(ctypes.c_char.from_buffer(hole))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    assert libc.munmap(address + 3 * MIB, PAGE) == 0
    answer, _ = create(plane, 4 * MIB, kind=_abi.KIND_USER, user_addr=address)
    _rig.expect(answer, errno.EFAULT)
    read_only = mmap.mmap(-1, PAGE, prot=mmap.PROT_READ)
    where = np.frombuffer(read_only, np.uint8).ctypes.data
    answer, _ = create(plane, PAGE, kind=_abi.KIND_USER, user_addr=where)
    _rig.expect(answer, errno.EFAULT)
    kernel = 0xFFFF888000000000
    answer, _ = create(plane, PAGE, kind=_abi.KIND_USER, user_addr=kernel)
    _rig.expect(answer, errno.EFAULT)
    assert locked_kib() == before


def test_memlock_limit_is_kept_by_who_has_no_privilege() -> None:
    limit = 64 << 10

    def body(_: socket.socket) -> None:
        with dmaplane.open(plane="kernel") as plane, area(MIB) as (_memory, address):
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
            os.setresuid(NOBODY, NOBODY, NOBODY)
            fields = {"kind": _abi.KIND_USER, "user_addr": address}
            answer, _ = create(plane, limit + 1, **fields)
            _rig.expect(answer, errno.EPERM)
            assert locked_kib() == 0
            first = create_buffer(plane, limit, **fields)
            answer, _ = create(plane, 1, **fields)
            _rig.expect(answer, errno.EPERM)
            gone(plane, first)
            gone(plane, create_buffer(plane, 1, **fields))
            assert locked_kib() == 0

    run_child(body)


def test_read_only_user_memory_is_the_users_own_page(plane: dmaplane.Plane) -> None:
    """A page never written before is not pinned as the zero page: what comes later is seen."""
    with area(16 * PAGE) as (memory, address), Rings(plane) as rings:
        fields = {"user_addr": address, "flags": _abi.BUFFER_READ_ONLY}
        made = create_buffer(plane, 16 * PAGE, kind=_abi.KIND_USER, **fields)
        target = create_buffer(plane, 16 * PAGE)
        memory[:] = b"\x5a" * (16 * PAGE)
        copy = _rig.copy_of(made.buffer_id, target.buffer_id, 16 * PAGE)
        assert _rig.results(rings.run(_rig.rows_of(copy))) == {1: 0}
        with Mapped(plane, target) as mapped:
            assert (mapped.bytes == 0x5A).all()
        gone(plane, made)


# ---- limits of everybody's memory


def test_limit_of_the_module_is_enospc_and_counts_what_is_alive(
    plane: dmaplane.Plane, driver: Driver
) -> None:
    with bytes_allowed(driver, 8 * MIB):
        made = create_buffer(plane, 4 * MIB)
        assert held() == (1, 4 * MIB)
        for kind in (_abi.KIND_PAGES, _abi.KIND_HUGE, _abi.KIND_COHERENT):
            answer, _ = create(plane, 4 * MIB + 1, kind=kind)
            _rig.expect(answer, errno.ENOSPC)
        assert held() == (1, 4 * MIB)
        create_buffer(plane, 4 * MIB)
        answer, _ = create(plane, 1)
        _rig.expect(answer, errno.ENOSPC)
        gone(plane, made)
        last = create_buffer(plane, 4 * MIB)
        # What is pinned counts as well: the memlock limit ends with the process that had it.
        with area(MIB) as (_, address):
            pinned = {"kind": _abi.KIND_USER, "user_addr": address}
            answer, _ = create(plane, MIB, **pinned)
            _rig.expect(answer, errno.ENOSPC)
            assert held() == (2, 8 * MIB)
            gone(plane, last)
            made = create_buffer(plane, MIB, **pinned)
            assert held() == (2, 5 * MIB)
            gone(plane, made)
            assert held() == (1, 4 * MIB)


def test_more_than_the_machine_has_is_refused_before_anybody_is_hurt(
    plane: dmaplane.Plane, driver: Driver
) -> None:
    total = sum(node.memory_bytes for node in plane.topology().nodes)
    with kmsg.Reader() as log, bytes_allowed(driver, 1 << 50):
        for length in (total, 2 * total, 1 << 43):
            for kind in (_abi.KIND_PAGES, _abi.KIND_HUGE, _abi.KIND_COHERENT):
                started = time.monotonic()
                answer, _ = create(plane, length, kind=kind)
                assert answer == -errno.ENOMEM, f"{length}: {_rig.name_of(answer)}"
                assert time.monotonic() - started < 2.0, "it was tried out"
        # Everything that is free, to the last page, and no process dies of it.
        while create(plane, 64 * MIB)[0] == 0:
            pass
        said = [line for line in log.lines() if any(word in line for word in KILLED)]
    assert not said, said


@contextlib.contextmanager
def cgroup(limit: int) -> Iterator[Path]:
    group = CGROUPS / f"dmaplane-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.max").write_text(str(limit))
        if (group / "memory.swap.max").exists():
            (group / "memory.swap.max").write_text("0")
        yield group
    finally:
        _rig.wait_until(lambda: not (group / "cgroup.procs").read_text(), 5.0, "an empty group")
        group.rmdir()


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        (_abi.KIND_PAGES, 0),
        (_abi.KIND_PAGES, _abi.BUFFER_WRITE_COMBINE),
        (_abi.KIND_HUGE, _abi.BUFFER_HUGE_PREFER),
        (_abi.KIND_COHERENT, 0),
    ],
    ids=["pages", "write_combined", "huge", "coherent"],
)
def test_memory_is_charged_to_the_cgroup_of_who_asked(kind: int, flags: int) -> None:
    if "memory" not in (CGROUPS / "cgroup.subtree_control").read_text():
        pytest.skip("this kernel has no memory controller")
    piece, limit = 4 * MIB, 64 * MIB
    # What is kept apart for large DMA is no cgroup's, and there is little of it.
    uncharged = meminfo("CmaTotal") if kind == _abi.KIND_COHERENT else 0

    def body(group: Path) -> None:
        def current() -> int:
            return int((group / "memory.current").read_text())

        (group / "cgroup.procs").write_text(str(os.getpid()))
        with dmaplane.open(plane="kernel") as plane:
            gone(plane, create_buffer(plane, piece, kind=kind, flags=flags))
            before = current()
            made = [create_buffer(plane, piece, kind=kind, flags=flags) for _ in range(8)]
            assert current() - before > 7 * piece - uncharged
            for one in made:
                gone(plane, one)
            _rig.wait_until(lambda: current() - before < piece, 5.0, "the charge is back")
            most = (limit + uncharged) // piece
            answers = [create(plane, piece, kind=kind, flags=flags)[0] for _ in range(most)]
            assert answers[-1] == -errno.ENOMEM, "the group's limit was not felt"
            assert set(answers) == {0, -errno.ENOMEM}
        events = dict(line.split() for line in (group / "memory.events").read_text().splitlines())
        assert events["oom_kill"] == "0", "it cost a process its life"

    with cgroup(limit) as group:
        run_child(lambda _: body(group))


# ---- who else can take the pages of a mapping


def test_mapped_buffer_can_be_pinned_like_any_memory(plane: dmaplane.Plane) -> None:
    """For long, as RDMA does: a USER buffer made of another buffer's mapping."""
    for fields in (
        {},
        {"kind": _abi.KIND_HUGE, "flags": _abi.BUFFER_HUGE_PREFER},
        {"flags": _abi.BUFFER_WRITE_COMBINE},
    ):
        owner, target = create_buffer(plane, MIB, **fields), create_buffer(plane, MIB)
        with Mapped(plane, owner) as mapped, Rings(plane) as rings:
            address = mapped.bytes.ctypes.data
            twin = create_buffer(plane, MIB, kind=_abi.KIND_USER, user_addr=address)
            mapped.bytes[:] = 0x42
            copy = _rig.copy_of(twin.buffer_id, target.buffer_id, MIB)
            assert _rig.results(rings.run(_rig.rows_of(copy))) == {1: 0}
            copy = _rig.copy_of(target.buffer_id, twin.buffer_id, 100, target_offset=5000)
            with Mapped(plane, target) as there:
                assert (there.bytes == 0x42).all()
                there.bytes[:] = 0x24
            assert _rig.results(rings.run(_rig.rows_of(copy))) == {1: 0}
            assert (mapped.bytes[5000:5100] == 0x24).all()
            assert mapped.bytes[5100] == 0x42
        # The pages outlive the buffer they were made for, as long as somebody has them.
        gone(plane, owner)
        with Rings(plane) as rings:
            copy = _rig.copy_of(twin.buffer_id, target.buffer_id, MIB)
            assert _rig.results(rings.run(_rig.rows_of(copy))) == {1: 0}
        with Mapped(plane, target) as there:
            assert there.bytes[5099] == 0x24
            assert (there.bytes[:5000] == 0x42).all()
        gone(plane, twin)
        gone(plane, target)


def test_mapped_buffer_can_be_given_to_a_pipe(plane: dmaplane.Plane) -> None:
    """vmsplice takes the pages themselves; they stay whole when the buffer is gone."""
    made = create_buffer(plane, 8 * PAGE)
    mapped = Mapped(plane, made)
    mapped.bytes[:] = np.arange(8 * PAGE, dtype=np.uint32).astype(np.uint8)
    wanted = mapped.bytes.tobytes()
    reading, writing = os.pipe()

    class Vector(ctypes.Structure):
        _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))

    vector = Vector(mapped.bytes.ctypes.data, 8 * PAGE)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.vmsplice.restype = ctypes.c_ssize_t
    libc.vmsplice.argtypes = (
        *(ctypes.c_int, ctypes.c_void_p),
        *(ctypes.c_ulong, ctypes.c_uint),
    )
    assert libc.vmsplice(writing, ctypes.byref(vector), 1, 0) == 8 * PAGE
    mapped.unmap()
    gone(plane, made)
    for _ in range(16):
        with Mapped(plane, create_buffer(plane, MIB)) as other:
            other.bytes[:] = 0xEE
    assert os.read(reading, 8 * PAGE) == wanted
    os.close(reading)
    os.close(writing)


def test_direct_io_reads_into_and_writes_from_a_mapped_buffer(plane: dmaplane.Plane) -> None:
    disk = Path("/dev/ram0")
    if subprocess.run(["modprobe", "brd", "rd_nr=1", "rd_size=8192"], check=False).returncode:
        disk = Path("/dev/nvme0n1")
        subprocess.run(["modprobe", "nvme"], check=True)
    _rig.wait_until(disk.exists, _rig.PATIENCE_S, "a disk")
    content = np.random.default_rng(7).integers(0, 256, 4 * MIB, np.uint8)
    disk.write_bytes(content.tobytes())
    for fields in ({}, {"kind": _abi.KIND_HUGE, "flags": _abi.BUFFER_HUGE_PREFER}):
        made = create_buffer(plane, 4 * MIB, **fields)
        fd = os.open(disk, os.O_RDWR | os.O_DIRECT | os.O_SYNC)
        with Mapped(plane, made) as mapped:
            view = memoryview(mapped.bytes)  # type: ignore[arg-type]
            assert os.preadv(fd, [view], 0) == 4 * MIB
            assert (mapped.bytes == content).all()
            mapped.bytes[:] = ~content
            assert os.pwritev(fd, [view], 0) == 4 * MIB
            mapped.bytes[:] = 0
            assert os.preadv(fd, [view], 0) == 4 * MIB
            assert (mapped.bytes == ~content).all()
            content = ~content
            del view
        os.close(fd)
        gone(plane, made)


# ---- mappings


def test_part_of_a_mapping_can_go_and_the_rest_still_holds(plane: dmaplane.Plane) -> None:
    for fields in ({}, {"kind": _abi.KIND_COHERENT}):
        made = create_buffer(plane, 8 * PAGE, **fields)
        mapped = Mapped(plane, made)
        address = mapped.bytes.ctypes.data
        mapped.bytes[:] = 3
        libc = ctypes.CDLL(None, use_errno=True)
        libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
        assert libc.munmap(address + 2 * PAGE, 2 * PAGE) == 0
        assert query_buffer(plane, made.buffer_id).mappings == 2
        assert (mapped.bytes[: 2 * PAGE] == 3).all()
        assert (mapped.bytes[4 * PAGE :] == 3).all()
        assert libc.munmap(address, 2 * PAGE) == 0
        assert query_buffer(plane, made.buffer_id).mappings == 1
        _rig.expect(_rig.destroy(plane, _abi.BUFFER_DESTROY, made.buffer_id), errno.EBUSY)
        mapped.unmap()
        assert query_buffer(plane, made.buffer_id).mappings == 0
        gone(plane, made)


def test_pages_thrown_out_of_a_mapping_come_back_with_their_bytes(plane: dmaplane.Plane) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for fields in (
        {},
        {"kind": _abi.KIND_HUGE, "flags": _abi.BUFFER_HUGE_PREFER},
        {"flags": _abi.BUFFER_WRITE_COMBINE},
    ):
        made = create_buffer(plane, 4 * MIB, **fields)
        with Mapped(plane, made) as mapped:
            address = mapped.bytes.ctypes.data
            mapped.bytes[:] = 7
            frames = pagemap.frames(address, made.map_bytes)
            assert libc.madvise(address, made.map_bytes, mmap.MADV_DONTNEED) == 0
            assert mapped.bytes[PAGE] == 7
            mapped.bytes[PAGE + 1] = 8
            assert int(mapped.bytes.astype(np.uint64).sum()) == 7 * made.map_bytes + 1
            assert (pagemap.frames(address, made.map_bytes) == frames).all()
        gone(plane, made)


def test_mapping_cannot_grow_but_can_move(plane: dmaplane.Plane) -> None:
    length = 4 * PAGE
    made = create_buffer(plane, length)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mremap.restype = ctypes.c_void_p
    libc.mremap.argtypes = (
        *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t),
        *(ctypes.c_int, ctypes.c_void_p),
    )
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    with Mapped(plane, made) as mapped, area(length) as (_, place):
        address = mapped.bytes.ctypes.data
        mapped.bytes[:] = 6
        for old, new in ((length, 2 * length), (0, length)):
            refused = libc.mremap(address, old, new, MREMAP_MAYMOVE, None)
            assert refused == ctypes.c_void_p(-1).value
        assert query_buffer(plane, made.buffer_id).mappings == 1
        fixed = MREMAP_MAYMOVE | MREMAP_FIXED
        assert libc.mremap(address, length, length, fixed, place) == place
        assert ctypes.string_at(place, length) == b"\x06" * length
        assert query_buffer(plane, made.buffer_id).mappings == 1
        _rig.expect(_rig.destroy(plane, _abi.BUFFER_DESTROY, made.buffer_id), errno.EBUSY)
        assert libc.munmap(place, length) == 0
        assert query_buffer(plane, made.buffer_id).mappings == 0
    gone(plane, made)


def test_mapping_must_be_shared_and_start_at_the_buffer(plane: dmaplane.Plane) -> None:
    made = create_buffer(plane, 4 * PAGE)
    fd = os.open("/dev/dmaplane", os.O_RDWR)
    with pytest.raises(OSError) as reason:  # another file has other buffers
        mmap.mmap(fd, PAGE, mmap.MAP_SHARED, offset=made.map_offset)
    assert reason.value.errno == errno.ENOENT
    os.close(fd)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int),
        *(ctypes.c_int, ctypes.c_int, ctypes.c_uint64),
    )
    private = libc.mmap(None, PAGE, 3, mmap.MAP_PRIVATE, plane._fd, made.map_offset)
    assert ctypes.c_void_p(private).value == ctypes.c_void_p(-1).value
    assert ctypes.get_errno() == errno.EINVAL
    answer = plane._map(PAGE, _rig.BOTH, made.map_offset + PAGE)
    _rig.expect(answer, errno.EINVAL, errno.ENOENT)
    user = bytearray(3 * PAGE)
    where = np.frombuffer(user, np.uint8).ctypes.data
    pinned = create_buffer(plane, PAGE, kind=_abi.KIND_USER, user_addr=where)
    assert pinned.map_bytes == 0
    _rig.expect(plane._map(PAGE, _rig.BOTH, pinned.map_offset), errno.EOPNOTSUPP)


def test_child_of_a_fork_holds_what_it_has_mapped(plane: dmaplane.Plane) -> None:
    made = create_buffer(plane, PAGE)
    mapped = Mapped(plane, made)

    def body(told: socket.socket) -> None:
        told.sendall(b"here")
        assert told.recv(1) == b"x"

    with Child(body) as child:
        assert child.hear() == b"here"
        assert query_buffer(plane, made.buffer_id).mappings == 2
        mapped.unmap()
        _rig.expect(_rig.destroy(plane, _abi.BUFFER_DESTROY, made.buffer_id), errno.EBUSY)
        child.kill()
    _rig.wait_until(lambda: query_buffer(plane, made.buffer_id).mappings == 0, 1.0, "unmapped")
    gone(plane, made)


# ---- the end of a buffer


def test_signal_ends_a_drain_and_the_buffer_stays_draining(plane: dmaplane.Plane) -> None:
    made = create_buffer(plane, PAGE)
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    try:
        with Mapped(plane, made):
            request = _abi.Destroy(id=made.buffer_id, flags=_abi.DESTROY_DRAIN)
            request.size = ctypes.sizeof(request)
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            _rig.expect(plane.command(_abi.BUFFER_DESTROY, request), errno.EINTR)
            assert query_buffer(plane, made.buffer_id).state == _abi.STATE_DRAINING
    finally:
        signal.signal(signal.SIGALRM, before)
    answer = _rig.destroy(plane, _abi.BUFFER_DESTROY, made.buffer_id, drain_until=_rig.later())
    _rig.expect(answer, 0)


def test_write_combined_pages_come_back_as_ordinary_ones(plane: dmaplane.Plane) -> None:
    before = available_bytes()
    for round_number in range(6):
        flags = _abi.BUFFER_WRITE_COMBINE
        made = create_buffer(plane, 32 * MIB, flags=flags)
        with Mapped(plane, made) as mapped:
            assert not mapped.bytes[::PAGE].any()
            mapped.bytes[::PAGE] = round_number + 1
            assert (mapped.bytes[::PAGE] == round_number + 1).all()
        gone(plane, made)
        ordinary = create_buffer(plane, 32 * MIB)
        with Mapped(plane, ordinary) as mapped:
            assert not mapped.bytes.any()
            mapped.bytes[:] = 0xFF
        gone(plane, ordinary)
    _rig.wait_until(lambda: available_bytes() > before - 48 * MIB, 5.0, "the memory is back")


def test_killed_process_gives_back_memory_of_every_kind() -> None:
    before = available_bytes()

    def body(told: socket.socket) -> None:
        plane = dmaplane.open(plane="kernel")
        user = mmap.mmap(-1, 16 * MIB)
        address = ctypes.addressof(ctypes.c_char.from_buffer(user))
        kept = [Mapped(plane, create_buffer(plane, 64 * MIB)) for _ in range(3)]
        flags = _abi.BUFFER_HUGE_PREFER
        kept.append(Mapped(plane, create_buffer(plane, 64 * MIB, kind=_abi.KIND_HUGE, flags=flags)))
        for _ in range(4):
            kept.append(Mapped(plane, create_buffer(plane, MIB, kind=_abi.KIND_COHERENT)))
        flags = _abi.BUFFER_WRITE_COMBINE
        kept.append(Mapped(plane, create_buffer(plane, 16 * MIB, flags=flags)))
        create_buffer(plane, 16 * MIB, kind=_abi.KIND_USER, user_addr=address)
        told.sendall(b"holding")
        signal.pause()

    with Child(body) as child:
        assert child.hear() == b"holding"
        memories, charged = held()
        assert memories == 10
        assert charged >= (3 * 64 + 64 + 4 + 16) * MIB
        assert available_bytes() < before - 200 * MIB
        child.kill()
        _rig.wait_until(lambda: held() == (0, 0), 1.0, "nothing is left")
    _rig.wait_until(lambda: available_bytes() > before - 48 * MIB, 5.0, "the memory is back")

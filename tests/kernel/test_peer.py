# SPDX-License-Identifier: MIT
"""Buffers in a PCI BAR: QEMU's ivshmem, whose memory is a file of the host (L3, L4, L7, L8)."""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import mmap
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from driver import Driver
from ivshmem import BAR, BAR_BYTES, Ivshmem

import dmaplane
from dmaplane import _abi
from dmaplane.testing import _rig

MIB = 1 << 20
PAGE = 4096
CACHINGS = pytest.mark.parametrize("write_combine", [False, True], ids=["uncached", "combined"])


@pytest.fixture
def device(share: Path) -> Iterator[Ivshmem]:
    """The device; put back if a test took it away."""
    found = Ivshmem(share / "ivshmem")
    found.host_write(0, bytes(MIB))
    yield found
    if not found.present:
        found.rescan()
    assert found.users == 0, "somebody still has the device enabled"


@pytest.fixture
def plane() -> Iterator[dmaplane.Plane]:
    with dmaplane.open(plane="kernel") as made:
        yield made


def noise(length_bytes: int, seed: int = 1) -> bytes:
    return np.random.default_rng(seed).bytes(length_bytes)


def events_of(plane: dmaplane.Plane, channel: dmaplane.Channel) -> list[tuple[str, int]]:
    """Waits for the first of a channel's events."""
    found: list[tuple[str, int]] = []

    def heard() -> bool:
        found.extend((event.name, event.id) for event in channel.events())
        return bool(found)

    _rig.wait_until(heard, _rig.PATIENCE_S, "an event")
    return found


def try_create(plane: dmaplane.Plane, device: Ivshmem, **fields: int) -> int:
    """BUFFER_CREATE of one page of the memory, unless fields say otherwise; its errno or 0."""
    domain, bus, rest = device.address.split(":")
    slot, function = rest.split(".")
    address = int(domain, 16) << 16 | int(bus, 16) << 8 | int(slot, 16) << 3 | int(function)
    request = _abi.BufferCreate(
        **{
            "length_bytes": PAGE,
            "kind": _abi.KIND_PEER,
            "node": -1,
            "peer_device": address,
            "peer_bar": BAR,
            **fields,
        }
    )
    answer = -_rig.ask(plane, _abi.BUFFER_CREATE, request)
    if answer == 0:
        _rig.expect(_rig.destroy(plane, _abi.BUFFER_DESTROY, request.buffer_id), 0)
    return answer


@CACHINGS
def test_mapping_shows_what_the_host_has(
    plane: dmaplane.Plane, device: Ivshmem, write_combine: bool
) -> None:
    offset, length = 3 * MIB + PAGE, 2 * MIB + 3 * PAGE
    with plane.buffer(
        length,
        peer=device.address,
        peer_bar=BAR,
        peer_address=offset,
        write_combine=write_combine,
    ) as buffer:
        assert buffer.kind == "peer"
        assert device.users == 1
        wanted = "write-combining" if write_combine else "uncached-minus"
        assert device.caching(offset, length) == wanted
        ours, theirs = noise(length, 1), noise(length, 2)
        view = buffer.numpy()
        view[:] = np.frombuffer(ours, np.uint8)
        buffer.sync(write=True, end=True)
        assert device.host_read(offset, length) == ours
        assert not any(device.host_read(offset - PAGE, PAGE)), "it wrote below its range"
        device.host_write(offset, theirs)
        assert view.tobytes() == theirs
        del view


@CACHINGS
def test_copies_go_both_ways_with_checksum_and_say_peer(
    plane: dmaplane.Plane, device: Ivshmem, write_combine: bool
) -> None:
    length = MIB
    with (
        plane.buffer(
            length, peer=device.address, peer_bar=BAR, write_combine=write_combine
        ) as peer,
        plane.buffer(length) as host,
        plane.channel() as channel,
    ):
        crc = plane.buffer(length)
        for seed, (start, size) in enumerate(
            [(0, length), (1, 1), (3, 8191), (4093, 70001), (PAGE - 1, 2), (64, 513)]
        ):
            data = noise(size, seed)
            host[start : start + size].numpy()[:] = np.frombuffer(data, np.uint8)
            reference = channel.copy(crc[:size], host[start : start + size], checksum=True).wait(
                _rig.PATIENCE_S
            )
            assert reference.path == "local"

            out = channel.copy(
                peer[start : start + size], host[start : start + size], checksum=True
            ).wait(_rig.PATIENCE_S)
            assert out.path == "peer"
            assert out.checksum == reference.checksum
            assert device.host_read(start, size) == data

            back = noise(size, seed + 100)
            device.host_write(start, back)
            into = channel.copy(
                host[start : start + size], peer[start : start + size], checksum=True
            ).wait(_rig.PATIENCE_S)
            assert into.path == "peer"
            assert host[start : start + size].numpy().tobytes() == back
            channel.copy(
                host[start : start + size],
                peer[start : start + size],
                verify=into.checksum,
            ).wait(_rig.PATIENCE_S)
        crc.close()


def test_copy_from_peer_to_peer_and_fill(plane: dmaplane.Plane, device: Ivshmem) -> None:
    with (
        plane.buffer(MIB, peer=device.address, peer_bar=BAR) as first,
        plane.buffer(MIB, peer=device.address, peer_bar=BAR, peer_address=MIB) as second,
        plane.channel() as channel,
    ):
        assert device.users == 2
        data = noise(MIB)
        device.host_write(0, data)
        done = channel.copy(second.all, first.all).wait(_rig.PATIENCE_S)
        assert done.path == "peer"
        assert device.host_read(MIB, MIB) == data
        done = channel.fill(first[4:7004], 0x04030201).wait(_rig.PATIENCE_S)
        assert done.path == "peer"
        assert device.host_read(0, 7008) == data[:4] + b"\1\2\3\4" * 1750 + data[7004:7008]


def test_what_is_not_there_or_wrong_is_named(plane: dmaplane.Plane, device: Ivshmem) -> None:
    assert try_create(plane, device) == 0
    assert try_create(plane, device, length_bytes=1) == 0
    assert try_create(plane, device, length_bytes=BAR_BYTES) == 0
    cases = {
        "no device": ({"peer_device": 0xFFFF_FFF8}, errno.ENODEV),
        "no BAR": ({"peer_bar": 5}, errno.ENODEV),
        "no BAR number": ({"peer_bar": 6}, errno.ENODEV),
        "too long": ({"length_bytes": BAR_BYTES + 1}, errno.EINVAL),
        "behind": ({"peer_address": BAR_BYTES}, errno.EINVAL),
        "over the end": (
            {"peer_address": BAR_BYTES - PAGE, "length_bytes": 2 * PAGE},
            errno.EINVAL,
        ),
        "end wraps": ({"peer_address": (1 << 64) - PAGE}, errno.EINVAL),
        "not at a page": ({"peer_address": 64}, errno.EINVAL),
        "BAR of less than a page": ({"peer_bar": 0}, errno.EINVAL),
        "nobody speaks for its memory": ({"peer_bar": 0xFFFF_FFFF}, errno.EOPNOTSUPP),
        "hugely": ({"flags": _abi.BUFFER_HUGE_PREFER}, errno.EINVAL),
        "read-only": ({"flags": _abi.BUFFER_READ_ONLY}, errno.EINVAL),
    }
    got = {name: try_create(plane, device, **fields) for name, (fields, _) in cases.items()}
    assert got == {name: wanted for name, (_, wanted) in cases.items()}


def test_a_range_has_one_caching_at_a_time(plane: dmaplane.Plane, device: Ivshmem) -> None:
    with plane.buffer(4 * PAGE, peer=device.address, peer_bar=BAR):
        wc = _abi.BUFFER_WRITE_COMBINE
        assert try_create(plane, device, flags=wc, peer_address=3 * PAGE) == errno.EBUSY
        assert try_create(plane, device, flags=wc, peer_address=4 * PAGE) == 0
        assert try_create(plane, device, peer_address=3 * PAGE) == 0
        # A revoked buffer is in nobody's way, though it is still there.
        device.remove()
        device.rescan()
        assert try_create(plane, device, flags=wc, peer_address=3 * PAGE) == 0


def test_who_may_is_root_or_the_list(device: Ivshmem, driver: Driver) -> None:
    allow = driver.folder / "parameters/peer_allow"

    def body(link: socket.socket) -> None:
        with dmaplane.open(plane="kernel") as plane:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            while link.recv(1):
                answers = [try_create(plane, device, peer_bar=bar) for bar in (BAR, 0)]
                link.sendall(bytes(answers))

    with _rig.Child(body) as child:

        def ask() -> tuple[int, int]:
            child.socket.sendall(b"?")
            bar, registers = child.hear()
            return bar, registers

        try:
            assert ask() == (errno.EPERM, errno.EPERM)
            allow.write_text("1af4:1110:2")
            assert driver.parameter("peer_allow") == "1af4:1110:2"
            assert ask() == (0, errno.EPERM)
            allow.write_text("8086:1234,1af4:1110")
            assert ask() == (0, errno.EINVAL), "BAR 0 is allowed, and shorter than a page"
            for wrong in ("1af4", "1af4:1110:6", "1af4:1110:2:1", "x:y", "1af4:1110,,", "12345:1"):
                with pytest.raises(OSError, match="Invalid argument"):
                    allow.write_text(wrong)
            assert driver.parameter("peer_allow") == "8086:1234,1af4:1110"
            allow.write_text("1af4:1111")
            assert ask() == (errno.EPERM, errno.EPERM)
        finally:
            allow.write_text("\n")
        child.socket.shutdown(socket.SHUT_WR)
        child.join()


def touch_after_word(make: Callable[[], memoryview | mmap.mmap]) -> Callable[[socket.socket], None]:
    """A child's life: maps, reads, says so, and reads again when told."""

    def body(link: socket.socket) -> None:
        faulthandler.disable()
        view = make()
        assert view[0] == 7
        link.sendall(b"mapped")
        link.recv(1)
        link.sendall(bytes([view[PAGE]]))

    return body


@CACHINGS
def test_removal_while_mapped_ends_in_bus_errors(
    plane: dmaplane.Plane, device: Ivshmem, write_combine: bool
) -> None:
    device.host_write(0, bytes([7]) * MIB)

    def map_it() -> memoryview:
        own = dmaplane.open(plane="kernel")
        buffer = own.buffer(MIB, peer=device.address, peer_bar=BAR, write_combine=write_combine)
        return memoryview(buffer.numpy())

    with (
        plane.buffer(MIB, peer=device.address, peer_bar=BAR, write_combine=write_combine) as buffer,
        plane.buffer(MIB) as host,
        plane.channel() as first,
        plane.channel() as second,
        _rig.Child(touch_after_word(map_it)) as child,
    ):
        assert child.hear() == b"mapped"
        view = buffer.numpy()
        assert view[0] == 7
        device.remove()
        # Both tell, each once, and what is asked for later says so too.
        assert events_of(plane, first) == [("buffer_revoked", buffer.id)]
        assert events_of(plane, second) == [("buffer_revoked", buffer.id)]
        assert buffer.revoked
        done = first.copy(host.all, buffer.all).wait(_rig.PATIENCE_S, check=False)
        assert done.result == -errno.ESTALE
        assert done.path == "none"
        with pytest.raises(dmaplane.StaleEpochError):
            buffer.export(dmabuf=True)
        child.socket.sendall(b"!")
        child.join(expected=-signal.SIGBUS)
        device.rescan()
        with plane.buffer(MIB, peer=device.address, peer_bar=BAR) as again:
            first.copy(host.all, again.all).wait(_rig.PATIENCE_S)
            assert host.numpy()[0] == 7
        assert first.events() == ()
        del view


@pytest.mark.parametrize("outwards", [True, False], ids=["write", "read"])
@pytest.mark.parametrize("after", [1, 3])
def test_removal_while_copies_run(
    plane: dmaplane.Plane, device: Ivshmem, outwards: bool, after: int
) -> None:
    length, count = 4 * MIB, 64
    peer = plane.buffer(length, peer=device.address, peer_bar=BAR, write_combine=not outwards)
    host = plane.buffer(length)
    source, target = (host, peer) if outwards else (peer, host)
    with _rig.Rings(plane, slots=count) as rings:
        rings.put(_rig.rows_of(*[_rig.copy_of(source.id, target.id, length)] * count))
        assert rings.enter(count, after).accepted == count
        device.remove()
        done = rings.take_exactly(count + 1)
        events = done[(done["flags"] & _abi.COMPLETE_EVENT) != 0]
        copies = done[(done["flags"] & _abi.COMPLETE_EVENT) == 0]
        assert [(int(e["operation"]), int(e["user_data"])) for e in events] == [
            (_abi.EVENT_BUFFER_REVOKED, peer.id)
        ]
        results = [int(result) for result in copies["result"]]
        assert len(results) == count
        good = results.count(0)
        assert after <= good < count
        assert results == [0] * good + [-errno.ESTALE] * (count - good)
        assert all(copies["path"][:good] == _abi.PATH_PEER)
    peer.destroy()
    host.close()


def test_dma_buf_of_a_bar_goes_with_it(plane: dmaplane.Plane, device: Ivshmem) -> None:
    device.host_write(0, bytes([7]) * MIB)
    with (
        dmaplane.open(plane="kernel") as other,
        plane.buffer(MIB, peer=device.address, peer_bar=BAR) as buffer,
        other.channel() as channel,
        other.buffer(MIB) as host,
    ):
        with (
            buffer.export(dmabuf=True) as export,
            other.import_buffer(export) as imported,
            _rig.Child(touch_after_word(lambda: mmap.mmap(export.fileno(), MIB))) as child,
        ):
            assert child.hear() == b"mapped"
            data = noise(MIB)
            host.numpy()[:] = np.frombuffer(data, np.uint8)
            assert channel.copy(imported.all, host.all).wait(_rig.PATIENCE_S).path == "peer"
            assert device.host_read(0, MIB) == data
            view = imported.numpy()
            assert view.tobytes() == data
            assert buffer.holders.exports == 1
            device.remove()
            assert events_of(other, channel) == [("buffer_revoked", imported.id)]
            assert imported.revoked
            assert buffer.revoked
            done = channel.copy(host.all, imported.all).wait(_rig.PATIENCE_S, check=False)
            assert done.result == -errno.ESTALE
            child.socket.sendall(b"!")
            child.join(expected=-signal.SIGBUS)
            with pytest.raises(dmaplane.DmaplaneError):
                other.import_buffer(export)
            del view


def can_tell_who_reaches_whom() -> bool:
    """CONFIG_PCI_P2PDMA, which Debian's kernels lack."""
    return " pci_p2pdma_distance_many" in Path("/proc/kallsyms").read_text()


def test_an_importing_device_gets_addresses_and_hears_of_the_end(
    plane: dmaplane.Plane, device: Ivshmem, standin: Callable[[str], Driver]
) -> None:
    folder = Path("/sys/kernel/debug/peer_importer")

    def state() -> tuple[int, list[tuple[int, int]]]:
        moves, *rows = (folder / "state").read_text().splitlines()
        return int(moves), [(int(row.split()[0]), int(row.split()[1])) for row in rows]

    importer = standin("peer_importer")
    importer.load("address_bits=24")
    try:
        with (
            plane.buffer(MIB, peer=device.address, peer_bar=BAR) as buffer,
            buffer.export(dmabuf=True) as export,
            pytest.raises(OSError, match="not supported"),
        ):
            (folder / "import").write_text(str(export.fileno()))
    finally:
        importer.unload()
    importer.load()
    try:
        buffer = plane.buffer(MIB, peer=device.address, peer_bar=BAR, peer_address=MIB)
        with buffer.export(dmabuf=True) as export:
            if not can_tell_who_reaches_whom():
                with pytest.raises(OSError, match="not supported"):
                    (folder / "import").write_text(str(export.fileno()))
                device.remove()
                assert state() == (0, [])
            else:
                (folder / "import").write_text(str(export.fileno()))
                moves, pieces = state()
                assert moves == 0
                at = device.start + MIB
                for address, length in pieces:
                    assert address == at
                    at += length
                assert at == device.start + 2 * MIB
                (folder / "import").write_text("-1")
                assert state() == (0, [])
                (folder / "import").write_text(str(export.fileno()))
                device.remove()
                assert state() == (1, [])
                with pytest.raises(OSError, match=r"[Ss]tale"):
                    (folder / "import").write_text(str(export.fileno()))
        buffer.close()
    finally:
        importer.unload()


def test_unbinding_its_driver_is_no_removal(
    plane: dmaplane.Plane, device: Ivshmem, standin: Callable[[str], Driver]
) -> None:
    owner = standin("nvidia_standin")  # any driver that binds to the device
    owner.load()
    try:
        assert device.users == 1
        with (
            plane.channel() as channel,
            plane.buffer(MIB) as host,
            plane.buffer(MIB, peer=device.address, peer_bar=BAR) as buffer,
        ):
            assert device.users == 2
            device.host_write(0, bytes([9]) * MIB)
            owner.unload()
            assert device.users == 1
            channel.copy(host.all, buffer.all).wait(_rig.PATIENCE_S)
            assert host.numpy()[MIB - 1] == 9
            owner.load()
            assert device.users == 2
            channel.copy(buffer.all, host.all).wait(_rig.PATIENCE_S)
            assert not buffer.revoked
            assert channel.events() == ()
    finally:
        if owner.loaded:
            owner.unload()


def test_creating_while_it_comes_and_goes(device: Ivshmem) -> None:
    """However they meet: no buffer works without its device, and none keeps it enabled."""
    stop = threading.Event()
    seen: set[int] = set()
    failures: list[BaseException] = []

    def create() -> None:
        try:
            with dmaplane.open(plane="kernel") as plane:
                while not stop.is_set():
                    seen.add(try_create(plane, device))
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=create) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        with contextlib.suppress(FileNotFoundError):
            device.remove()
        device.rescan()
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures, failures
    assert {0, errno.ENODEV} <= seen
    assert seen <= {0, errno.ENODEV, errno.ESTALE}

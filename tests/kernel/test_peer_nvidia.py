# SPDX-License-Identifier: MIT
"""GPU memory by NVIDIA's exported functions, with a stand-in for NVIDIA's driver.

No GPU is in this machine: nvidia_standin.ko exports functions of the same names, calls
ivshmem's memory a GPU's, and takes it away when it is told to. What is tested is our side.
"""

from __future__ import annotations

import errno
import faulthandler
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from driver import Driver
from ivshmem import BAR_BYTES, PCI, Ivshmem

import dmaplane
from dmaplane import _abi
from dmaplane.testing import _rig

MIB = 1 << 20
PAGE = 4096
BASE = 0x7000_0000_0000
GPU_PAGE = 65536
CONTROL = Path("/sys/kernel/debug/nvidia_standin")


class Gpu:
    """The stand-in's GPU."""

    def __init__(self, driver: Driver, device: Ivshmem) -> None:
        self.driver = driver
        self.device = device

    @property
    def counts(self) -> dict[str, int]:
        """What the driver was asked since it was loaded; "tables" is what is pinned now."""
        words = (CONTROL / "state").read_text().split()
        return {name: int(count) for name, count in (word.split("=") for word in words)}

    @staticmethod
    def free(address: int) -> None:
        """cudaFree() of what is at a GPU address."""
        (CONTROL / "free").write_text(hex(address))

    def host(self, address: int, length_bytes: int) -> bytes:
        """The bytes of a range, found page by page where the stand-in has them."""
        found = b""
        for at in range(address - BASE, address - BASE + length_bytes, PAGE):
            page = at // GPU_PAGE ^ 1
            found += self.device.host_read(page * GPU_PAGE + at % GPU_PAGE, PAGE)
        return found[:length_bytes]


@pytest.fixture
def gpu(share: Path, standin: Callable[[str], Driver]) -> Iterator[Gpu]:
    device = Ivshmem(share / "ivshmem")
    device.host_write(0, bytes(MIB))
    driver = standin("nvidia_standin")
    driver.load()
    try:
        yield Gpu(driver, device)
        assert driver.users == 0, "somebody still holds the GPU's driver"
    finally:
        if driver.loaded:
            driver.unload()
        if not device.present:
            device.rescan()
    assert device.users == 0


@pytest.fixture
def plane() -> Iterator[dmaplane.Plane]:
    with dmaplane.open(plane="kernel") as made:
        yield made


def take(
    plane: dmaplane.Plane, gpu: Gpu, length_bytes: int, address: int = BASE, combine: bool = False
) -> dmaplane.Buffer:
    return plane.buffer(
        length_bytes,
        peer=gpu.device.address,
        peer_bar=None,
        peer_address=address,
        write_combine=combine,
    )


def refusal(plane: dmaplane.Plane, gpu: Gpu, length_bytes: int, address: int) -> int:
    """The errno of a request that must fail."""
    with pytest.raises(dmaplane.DmaplaneError) as raised:
        take(plane, gpu, length_bytes, address)
    return raised.value.errno or 0


@pytest.mark.parametrize("combine", [False, True], ids=["uncached", "combined"])
def test_a_range_in_pieces_is_one_buffer(plane: dmaplane.Plane, gpu: Gpu, combine: bool) -> None:
    # From inside one GPU page, over two whole ones, into the middle of a fourth.
    address, length = BASE + 3 * PAGE, 3 * GPU_PAGE
    data = np.random.default_rng(1).bytes(length)
    with (
        take(plane, gpu, length, address, combine) as buffer,
        plane.buffer(length) as host,
        plane.channel() as channel,
    ):
        assert gpu.counts["tables"] == 1
        host.numpy()[:] = np.frombuffer(data, np.uint8)
        done = channel.copy(buffer.all, host.all, checksum=True).wait(_rig.PATIENCE_S)
        assert done.path == "peer"
        assert gpu.host(address, length) == data
        view = buffer.numpy()
        assert view.tobytes() == data
        view[GPU_PAGE - 5 : GPU_PAGE + 5] = 9
        buffer.sync(write=True, end=True)
        wanted = data[: GPU_PAGE - 5] + bytes([9]) * 10 + data[GPU_PAGE + 5 :]
        assert gpu.host(address, length) == wanted
        back = channel.copy(host.all, buffer.all, checksum=True).wait(_rig.PATIENCE_S)
        assert back.path == "peer"
        assert host.numpy().tobytes() == wanted
        filled = channel.fill(buffer[4 : length - 4], 0x01020304).wait(_rig.PATIENCE_S)
        assert filled.path == "peer"
        assert gpu.host(address, length)[4:-4] == b"\4\3\2\1" * (length // 4 - 2)
        del view
    assert gpu.counts == {
        "tables": 0,
        "callbacks": 0,
        "puts": 1,
        "late_puts": 0,
        "frees_of_table": 0,
    }


def test_what_the_driver_refuses_is_refused(plane: dmaplane.Plane, gpu: Gpu) -> None:
    version = gpu.driver.folder / "parameters/version"
    assert refusal(plane, gpu, PAGE, BASE - GPU_PAGE) == errno.EINVAL
    assert refusal(plane, gpu, PAGE, BASE + BAR_BYTES) == errno.EINVAL
    assert refusal(plane, gpu, BAR_BYTES + PAGE, BASE) == errno.EINVAL
    assert refusal(plane, gpu, PAGE, BASE + 64) == errno.EINVAL
    assert refusal(plane, gpu, PAGE, (1 << 64) - PAGE) == errno.EOVERFLOW
    assert gpu.counts["puts"] == 0
    version.write_text(str(0x0002_0000))
    assert refusal(plane, gpu, PAGE, BASE) == errno.EOPNOTSUPP
    assert gpu.counts["puts"] == 1
    # A newer minor version only adds.
    version.write_text(str(0x0001_0009))
    take(plane, gpu, PAGE).close()
    assert gpu.counts["puts"] == 2


def test_driver_stays_while_its_memory_is_used(
    plane: dmaplane.Plane, gpu: Gpu, driver: Driver
) -> None:
    with take(plane, gpu, PAGE):
        assert gpu.driver.users > 0
        with pytest.raises(subprocess.CalledProcessError, match="returned non-zero"):
            gpu.driver.unload()
    assert gpu.driver.users == 0
    gpu.driver.unload()
    assert refusal(plane, gpu, PAGE, BASE) == errno.EOPNOTSUPP
    # It is looked for again once it may be there again.
    gpu.driver.load()
    take(plane, gpu, PAGE).close()


def test_memory_freed_while_mapped(plane: dmaplane.Plane, gpu: Gpu) -> None:
    def body(link: socket.socket) -> None:
        faulthandler.disable()
        with dmaplane.open(plane="kernel") as own:
            view = take(own, gpu, 2 * GPU_PAGE).numpy()
            link.sendall(bytes([view[0]]))
            link.recv(1)
            link.sendall(bytes([view[GPU_PAGE]]))

    with (
        take(plane, gpu, MIB) as buffer,
        take(plane, gpu, GPU_PAGE, BASE + MIB) as other,
        plane.buffer(MIB) as host,
        plane.channel() as channel,
        _rig.Child(body) as child,
    ):
        child.hear()
        view = buffer.numpy()
        assert view[0] == 0
        assert gpu.counts["tables"] == 3
        gpu.free(BASE + 7)
        assert gpu.counts["tables"] == 1
        assert gpu.counts["callbacks"] == 2
        assert gpu.counts["frees_of_table"] == 2
        _rig.wait_until(lambda: buffer.revoked, _rig.PATIENCE_S, "the buffer is revoked")
        assert [(e.name, e.id) for e in channel.events()] == [("buffer_revoked", buffer.id)]
        done = channel.copy(host.all, buffer.all).wait(_rig.PATIENCE_S, check=False)
        assert done.result == -errno.ESTALE
        child.socket.sendall(b"!")
        child.join(expected=-signal.SIGBUS)
        assert not other.revoked
        channel.fill(other.all, 5).wait(_rig.PATIENCE_S)
        del view
    counts = gpu.counts
    assert (counts["tables"], counts["puts"], counts["late_puts"]) == (0, 1, 0)


def test_memory_freed_while_copies_run(plane: dmaplane.Plane, gpu: Gpu) -> None:
    length, count = 2 * MIB, 64
    peer, host = take(plane, gpu, length), plane.buffer(length)
    with _rig.Rings(plane, slots=count) as rings:
        pair = [(host.id, peer.id), (peer.id, host.id)]
        rings.put(_rig.rows_of(*[_rig.copy_of(*pair[i % 2], length) for i in range(count)]))
        assert rings.enter(count, 2).accepted == count
        gpu.free(BASE)
        assert gpu.counts["tables"] == 0
        done = rings.take_exactly(count + 1)
    copies = done[(done["flags"] & _abi.COMPLETE_EVENT) == 0]
    results = [int(result) for result in copies["result"]]
    good = results.count(0)
    assert 2 <= good < count
    assert results == [0] * good + [-errno.ESTALE] * (count - good)
    peer.destroy()
    host.close()
    assert gpu.counts["puts"] == 0


def test_a_gpu_that_loses_its_driver_takes_its_memory(plane: dmaplane.Plane, gpu: Gpu) -> None:
    buffer = take(plane, gpu, MIB)
    (PCI / "drivers/nvidia/unbind").write_text(gpu.device.address)
    assert gpu.counts["callbacks"] == 1
    _rig.wait_until(lambda: buffer.revoked, _rig.PATIENCE_S, "the buffer is revoked")
    assert refusal(plane, gpu, PAGE, BASE) == errno.EOPNOTSUPP
    buffer.close()


def test_removal_of_the_gpu_takes_its_memory_once(plane: dmaplane.Plane, gpu: Gpu) -> None:
    with plane.channel() as channel:
        buffer = take(plane, gpu, MIB)
        gpu.device.remove()
        _rig.wait_until(lambda: buffer.revoked, _rig.PATIENCE_S, "the buffer is revoked")
        assert len(channel.events()) == 1
        buffer.close()
        assert gpu.counts["callbacks"] == 1
        assert gpu.counts["puts"] == 0


def test_freeing_meets_creating_and_destroying(gpu: Gpu) -> None:
    """Whoever comes first: each table is given back once, and nobody waits for ever."""
    stop = threading.Event()
    made = 0
    refused: set[int] = set()
    failures: list[BaseException] = []

    def live() -> None:
        nonlocal made
        try:
            with dmaplane.open(plane="kernel") as plane:
                for _ in range(60):
                    try:
                        buffer = take(plane, gpu, GPU_PAGE)
                    except dmaplane.DmaplaneError as error:
                        refused.add(error.errno or 0)
                        continue
                    made += 1
                    buffer.destroy()
        except BaseException as failure:
            failures.append(failure)
        finally:
            stop.set()

    def free() -> None:
        while not stop.is_set():
            gpu.free(BASE)

    threads = [threading.Thread(target=work) for work in (live, free)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    assert refused <= {errno.ENODEV, errno.ESTALE}
    counts = gpu.counts
    assert counts["tables"] == 0
    assert made
    assert counts["puts"] + counts["callbacks"] >= made


def test_kill_while_memory_is_freed(gpu: Gpu) -> None:
    """The process ends with buffers, mappings and copies in flight, while the GPU frees."""

    def body(link: socket.socket) -> None:
        own = dmaplane.open(plane="kernel")
        peer, host = take(own, gpu, MIB), own.buffer(MIB)
        peer.numpy()[0] = 1
        rings = _rig.Rings(own, slots=64)
        rings.put(_rig.rows_of(*[_rig.copy_of(host.id, peer.id, MIB)] * 64))
        rings.enter(64)
        link.sendall(b"busy")
        link.recv(1)

    for _ in range(5):
        with _rig.Child(body) as child:
            assert child.hear() == b"busy"
            freer = threading.Thread(target=gpu.free, args=(BASE,))
            freer.start()
            child.kill()
            freer.join()
    _rig.wait_until(lambda: gpu.counts["tables"] == 0, _rig.PATIENCE_S, "all was given back")
    assert gpu.driver.wait_users(0, _rig.PATIENCE_S)

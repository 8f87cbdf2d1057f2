# SPDX-License-Identifier: MIT
"""Cases of test_cuda_stand_in.py, each run in a process of its own before the stand-in driver.

    python cuda_cases.py NAME

Ends with 0 if the case holds. The driver is loaded once a process and by its name, so the
tests themselves never load it.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from ground import LENGTH, Ground

from dmaplane import (
    BusyError,
    ClosedError,
    CopyError,
    DeviceLostError,
    InvalidError,
    UnsupportedError,
)
from dmaplane.stream import Copies, open_device, tier_of
from dmaplane.stream.cuda import _bar, _staging
from dmaplane.stream.cuda._events import CudaMarker


def leaks() -> int:
    """What the stand-in says of allocations, registrations and streams that are left."""
    return int(ctypes.CDLL("libcuda.so.1").cuDevicePrimaryCtxRelease_v2(0))


def raises(kind: type[BaseException], call: Any, *words: str) -> None:
    try:
        call()
    except kind as error:
        caught = str(error)
    else:
        raise AssertionError(f"no {kind.__name__}")
    assert all(word in caught for word in words), caught


def there_and_back(ground: Ground, tier: Any, *, block: int, seed: int) -> bool:
    """Random blocks of random lengths up and down by @tier; True if every byte is right."""
    random = np.random.default_rng(seed)
    count = min(LENGTH // block, 300)
    content = ground.random(seed)
    to, out = random.permutation(count), random.permutation(count)
    lengths = random.integers(1, block + 1, count)
    background = np.full(LENGTH, 0x11, dtype=np.uint8)
    ground.put(background)
    if tier == "staged":  # the host's side in one piece, in no order
        lengths = lengths[np.argsort(out)]
        starts = np.cumsum(lengths) - lengths
        host, order = starts[out], lengths[out]
    else:
        host, order = out * block, lengths
    up = Copies.many(ground.there + to * block, ground.at + host, order)
    down = Copies.many(ground.at + host, ground.there + to * block, order)
    expected = background.copy()
    for place, start, length in zip(to * block, host, order, strict=True):
        expected[place : place + length] = content[start : start + length]
    with ground.stream() as stream:
        stream.copy(up, require=tier)
        stream.synchronize(60)
        right = bool((ground.seen() == expected).all())
        ground.host[:] = 0x22
        stream.copy(down, require=tier).wait(60)
    back = np.full(LENGTH, 0x22, dtype=np.uint8)
    for start, length in zip(host, order, strict=True):
        back[start : start + length] = content[start : start + length]
    return right and bool((ground.host == back).all())


def tiers() -> None:
    """Whatever the block: bytes through small pieces, a small ring, small slots."""
    small = {
        "piece_bytes": 64 << 10,
        "descriptor_bytes": 64 << 10,
        "slot_bytes": 64 << 10,
        "slots": 2,
        "batch_max": 7,
        "groups": 2,
    }
    with open_device("cuda", **small) as device:
        ground = Ground(device)
        for tier in ("single", "batch", "kernel", "staged"):
            for seed, block in enumerate((1, 24, 656, 4096, 20_000, 200_000)):
                assert there_and_back(ground, tier, block=block, seed=seed), (tier, block)
        ground.close()
    assert leaks() == 0


def long_lists() -> None:
    """More descriptors than the ring holds: launches wait for those before them."""
    with open_device("cuda", descriptor_bytes=64 << 10) as device:
        ground = Ground(device)
        content = ground.random(5)
        count = LENGTH // 64
        order = np.random.default_rng(5).permutation(count)
        with ground.stream(require="kernel") as stream:
            stream.copy(
                Copies.many(ground.there + order * 64, ground.at + np.arange(count) * 64, 64)
            )
            stream.synchronize(120)
        expected = np.empty((count, 64), dtype=np.uint8)
        expected[order] = content.reshape(count, 64)
        assert (ground.seen().reshape(count, 64) == expected).all()
        ground.close()
    assert leaks() == 0


def bulk() -> None:
    """The ring of the bulk copy unit, each of its lengths."""
    random = np.random.default_rng(0)
    for slots in (4, 8, 16, 32):
        with open_device("cuda", engine="bulk", bulk_slots=slots, groups=3) as device:
            ground = Ground(device)
            for block in (16, 656, 4096, 18 << 10):
                count = min(LENGTH // block, 400)
                to, out = random.permutation(count), random.permutation(count)
                lengths = random.integers(1, block // 16 + 1, count) * 16
                content = ground.random(slots)
                ground.put(np.zeros(LENGTH, dtype=np.uint8))
                with ground.stream(require="kernel") as stream:
                    stream.copy(
                        Copies.many(ground.there + to * block, ground.at + out * block, lengths)
                    ).wait(60)
                expected = np.zeros(LENGTH, dtype=np.uint8)
                for place, start, length in zip(to * block, out * block, lengths, strict=True):
                    expected[place : place + length] = content[start : start + length]
                assert (ground.seen() == expected).all(), (slots, block)
            ground.close()
    assert leaks() == 0


def without_events() -> None:
    """The stand-in notices: without the marks between streams staged bytes are wrong."""
    _staging.Staging._after = lambda self, stream, event: None  # type: ignore[method-assign]
    with open_device("cuda", slot_bytes=64 << 10, slots=2) as device:
        ground = Ground(device)
        right = [there_and_back(ground, "staged", block=4096, seed=seed) for seed in range(4)]
        assert not all(right)
        ground.close()


def staged_grids() -> None:
    """Grids in one piece of the host, in whatever order, through slots that are used again."""
    random = np.random.default_rng(7)
    with open_device("cuda", slot_bytes=64 << 10, slots=2, piece_bytes=128 << 10) as device:
        ground = Ground(device)
        for block in (8, 656, 4096, 9000, 100_000):
            count = min(LENGTH // (block + 8), 3000)
            for order in (np.arange(count), random.permutation(count)):
                content = ground.random(block)
                there = random.permutation(count)
                ground.put(np.full(LENGTH, 0x11, dtype=np.uint8))
                expected = np.full(LENGTH, 0x11, dtype=np.uint8)
                for place, one in zip(there, order, strict=True):
                    at = place * (block + 8)
                    expected[at : at + block] = content[one * block : (one + 1) * block]
                host = {"stride": block, "index": order, "": ground.at}
                ours = {"stride": block + 8, "index": there, "": ground.there}
                ways = []
                for source, destination in ((host, ours), (ours, host)):
                    ways.append(
                        Copies.indexed(
                            length=block,
                            source=source[""],
                            source_stride=source["stride"],
                            source_index=source["index"],
                            destination=destination[""],
                            destination_stride=destination["stride"],
                            destination_index=destination["index"],
                        )
                    )
                with ground.stream(require="staged") as stream:
                    stream.copy(ways[0]).wait(60)
                    assert (ground.seen() == expected).all(), block
                    ground.host[:] = 0x22
                    stream.copy(ways[1]).wait(60)
                assert (ground.host[: count * block] == content[: count * block]).all(), block
                assert (ground.host[count * block :] == 0x22).all(), block
        ground.close()
    assert leaks() == 0


def untimed() -> None:
    """Marks that only order have no time, and those of a lane have one."""
    with open_device("cuda", descriptor_bytes=64 << 10) as device:
        ground = Ground(device)
        with ground.stream(require="kernel") as stream:
            order = np.random.default_rng(5).permutation(1000)
            done = stream.copy(Copies.many(ground.there + order * 64, ground.at + order * 64, 64))
            done.wait(60)
            assert done.seconds
        assert len(device.ties._made) > 0  # type: ignore[attr-defined]
        lane = device.lane()
        first, last = lane.mark(), lane.mark()
        assert last.wait(30)
        assert last.seconds_since(first) >= 0
        tie = CudaMarker(device, device.ties, lane.stream)  # type: ignore[arg-type, attr-defined]
        assert tie.wait(30)
        raises(InvalidError, lambda: tie.seconds_since(first), "cuEventElapsedTime")
        lane.close()
        ground.close()
    assert leaks() == 0


def nine_arguments() -> None:
    """A driver of 12.8 gets the form with failIdx, and which copy failed is told."""
    with open_device("cuda", order="during-call") as device:
        assert device.driver.entries.batch_form == 9  # type: ignore[attr-defined]
        ground = Ground(device)
        assert there_and_back(ground, "batch", block=4096, seed=1)
        ground.close()


def no_batch() -> None:
    """An older driver has no batched copies, and the tier says so; the others copy."""
    with open_device("cuda") as device:
        tier = tier_of(device, "batch")
        assert not tier.available
        assert "12.8" in tier.reason
        pages = np.zeros(8192, dtype=np.uint8)
        pages[:] = np.arange(8192) % 251
        given = device.register(int(pages.ctypes.data), 8192)
        with device.memory(8192) as memory:
            lane = device.lane()
            up = Copies.one(memory.address, int(pages.ctypes.data), 8192)
            lane.execute("single", "h2d", up)
            assert lane.mark().wait(10)
            raises(CopyError, lambda: lane.execute("batch", "h2d", up), "12.8")
            lane.close()
        device.unregister(given)


def failure() -> None:
    """The third copy is refused: that operation's error, and the next one goes on."""
    with open_device("cuda") as device:
        ground = Ground(device)
        with ground.stream(require="single") as stream:
            for _ in range(2):
                stream.copy(ground.up(0, 4096)).wait(30)
            third = stream.copy(ground.up(0, 4096))
            raises(CopyError, lambda: third.wait(30), "CUDA_ERROR_INVALID_VALUE")
            stream.copy(ground.up(0, 4096)).wait(30)
            assert stream.failed is None
        ground.close()
    assert leaks() == 0


def lost() -> None:
    """An illegal address ends the device: this operation, later ones and marks say why."""
    with open_device("cuda") as device:
        ground = Ground(device)
        lane = device.lane()
        mark = lane.mark()
        stream = ground.stream(require="single")
        stream.copy(ground.up(0, 4096)).wait(30)
        raises(
            DeviceLostError,
            lambda: stream.copy(ground.up(0, 4096)).wait(30),
            "CUDA_ERROR_ILLEGAL_ADDRESS",
            "cuda:0",
        )
        raises(DeviceLostError, mark.reached, "ILLEGAL_ADDRESS")
        raises(DeviceLostError, device.lane, "ILLEGAL_ADDRESS")
        raises(DeviceLostError, lambda: device.memory(4096), "ILLEGAL_ADDRESS")
        try:
            stream.close()
        except DeviceLostError:
            pass  # it may say so once more
        ground.memory.close()


class _Foreign:
    """A stream as cuda.core has them."""

    def __init__(self, lane: Any) -> None:
        self._lane = lane

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, int(self._lane.stream)


class _Torch:
    """A stream as torch has them."""

    def __init__(self, lane: Any) -> None:
        self.cuda_stream = int(lane.stream)


def foreign() -> None:
    """What a caller's stream holds comes first, and what he puts after before() comes later."""
    with open_device("cuda") as device:
        ground = Ground(device)
        theirs = device.lane()
        for kind in (_Foreign, _Torch):
            first, second = ground.random(1)[:4096].copy(), ground.random(2)[:4096].copy()
            ground.host[:4096], ground.host[4096:8192] = first, second
            theirs.execute("single", "h2d", ground.up(0, 4096))
            with ground.stream() as stream:
                stream.after(kind(theirs))
                stream.copy(ground.down(8192, 4096, source=0), require="kernel")
                event = stream.record()
                event.before(kind(theirs))
                theirs.execute("single", "h2d", ground.up(0, 4096, source=4096))
                assert theirs.mark().wait(30)
                stream.synchronize(30)
            assert (ground.host[8192:12288] == first).all()
            assert (ground.seen()[:4096] == second).all()
        raises(InvalidError, lambda: device.capture(object()), "__cuda_stream__")
        raises(InvalidError, lambda: device.follow(object(), theirs.mark()), "__cuda_stream__")
        theirs.close()
        raises(ClosedError, theirs.mark, "closed")
        ground.close()
    assert leaks() == 0


def ceilings() -> None:
    """Sweeps touch every byte of theirs and none beside; what is timed has a duration."""
    from dmaplane.stream.cuda._ceiling import (
        burn_seconds,
        engine_bytes_per_second,
        processor_bytes_per_second,
    )

    with open_device("cuda") as device:
        ground = Ground(device)
        for in_flight in (2, 4, 8):
            ground.host[:] = 0x77
            length = 100_000
            whole = length - length % (in_flight * 512)
            for access in ("read", "write"):
                speed = processor_bytes_per_second(
                    device,  # type: ignore[arg-type]
                    access=access,  # type: ignore[arg-type]
                    address=ground.at,
                    length=length,
                    groups=3,
                    in_flight=in_flight,  # type: ignore[arg-type]
                )
                assert speed > 0
                assert bool((ground.host[whole:] == 0x77).all())
                assert bool((ground.host[:whole] == 0x77).all()) == (access == "read")
            words = ground.host[:whole].view(np.uint32).reshape(-1, in_flight, 32, 4)
            expected = (
                np.arange(32)[None, None, :, None] + np.arange(in_flight)[None, :, None, None]
            )
            assert (words == expected).all()
        for way in ("h2d", "d2h"):
            assert (
                engine_bytes_per_second(
                    device,  # type: ignore[arg-type]
                    direction=way,  # type: ignore[arg-type]
                    device_address=ground.there,
                    host_address=ground.at,
                    length=LENGTH,
                )
                > 0
            )
        assert burn_seconds(device, groups=2, turns=3) > 0  # type: ignore[arg-type]
        raises(
            InvalidError,
            lambda: processor_bytes_per_second(
                device,  # type: ignore[arg-type]
                access="read",
                address=ground.at,
                length=100,
                groups=1,
            ),
        )
        ground.close()
    assert leaks() == 0


def mapped() -> None:
    """A driver that maps its dma-bufs gives the tier bar: after a child has shown it."""
    fences: list[int] = []
    fence = _bar.store_fence

    def counted() -> None:
        fences.append(1)
        fence()

    _bar.store_fence = counted
    with open_device("cuda") as device:
        tier = tier_of(device, "bar")
        assert tier.available, tier.reason
        ground = Ground(device)
        content = ground.random(9)
        order = np.random.default_rng(9).permutation(256)
        with ground.stream() as stream:
            stream.copy(ground.up(0, LENGTH), require="kernel")
            blocks = Copies.many(
                ground.there + order * 4096, ground.at + np.arange(256) * 4096, 1000
            )
            stream.copy(blocks, require="bar").wait(60)
            assert fences == [1]
            raises(UnsupportedError, lambda: stream.copy(ground.down(0, 100), require="bar"), "h2d")
            raises(
                UnsupportedError, lambda: stream.copy(ground.up(0, 40_000), require="bar"), "32768"
            )
        expected = content.copy().reshape(256, 4096)
        expected[order, :1000] = content.reshape(256, 4096)[:, :1000]
        assert (ground.seen() == expected.reshape(-1)).all()
        ground.close()
    assert leaks() == 0


def unmapped() -> None:
    """Earlier ones do not: said without trying, and by a child that tried if asked."""
    with open_device("cuda") as device:
        assert "610" in tier_of(device, "bar").reason
    with open_device("cuda", bar="probe") as device:
        assert "map" in tier_of(device, "bar").reason
        assert not tier_of(device, "bar").available
    with open_device("cuda", bar="never") as device:
        assert "turned off" in tier_of(device, "bar").reason
    _bar.platform.machine = lambda: "riscv64"
    with open_device("cuda", bar="probe") as device:
        assert "riscv64" in tier_of(device, "bar").reason
    assert leaks() == 0


def forked() -> None:
    """A child of a fork has no device, and what it does there breaks nothing of the parent's."""
    with open_device("cuda") as device:
        ground = Ground(device)
        child = os.fork()
        if not child:
            try:
                assert device.closed
                raises(ClosedError, device.lane, "spawn")
                raises(ClosedError, lambda: device.memory(1), "spawn")
                device.close()
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert there_and_back(ground, "kernel", block=4096, seed=1)
        ground.close()
    assert leaks() == 0


def registration() -> None:
    """Whose memory it is decides what is registered; a range in use is not released."""
    with open_device("cuda", piece_bytes=4096) as device:
        pages = np.zeros(64 << 10, dtype=np.uint8)
        given = device.register(int(pages.ctypes.data), len(pages))
        assert len(given.owner.pieces) in (16, 17)  # type: ignore[attr-defined]
        raises(
            InvalidError,
            lambda: device.register(int(pages.ctypes.data), 4096),
        )
        device.unregister(given)
        address = device.pinned(8192)  # type: ignore[attr-defined]
        adopted = device.register(address, 8192)
        assert adopted.kind == "host"
        assert adopted.owner.pieces == ()  # type: ignore[attr-defined]
        device.unregister(adopted)
        device.call("cuMemFreeHost", address)  # type: ignore[attr-defined]
        address = device.raw_memory(4096)  # type: ignore[attr-defined]
        raises(InvalidError, lambda: device.register(address, 8192), "leave the allocation")
        adopted = device.register(address, 4096)
        assert adopted.kind == "device"
        device.unregister(adopted)
        device.call("cuMemFree", address)  # type: ignore[attr-defined]
        memory = device.memory(4096)
        own, _ = device.registry.resolve(memory.address)
        raises(InvalidError, lambda: device.unregister(own), "close()")
        given = device.register(int(pages.ctypes.data), 4096)
        hold = device.registry.hold(Copies.one(memory.address, int(pages.ctypes.data), 100))
        raises(BusyError, memory.close)
        raises(BusyError, lambda: device.unregister(given))
        hold.release()
    raises(ClosedError, lambda: device.memory(1), "closed")
    device.close()
    assert leaks() == 0


def no_device() -> None:
    """No GPU in sight: what to look at is said."""
    raises(UnsupportedError, lambda: open_device("cuda"), "CUDA_VISIBLE_DEVICES", "NO_DEVICE")
    raises(UnsupportedError, lambda: open_device("auto"), 'open_device("sim")')


def one_device() -> None:
    """A device of another number is an error that names those there are."""
    raises(UnsupportedError, lambda: open_device("cuda:3"), "cuda:3", "there is cuda:0")


def old_driver() -> None:
    """NVRTC is newer than the driver by a major version: the kernels are not there, and why."""
    with open_device("cuda") as device:
        for name in ("kernel", "staged"):
            tier = tier_of(device, name)  # type: ignore[arg-type]
            assert not tier.available
            assert "NVRTC" in tier.reason
        assert tier_of(device, "batch").available
        assert "13.3" in tier_of(device, "bar").reason


if __name__ == "__main__":
    globals()[sys.argv[1]]()

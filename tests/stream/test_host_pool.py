# SPDX-License-Identifier: MIT
"""Host pools: registered pieces, extents that nobody loses or shares, and who holds what."""

from __future__ import annotations

import gc
import re
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from ground import first_that_fits

import dmaplane
from dmaplane import (
    BusyError,
    ClosedError,
    CopyError,
    InvalidError,
    LimitError,
    NotFoundError,
    kv,
)
from dmaplane.stream import (
    Copies,
    CopyStream,
    Device,
    Extent,
    HostPool,
    Range,
    Registration,
)
from dmaplane.stream._pool import PIECE_BYTES_MIN as PIECE
from dmaplane.stream._pool import piece_lengths
from dmaplane.stream._registration import piece_step
from dmaplane.stream.sim import Faults, SimDevice


@pytest.fixture
def plane() -> Iterator[dmaplane.Plane]:
    with dmaplane.open(plane="embedded") as opened:
        yield opened


def test_a_pool_is_registered_in_bounded_pieces(plane: dmaplane.Plane, device: Device) -> None:
    told: list[tuple[int, int]] = []
    threads: set[str] = set()

    def progress(done: int, total: int) -> None:
        told.append((done, total))
        threads.add(threading.current_thread().name)

    with HostPool(plane, device, 5 * PIECE + 100, piece=2 * PIECE, progress=progress) as pool:
        lengths = [one.length for one in device.registry.ranges]
        assert sorted(lengths) == [PIECE + 256, 2 * PIECE, 2 * PIECE]
        assert {one.kind for one in device.registry.ranges} == {"host"}
        assert pool.length == 5 * PIECE + 256
        statistics = pool.statistics()
        assert statistics.pieces == 3
        assert statistics.misplaced_pages == 0
        assert statistics.account.free_bytes == pool.length
    assert device.registry.ranges == ()
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (5 * PIECE + 256, 5 * PIECE + 256)
    assert threads == {threading.current_thread().name}


def test_bytes_of_an_extent_cross_and_come_back(plane: dmaplane.Plane, device: Device) -> None:
    length = 1 << 16
    with (
        HostPool(plane, device, 2 * PIECE, piece=PIECE) as pool,
        pool.extent(length) as there,
        pool.extent(length) as back,
        device.memory(length) as memory,
    ):
        there.numpy()[:] = np.random.default_rng(1).integers(0, 255, length, np.uint8)
        lane = device.lane()
        for copies in (
            Copies.one(memory.address, there.address, length),
            Copies.one(back.address, memory.address, length),
        ):
            hold = device.registry.hold(copies)
            lane.execute("single", hold.direction, copies)
            assert lane.mark().wait(10)
            hold.release()
        lane.close()
        assert np.array_equal(there.numpy(), back.numpy())
        assert there.address != back.address


def test_a_pool_with_an_extent_stays_open_and_says_which(
    plane: dmaplane.Plane, device: Device
) -> None:
    pool = HostPool(plane, device, PIECE)
    extent = pool.extent(5000)
    with pytest.raises(BusyError, match="extent of 5000 bytes at 0"):
        pool.close()
    assert not pool.closed
    extent.numpy()[:] = 3
    extent.close()
    pool.close()
    pool.close()
    assert pool.closed
    with pytest.raises(ClosedError):
        pool.extent(1)


def test_a_pool_that_is_shown_stays_open(plane: dmaplane.Plane, device: Device) -> None:
    pool = HostPool(plane, device, PIECE)
    with pool.extent(4096) as extent:
        part = extent.numpy(1024, np.float32)[100:]
    assert extent.closed
    assert extent.views == 1
    with pytest.raises(BusyError):
        pool.close()
    part[:] = 1.0
    del part
    gc.collect()
    pool.close()


def test_a_pool_whose_piece_is_exported_as_a_region_stays_open(
    plane: dmaplane.Plane, device: Device
) -> None:
    pool = HostPool(plane, device, PIECE)
    with pool.extent(4096) as extent:
        region = extent.range.region()
    with pytest.raises(BusyError, match="1 region"):
        pool.close()
    region.close()
    pool.close()


def test_nobody_gets_bytes_that_a_range_of_them_still_reaches(
    plane: dmaplane.Plane, device: Device
) -> None:
    with HostPool(plane, device, 2 * PIECE, piece=PIECE) as pool:
        for reach in (
            lambda part: part.numpy(),
            lambda part: part.memory()[5:],
            lambda part: part[10:20].numpy(),
            lambda part: part.region("rw"),
            lambda part: part[10:20].region("read"),
            lambda part: plane.region(part),
        ):
            first = pool.extent(PIECE)
            with pool.extent(PIECE) as other:
                there = other.range.region()  # in the other piece: nobody's business
                reached = [reach(first.range)]
                first.close()
                with pytest.raises(LimitError, match="no span"):
                    pool.extent(1)
                if hasattr(reached[0], "close"):
                    reached[0].close()
                reached.clear()
                gc.collect()
                with pool.extent(PIECE) as again:
                    assert again.offset == first.offset
                there.close()
        assert pool.audit().free_bytes == 2 * PIECE


def test_a_range_of_a_closed_extent_reaches_nothing(plane: dmaplane.Plane, device: Device) -> None:
    with HostPool(plane, device, PIECE) as pool:
        with pool.extent(4096) as extent:
            part = extent.range
        for reach in (part.numpy, part.memory, part.region, lambda: part[:8].numpy()):
            with pytest.raises(ClosedError):
                reach()
        assert pool.audit().free_bytes == PIECE


def test_an_extent_that_cannot_be_made_takes_no_bytes(
    plane: dmaplane.Plane, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with HostPool(plane, device, PIECE) as pool:
        with monkeypatch.context() as patch:
            patch.setattr("dmaplane.stream._pool.Extent", interrupt)
            with pytest.raises(KeyboardInterrupt):
                pool.extent(4096)
        assert pool.audit().free_bytes == PIECE


def test_nobody_gets_bytes_that_are_still_shown(plane: dmaplane.Plane, device: Device) -> None:
    with HostPool(plane, device, PIECE) as pool:
        first = pool.extent(PIECE)
        shown = first.numpy()
        first.close()
        first.close()
        with pytest.raises(LimitError, match="no span"):
            pool.extent(1)
        with pytest.raises(ClosedError):
            first.numpy()
        del shown
        gc.collect()
        with pool.extent(PIECE) as second:
            assert second.offset == first.offset
        assert pool.audit().free_bytes == PIECE


def test_an_extent_nobody_closed_is_told(plane: dmaplane.Plane, device: Device) -> None:
    with HostPool(plane, device, PIECE) as pool:
        with pytest.warns(ResourceWarning, match="at 0, 100 bytes> was never closed"):
            pool.extent(100)
        pool._spans.give(0)


def test_arrays_made_while_others_close_are_never_of_somebody_elses_bytes(
    plane: dmaplane.Plane, device: Device
) -> None:
    with HostPool(plane, device, PIECE) as pool:
        for _ in range(200):
            extent = pool.extent(4096)
            shown: list[object] = []

            def show(extent: Extent = extent, shown: list[object] = shown) -> None:
                try:
                    shown.append(extent.numpy())
                except ClosedError:
                    pass

            thread = threading.Thread(target=show)
            thread.start()
            extent.close()
            thread.join()
            assert (pool.account().extents == 1) == bool(shown)
            shown.clear()
            del extent, show
            assert pool.account().extents == 0


def test_nobody_gets_bytes_that_are_still_copied(plane: dmaplane.Plane) -> None:
    with (
        SimDevice(faults=Faults(stall=frozenset({1}))) as device,
        HostPool(plane, device, PIECE) as pool,
        device.memory(4096) as memory,
    ):
        lane = device.lane()
        with pool.extent(4096) as extent:
            copies = Copies.one(memory.address, extent.address, 4096)
            hold = device.registry.hold(copies)
            lane.execute("single", "h2d", copies)
            end = lane.mark()
        with pool.extent(4096) as other:
            assert other.address != extent.address
        assert pool.account().taken_bytes > 0
        with pytest.raises(BusyError):
            pool.close()
        device.resume()
        assert end.wait(10)
        hold.release()
        assert pool.account().taken_bytes == 0
        lane.close()


def test_extents_closed_right_behind_their_copy_reach_the_device_whole(
    plane: dmaplane.Plane, device: Device
) -> None:
    """Each is closed before its copy has ended, and the pool has room for eight (L3)."""
    size, blocks = PIECE // 8, 200
    with (
        HostPool(plane, device, PIECE) as pool,
        device.memory(blocks * 4096) as memory,
        CopyStream(device, choose=first_that_fits) as stream,
    ):
        for number in range(blocks):
            with extent_of(pool, size, stream) as extent:
                extent.numpy(1024, np.uint32)[:] = number
                stream.copy(Copies.one(memory.address + number * 4096, extent.address, 4096))
        stream.synchronize(10)
        assert pool.account().free_bytes == PIECE
        with device_bytes(pool, stream, memory.address, blocks * 4096) as back:
            found = back.numpy((blocks, 1024), np.uint32)
            assert (found == np.arange(blocks, dtype=np.uint32)[:, None]).all()
            del found


def extent_of(pool: HostPool, length: int, stream: CopyStream) -> Extent:
    """An extent; when there is none, waits for copies to end."""
    try:
        return pool.extent(length)
    except LimitError:
        stream.synchronize(10)
        return pool.extent(length)


def device_bytes(pool: HostPool, stream: CopyStream, address: int, length: int) -> Extent:
    """An extent with a copy of that memory of the device."""
    extent = pool.extent(length)
    stream.copy(Copies.one(extent.address, address, length)).wait(10)
    return extent


def test_threads_never_share_bytes(plane: dmaplane.Plane, device: Device) -> None:
    wrong: list[int] = []

    def work(number: int, pool: HostPool) -> None:
        random = np.random.default_rng(number)
        for _ in range(150):
            try:
                extent = pool.extent(int(random.integers(1, PIECE // 3)))
            except LimitError:
                continue
            with extent:
                shown = extent.numpy()[:: max(1, extent.length // 64)]
                shown[:] = number
                if (shown != number).any():
                    wrong.append(number)
                del shown

    with HostPool(plane, device, 2 * PIECE, piece=PIECE) as pool:
        threads = [threading.Thread(target=work, args=(n, pool)) for n in range(1, 5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert pool.audit().free_bytes == 2 * PIECE
        assert pool.account().free_spans == 2


def test_addresses_of_a_pool_lead_to_its_buffers(plane: dmaplane.Plane, device: Device) -> None:
    with HostPool(plane, device, 2 * PIECE, piece=PIECE) as pool, pool.extent(100) as extent:
        part = pool.range_at(extent.address + 10, 20)
        assert part.buffer in pool.buffers
        extent.numpy()[10:30] = 7
        assert (part.numpy() == 7).all()
        with pytest.raises(InvalidError, match="beyond their piece"):
            pool.range_at(extent.address, 2 * PIECE)
        with pytest.raises(NotFoundError):
            pool.range_at(1, 1)
        del part


class Refusing(SimDevice):
    """Registers so many ranges and no more."""

    room = 2

    def register(self, address: int, length: int) -> Range:
        if len(self.registry.ranges) >= self.room:
            raise CopyError("no more")
        return super().register(address, length)


def test_a_pool_that_cannot_be_had_whole_leaves_nothing(plane: dmaplane.Plane) -> None:
    with Refusing() as device:
        before = len(plane._storages)
        with pytest.raises(CopyError, match="no more"):
            HostPool(plane, device, 4 * PIECE, piece=PIECE)
        assert device.registry.ranges == ()
        gc.collect()
        assert len(plane._storages) == before


class Keeping(SimDevice):
    """Does not give the first range back that it is asked for."""

    asked = 0

    def unregister(self, given: Range) -> None:
        self.asked += 1
        if self.asked == 1:
            raise CopyError("not that one")
        super().unregister(given)


def test_a_pool_that_was_interrupted_gives_back_what_it_can(
    plane: dmaplane.Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffers: list[dmaplane.Buffer] = []
    make = plane.buffer

    def keep(*arguments: Any, **settings: Any) -> dmaplane.Buffer:
        buffers.append(make(*arguments, **settings))
        return buffers[-1]

    def interrupt(done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    monkeypatch.setattr(plane, "buffer", keep)
    with Keeping() as device:
        with pytest.raises(CopyError, match="not that one"):
            HostPool(plane, device, 4 * PIECE, piece=PIECE, progress=interrupt)
        assert device.asked == 4
        assert len(device.registry.ranges) == 1
        assert sum(not buffer.closed for buffer in buffers) == 1
    for buffer in buffers:
        buffer.close()


def failing_user(plane: dmaplane.Plane, device: Device) -> None:
    with HostPool(plane, device, PIECE) as pool:
        kept = pool.extent(100)
        raise ZeroDivisionError(kept)


def test_an_error_on_its_way_out_is_what_the_caller_sees(
    plane: dmaplane.Plane, device: Device
) -> None:
    with pytest.raises(ZeroDivisionError):
        failing_user(plane, device)
    assert device.registry.ranges == ()
    gc.collect()
    assert not plane._storages


def test_a_block_left_with_an_extent_open_is_an_error_and_keeps_what_is_shown(
    plane: dmaplane.Plane, device: Device
) -> None:
    with pytest.raises(BusyError, match="extent of 100 bytes"):
        with HostPool(plane, device, PIECE) as pool:
            shown = pool.extent(100).numpy()
    assert device.registry.ranges == ()
    shown[:] = 5
    assert len(plane._storages) == 1
    del shown
    gc.collect()
    assert not plane._storages


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"piece": 1000}, "piece"),
        ({"piece": 1 << 40}, "piece"),
        ({"threads": 0}, "threads"),
        ({"threads": 65}, "threads"),
        ({"length": 0}, "length"),
        ({"length": 1 << 62}, "length"),
    ],
)
def test_settings_that_cannot_be_are_named(
    plane: dmaplane.Plane, settings: dict[str, int], field: str
) -> None:
    with SimDevice() as device, pytest.raises(InvalidError) as refused:
        HostPool(plane, device, **{"length": PIECE, **settings})  # type: ignore[arg-type]
    assert refused.value.field == field
    assert refused.value.fix


def test_pieces_add_up() -> None:
    assert piece_lengths(length=PIECE, piece=PIECE) == [PIECE]
    assert piece_lengths(length=2 * PIECE + 1, piece=PIECE) == [PIECE, PIECE, 256]


def test_the_node_is_the_devices_unless_one_is_named(plane: dmaplane.Plane) -> None:
    with SimDevice(node=0) as device:
        with HostPool(plane, device, PIECE) as pool:
            assert pool.node == pool.statistics().node == 0
    with SimDevice() as device, HostPool(plane, device, PIECE, node=0) as pool:
        assert pool.node == 0


# ---- pools of KV cache


LAYOUT = kv.Layout(
    layers=3, kv_heads=2, head_size=73, dtype="float16", block_tokens=8, order="NHD", model="t"
)


def test_no_block_of_a_kv_pool_crosses_a_piece(plane: dmaplane.Plane, device: Device) -> None:
    with kv.Pool(plane, LAYOUT, 401) as pool, device.memory(LAYOUT.block_bytes) as memory:
        with HostPool.of_kv(pool, device, piece=1 << 20) as registration:
            assert len(registration.ranges) > 2
            for layer in range(LAYOUT.layers):
                base = registration.address + pool.offset(layer)
                blocks = base + np.arange(401) * LAYOUT.block_bytes
                copies = Copies.many(np.full(1, memory.address), blocks[:1], LAYOUT.block_bytes)
                assert device.registry.check(copies) == "h2d"
                for address in blocks:
                    found, at = device.registry.resolve(int(address))
                    assert at + LAYOUT.block_bytes <= found.length
            with pytest.raises(BusyError, match=f"registered with {re.escape(device.name)}"):
                pool.close()
        pool.layer(0)[:] = 0


def test_a_registration_is_busy_while_a_copy_touches_it(
    plane: dmaplane.Plane, device: Device
) -> None:
    with plane.buffer(1 << 16) as buffer, device.memory(4096) as memory:
        registration = Registration(device, buffer, piece=1 << 14)
        copies = Copies.one(memory.address, registration.address, 4096)
        hold = device.registry.hold(copies)
        with pytest.raises(BusyError):
            registration.close()
        assert len(registration.ranges) == 1
        hold.release()
        registration.close()
        registration.close()
        assert registration.closed
        buffer.destroy()


def test_a_lost_device_is_no_reason_to_keep_memory(plane: dmaplane.Plane) -> None:
    with SimDevice() as device:
        pool = HostPool(plane, device, PIECE)
        device.lose()
        pool.close()
        assert pool.closed


def test_a_pool_ends_after_its_device_too(plane: dmaplane.Plane, device: Device) -> None:
    pool = HostPool(plane, device, 2 * PIECE, piece=PIECE)
    with pool.extent(100) as extent:
        extent.numpy()[:] = 1
    device.close()
    pool.close()
    assert pool.closed
    gc.collect()
    assert not plane._storages


@pytest.mark.parametrize(
    ("piece", "unit", "step"),
    [(1 << 20, 1, 1 << 20), (1 << 20, 4096 * 3, 4096 * 255), (4096, 584, 4096 * 73)],
)
def test_pieces_end_with_pages_and_units(piece: int, unit: int, step: int) -> None:
    found = piece_step(piece=piece, unit=unit)
    assert found == step
    assert found % 4096 == found % unit == 0


def test_a_unit_no_piece_can_hold_is_refused() -> None:
    with pytest.raises(InvalidError, match="power of two"):
        piece_step(piece=1 << 20, unit=(1 << 26) + 1)

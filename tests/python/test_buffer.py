# SPDX-License-Identifier: MIT
"""Buffers: views never dangle, holders are known, handles end once (L3, P4)."""

from __future__ import annotations

import errno
import gc
import os
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable

import numpy as np
import pytest

import dmaplane


def test_views_show_one_memory(plane: dmaplane.Plane) -> None:
    with plane.buffer(4096) as buffer:
        bytes_ = buffer.numpy()
        words = buffer.numpy((2, 8), np.uint32)
        shown = buffer.memory()
        words[1, 7] = 0x01020304
        assert bytes_[60] == 4
        shown[0] = 9
        assert words[0, 0] == 9
        assert bytes_.shape == (4096,)
        assert len(shown) == len(buffer) == 4096
        part = buffer[60:64].numpy(1, "<u4")
        assert part[0] == 0x01020304
        assert buffer[10:20][2:4].offset == 12


def test_length_is_what_was_asked_for(plane: dmaplane.Plane) -> None:
    with plane.buffer(1000) as buffer:
        assert len(buffer) == 1000
        assert buffer.numpy().shape == (1000,)
        assert buffer.allocated_bytes % plane.limits.page_bytes == 0


def test_close_with_a_live_view_keeps_the_memory(plane: dmaplane.Plane) -> None:
    with plane.buffer(1 << 20) as buffer:
        array = buffer.numpy()
        array[:] = 7
    assert buffer.closed
    assert (array == 7).all()
    array[:] = 8
    assert plane.statistics().buffers == 1
    with pytest.raises(dmaplane.ClosedError, match="closed"):
        buffer.numpy()
    inner = array[100:200].reshape(10, 10).T
    del array
    assert (inner == 8).all(), "a view of a view holds it too"
    assert plane.statistics().buffers == 1
    del inner
    assert plane.statistics().buffers == 0
    assert plane.statistics().mappings == 0


def test_close_of_the_plane_with_a_live_view_keeps_the_memory() -> None:
    plane = dmaplane.open(plane="embedded")
    buffer = plane.buffer(1 << 16)
    array = buffer.numpy()
    array[:] = 3
    plane.close()
    assert plane.closed
    assert (array == 3).all()
    array[-1] = 4
    assert not plane._ended
    del array
    assert plane._ended, "the last view ends the plane"
    plane.close()


def test_close_while_an_operation_is_in_flight_frees_after_it(plane: dmaplane.Plane) -> None:
    with plane.channel() as channel:
        source, target = plane.buffer(64 << 20), plane.buffer(64 << 20)
        operation = channel.copy(target, source)
        source.close()
        target.close()
        operation.wait(timeout=20)
    with plane.buffer(1):
        pass  # any create looks after retired buffers
    assert plane.statistics().buffers == 0


def test_destroy_names_every_kind_of_holder(plane: dmaplane.Plane) -> None:
    with plane.channel() as channel:
        buffer, other = plane.buffer(64 << 20), plane.buffer(64 << 20)
        array, shown = buffer.numpy((4, 4), np.float32), buffer.memory()
        with pytest.raises(dmaplane.BusyError) as caught:
            buffer.destroy()
        holders = caught.value.holders
        assert holders.views == 2
        assert caught.value.errno == errno.EBUSY
        assert "2 views" in str(caught.value)
        assert "numpy float32 [4, 4]" in str(caught.value)
        assert "drain=True" in str(caught.value)
        del array, shown
        running = [channel.copy(other, buffer) for _ in range(4)]
        with pytest.raises(dmaplane.BusyError) as caught:
            buffer.destroy()
        assert caught.value.holders.operations > 0
        assert "operation" in str(caught.value)
        assert not buffer.closed
        for operation in running:
            operation.wait(timeout=20)
        buffer.destroy()
        assert buffer.closed
        with pytest.raises(dmaplane.ClosedError, match="destroyed"):
            buffer.destroy()
        other.close()


def test_refused_destroy_changes_nothing(plane: dmaplane.Plane) -> None:
    with plane.buffer(4096) as buffer:
        array = buffer.numpy()
        array[:] = 1
        with pytest.raises(dmaplane.BusyError):
            buffer.destroy()
        assert (buffer.numpy() == 1).all()
        del array


def test_drain_waits_for_the_last_view(plane: dmaplane.Plane) -> None:
    buffer = plane.buffer(4096)
    kept = [buffer.numpy()]
    threading.Timer(0.1, kept.clear).start()
    began = time.monotonic()
    buffer.destroy(drain=True, timeout=20)
    assert 0.05 < time.monotonic() - began < 5
    assert plane.statistics().buffers == 0


def test_drain_that_times_out_leaves_it_draining(plane: dmaplane.Plane) -> None:
    buffer = plane.buffer(4096)
    array = buffer.numpy()
    with pytest.raises(dmaplane.TimedOutError, match="1 view"):
        buffer.destroy(drain=True, timeout=0.02)
    array[:] = 5
    with pytest.raises(dmaplane.ClosedError, match="draining"):
        buffer.numpy()
    assert plane.statistics().buffers == 1
    del array
    assert plane.statistics().buffers == 0


def test_views_may_die_in_any_thread(plane: dmaplane.Plane) -> None:
    for _ in range(20):
        buffer = plane.buffer(4096)
        views = [[buffer.numpy()] for _ in range(8)]
        buffer.close()
        threads = [threading.Thread(target=one.clear) for one in views]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert plane.statistics().buffers == 0


def test_view_in_a_reference_cycle_is_found_by_the_collector(plane: dmaplane.Plane) -> None:
    buffer = plane.buffer(4096)
    cycle: list[object] = [buffer.numpy()]
    cycle.append(cycle)
    buffer.close()
    assert plane.statistics().buffers == 1
    del cycle
    gc.collect()
    assert plane.statistics().buffers == 0


def test_dlpack_shares_the_memory_and_holds_it(plane: dmaplane.Plane) -> None:
    with plane.buffer(4096) as buffer:
        assert buffer.__dlpack_device__() == (1, 0)
        array = np.from_dlpack(buffer)
        buffer.numpy()[5] = 6
        assert array[5] == 6
        assert buffer.holders.views == 1
    assert plane.statistics().buffers == 1
    del array
    assert plane.statistics().buffers == 0


@pytest.mark.skipif(sys.version_info < (3, 12), reason="__buffer__ came with Python 3.12")
def test_buffer_protocol(plane: dmaplane.Plane) -> None:
    with plane.buffer(4096) as buffer:
        with memoryview(buffer) as shown:  # type: ignore[arg-type,unused-ignore]
            shown[3] = 3
            assert buffer.numpy()[3] == 3
            assert buffer.holders.views >= 1
        del shown
        assert not buffer.holders


def test_tensor_shares_the_memory(plane: dmaplane.Plane) -> None:
    torch = pytest.importorskip("torch")
    with plane.buffer(4096) as buffer:
        tensor = buffer.tensor((2, 3), "bfloat16")
        tensor.fill_(1.0)
        assert tensor.dtype is torch.bfloat16
        assert bytes(buffer.memory()[:2]) == b"\x80\x3f"
        assert buffer.holders.views == 1
        with pytest.raises(dmaplane.InvalidError, match="bfloat16"):
            buffer.tensor(1, "float99")
    del tensor
    gc.collect()
    assert plane.statistics().buffers == 0


def test_tensor_without_torch_says_what_is_needed(
    plane: dmaplane.Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with plane.buffer(64) as buffer, pytest.raises(dmaplane.UnsupportedError, match="pip install"):
        buffer.tensor()


def test_user_memory_is_not_copied(plane: dmaplane.Plane) -> None:
    mine = np.zeros(5000, np.uint8)
    with plane.channel() as channel, plane.buffer(user=mine) as user, plane.buffer(5000) as src:
        src.numpy()[:] = 9
        channel.copy(user, src).wait(timeout=5)
        assert (mine == 9).all()
        assert user.kind == "user"
        with plane.buffer(user=b"constant", read_only=True) as constant:
            channel.copy(src[:8], constant).wait(timeout=5)
            assert bytes(src.memory()[:8]) == b"constant"
            assert constant.memory().readonly
            with pytest.raises(dmaplane.InvalidError, match="read-only"):
                channel.copy(constant, src[:8])


def test_user_memory_cannot_be_resized_under_the_plane(plane: dmaplane.Plane) -> None:
    mine = bytearray(4096)
    buffer = plane.buffer(user=mine)
    with pytest.raises(BufferError):
        mine.extend(b"more")
    buffer.close()
    mine.extend(b"more")


def test_export_and_import_are_one_memory(plane: dmaplane.Plane) -> None:
    with plane.buffer(8192) as buffer, dmaplane.open(plane="embedded") as other:
        with buffer.export() as export:
            twin = other.import_buffer(export)
            read_only = other.import_buffer(export.fd, read_only=True)
        with twin, read_only:
            twin.numpy()[7] = 77
            assert buffer.numpy()[7] == 77
            seen = read_only.numpy()
            assert seen[7] == 77
            assert not seen.flags.writeable
            with pytest.raises(ValueError, match="read-only"):
                seen[0] = 1
            del seen
        with pytest.raises(dmaplane.ClosedError):
            export.fileno()


def test_detached_export_is_the_callers(plane: dmaplane.Plane) -> None:
    with plane.buffer(4096) as buffer:
        export = buffer.export(read_only=True)
        fd = export.detach()
        export.close()
        os.fstat(fd)
        os.close(fd)


def test_placement_adds_up(plane: dmaplane.Plane) -> None:
    with plane.buffer(1 << 20, node=0, strict=True) as buffer:
        placement = buffer.placement
        assert sum(placement.nodes.values()) == placement.pages
        assert placement.misplaced == 0
        assert placement.verified in ("counted", "single")
        again = buffer.recheck()
        assert (again.nodes, again.misplaced) == (placement.nodes, 0)
        assert "node 0" in str(placement)
        with pytest.raises(TypeError):
            placement.nodes[0] = 1  # type: ignore[index]


def test_huge_prefer_always_gives_memory(plane: dmaplane.Plane) -> None:
    with plane.buffer(4 << 20, huge="prefer") as buffer:
        assert buffer.page_bytes in (plane.limits.page_bytes, plane.limits.huge_page_bytes)
        buffer.numpy()[-1] = 1


def test_sync_takes_a_range(plane: dmaplane.Plane) -> None:
    with plane.buffer(4096) as buffer:
        buffer.sync(slice(0, 64), write=True)
        buffer.sync(slice(0, 64), write=True, end=True)
        buffer.sync(read=True)


def test_use_after_close_of_the_plane_is_refused() -> None:
    with dmaplane.open(plane="embedded") as plane:
        buffer = plane.buffer(4096)
        channel = plane.channel()
    for act in (plane.topology, plane.statistics, channel.statistics, channel.nop, buffer.numpy):
        with pytest.raises(dmaplane.ClosedError, match="closed"):
            act()
    with pytest.raises(dmaplane.ClosedError):
        plane.buffer(1)
    assert buffer.closed
    assert channel.closed
    buffer.close()
    channel.close()
    plane.close()


def _forget(make: Callable[[], object]) -> None:
    make()
    gc.collect()


def test_forgotten_handles_warn_and_only_warn() -> None:
    with dmaplane.open(plane="embedded") as plane:
        with pytest.warns(ResourceWarning, match=r"buffer \d+ pages.*never closed"):
            _forget(lambda: plane.buffer(4096))
        assert plane.statistics().buffers == 1
        with pytest.warns(ResourceWarning, match=r"channel \d+.*never closed"):
            _forget(lambda: plane.channel(slots=4))
    with pytest.warns(ResourceWarning, match=r"embedded plane.*never closed"):
        _forget(lambda: dmaplane.open(plane="embedded"))


def test_plane_is_garbage_once_closed() -> None:
    with dmaplane.open(plane="embedded") as plane:
        with plane.buffer(4096) as buffer:
            buffer.numpy()[0] = 1
        with plane.channel() as channel:
            channel.nop().wait(timeout=5)
        gone = weakref.ref(plane)
    del plane, buffer, channel
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gc.collect()
    assert gone() is None

# SPDX-License-Identifier: MIT
"""The tier "nic", whole but for the card: its way goes over tcp here, over verbs in a machine.

The simulated device is the device; tests/kernel/test_stream_nic.py has the same over Soft-RoCE.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import LOOPBACK, with_loopback

from dmaplane import stream
from dmaplane._embedded import EmbeddedPlane
from dmaplane._errors import (
    BusyError,
    ClosedError,
    CopyError,
    InvalidError,
    NotFoundError,
    PeerLostError,
    UnsupportedError,
)
from dmaplane.stream import Copies
from dmaplane.stream.nic import NetworkDevice, _network, _window, with_network
from dmaplane.stream.nic._way import FailedMoveError, Moves

BLOCK = 4096
BLOCKS = 64


class Ground:
    """A device with a card, memory of it, and host memory it may touch."""

    def __init__(self, device: NetworkDevice, stack: contextlib.ExitStack) -> None:
        self.device = device
        self.host = np.zeros(BLOCKS * BLOCK, dtype=np.uint8)
        self.range = device.register(self.host.ctypes.data, self.host.nbytes)
        self.memory = stack.enter_context(device.memory(self.host.nbytes))
        self.far = self.memory.numpy()
        self.lane = device.lane()
        stack.callback(setattr, self, "far", None)
        stack.callback(self.lane.close)
        self.host[:] = np.random.default_rng(1).integers(0, 256, self.host.nbytes, dtype=np.uint8)

    def copies(self, direction: str, out: list[int], to: list[int], length: int) -> Copies:
        """Byte offsets @out of the one side to @to of the other."""
        host, far = self.host.ctypes.data, self.memory.address
        source, target = (host, far) if direction == "h2d" else (far, host)
        return Copies.many(
            np.array(to, dtype=np.uint64) + np.uint64(target),
            np.array(out, dtype=np.uint64) + np.uint64(source),
            length,
        )

    def done(self) -> None:
        assert self.lane.mark().wait(10)


@pytest.fixture
def ground() -> Iterator[Ground]:
    with contextlib.ExitStack() as stack:
        device = stack.enter_context(with_loopback(stream.open_device("sim")))
        yield Ground(device, stack)


def test_it_adds_one_tier_and_keeps_the_others(ground: Ground) -> None:
    own = {tier.name: tier for tier in ground.device.inner.tiers()}
    mine = {tier.name: tier for tier in ground.device.tiers()}
    assert own.pop("nic").available is False
    assert mine.pop("nic") == stream.Tier("nic", available=True)
    assert own == mine


def test_figures_of_one_card_are_not_another_cards(ground: Ground) -> None:
    assert ground.device.identity != ground.device.inner.identity
    assert ground.device.identity.endswith("lo0")
    moved = dataclasses.replace(LOOPBACK, address="127.0.0.2")
    with NetworkDevice(
        stream.open_device("sim"), moved, plane=EmbeddedPlane("of a test"), fabric="tcp"
    ) as other:
        assert other.identity != ground.device.identity


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_bytes_are_exact_both_ways_at_any_offset_and_length(data: st.DataObject) -> None:
    length = data.draw(st.sampled_from([1, 7, 64, 513, 4096, 9000]))
    room = BLOCKS * BLOCK // length
    count = data.draw(st.integers(1, min(room - 1, 200)))
    seed = data.draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    out, back = random.permutation(room)[:count], random.permutation(room)[:count]
    with contextlib.ExitStack() as stack:
        device = stack.enter_context(with_loopback(stream.open_device("sim")))
        ground = Ground(device, stack)
        before = ground.host.copy()
        ground.lane.execute(
            "nic", "h2d", ground.copies("h2d", list(out * length), list(back * length), length)
        )
        wanted = np.zeros_like(before)
        for one, other in zip(out * length, back * length, strict=True):
            wanted[other : other + length] = before[one : one + length]
        ground.done()
        assert np.array_equal(ground.far, wanted)
        ground.host[:] = 0
        ground.lane.execute(
            "nic", "d2h", ground.copies("d2h", list(back * length), list(out * length), length)
        )
        ground.done()
        for one in out * length:
            assert np.array_equal(ground.host[one : one + length], before[one : one + length])
            ground.host[one : one + length] = 0
        assert not ground.host.any()


def test_ten_thousand_blocks_go_in_one_call(ground: Ground) -> None:
    host = np.arange(10_000 * 64, dtype=np.uint32).view(np.uint8)
    made = ground.device.register(host.ctypes.data, host.nbytes)
    with ground.device.memory(host.nbytes) as memory:
        order = np.random.default_rng(2).permutation(10_000).astype(np.uint32)
        copies = Copies.indexed(
            source=host.ctypes.data,
            destination=memory.address,
            source_stride=256,
            destination_stride=256,
            length=256,
            source_index=order,
            destination_index=np.arange(10_000, dtype=np.uint32),
        )
        ground.lane.execute("nic", "h2d", copies)
        ground.done()
        assert np.array_equal(memory.numpy().reshape(-1, 256), host.reshape(-1, 256)[order])
    ground.device.unregister(made)


def test_order_is_that_of_the_calls_whichever_tiers_they_take(ground: Ground) -> None:
    """Each call copies what the one before it has brought: h2d, d2h, h2d, by turns."""
    ground.host[BLOCK:] = 0
    first = ground.host[:BLOCK].copy()
    names: list[stream.TierName] = ["nic", "kernel", "single", "nic", "nic", "batch"]
    for step, name in enumerate(names):
        here, there = step * BLOCK, (step + 1) * BLOCK
        ground.lane.execute(name, "h2d", ground.copies("h2d", [here], [here], BLOCK))
        back = names[-1 - step]
        ground.lane.execute(back, "d2h", ground.copies("d2h", [here], [there], BLOCK))
    ground.done()
    for step in range(len(names) + 1):
        assert np.array_equal(ground.host[step * BLOCK : (step + 1) * BLOCK], first)


def test_memory_that_is_given_back_is_not_reached_by_what_was_there(ground: Ground) -> None:
    """The same address, registered again: what the card knew of it before is gone."""
    device, address = ground.device, ground.host.ctypes.data
    copies = ground.copies("h2d", [0], [0], BLOCK)
    ground.lane.execute("nic", "h2d", copies)
    windows = device._windows
    old = next(one for one in windows._windows if one.range.address == address)
    device.inner.unregister(ground.range)  # behind the wrapper's back
    with pytest.raises(CopyError, match="in no range"):
        ground.lane.execute("nic", "h2d", copies)
    ground.range = device.register(address, ground.host.nbytes)
    ground.lane.execute("nic", "h2d", copies)
    new = next(one for one in windows._windows if one.range.address == address)
    assert old.region.closed
    assert not new.region.closed
    assert new.region.generation != old.region.generation or new.region.id != old.region.id


def test_a_range_that_now_covers_two_old_ones_takes_their_place(ground: Ground) -> None:
    device = ground.device
    host = np.arange(4 * BLOCK, dtype=np.uint16).view(np.uint8)
    halves = [device.register(host.ctypes.data + at * 4 * BLOCK, 4 * BLOCK) for at in range(2)]
    assert len(device._windows) == 4
    for half in halves:
        device.inner.unregister(half)
    whole = device.register(host.ctypes.data, host.nbytes)
    assert len(device._windows) == 3
    copies = Copies.one(ground.memory.address, host.ctypes.data + 2 * BLOCK, 4 * BLOCK)
    ground.lane.execute("nic", "h2d", copies)
    ground.done()
    assert np.array_equal(ground.far[: 4 * BLOCK], host[2 * BLOCK : 6 * BLOCK])
    device.unregister(whole)
    assert len(device._windows) == 2


def test_memory_is_closed_when_the_card_knows_it_and_is_busy_while_a_call_uses_it(
    ground: Ground,
) -> None:
    with ground.device.memory(BLOCK) as memory:
        copies = Copies.one(memory.address, ground.host.ctypes.data, BLOCK)
        hold = ground.device.registry.hold(copies)
        with pytest.raises(BusyError):
            memory.close()
        ground.lane.execute("nic", "h2d", copies)  # and it is still there
        hold.release()
        ground.done()
    with pytest.raises(NotFoundError):
        ground.device.registry.check(copies)


def test_memory_a_copy_uses_stays_with_the_card_when_it_is_asked_for(ground: Ground) -> None:
    """Whoever asks too early is told so, and the copy under way has all it needs."""
    device = ground.device
    hold = device.registry.hold(Copies.one(ground.memory.address, ground.range.address, BLOCK))
    before = list(device._windows._windows)
    with pytest.raises(BusyError):
        device.unregister(ground.range)
    with pytest.raises(BusyError):
        ground.memory.close()
    assert device._windows._windows == before
    assert not any(window.region.closed for window in before)
    hold.release()
    device.unregister(ground.range)
    ground.far = None
    ground.memory.close()
    ground.memory.close()
    assert len(device._windows) == 0
    assert all(window.region.closed for window in before)


def test_a_call_that_is_interrupted_leaves_nothing_on_its_way(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would come of it later is no answer to another call."""
    ground.lane.execute("nic", "h2d", ground.copies("h2d", [0], [0], BLOCK))
    way = ground.lane._way
    assert way is not None
    channel = way._channel

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    places = [at * BLOCK for at in range(BLOCKS)]
    copies = ground.copies("h2d", places, places, BLOCK)
    with monkeypatch.context() as patch:
        patch.setattr(channel, "completions", interrupt)
        with pytest.raises(KeyboardInterrupt):
            ground.lane.execute("nic", "h2d", copies)
    done = channel.completions(wait=BLOCKS, timeout=10)
    assert len(done) == BLOCKS, "some were still on their way"
    ground.far[:] = 0xAB
    with pytest.raises(CopyError, match="interrupted"):
        ground.lane.execute("nic", "h2d", ground.copies("h2d", [0], [0], BLOCK))
    assert (ground.far == 0xAB).all()


def test_a_move_that_fails_is_named_and_the_way_goes_on(ground: Ground) -> None:
    """Many more than one batch: what was not begun when it failed never is."""
    ground.lane.execute("nic", "h2d", ground.copies("h2d", [0], [0], BLOCK))
    way = ground.lane._way
    assert way is not None
    count, bad = 20_000, 3_000
    windows = ground.device._windows
    found = windows.locate(np.array([ground.host.ctypes.data, ground.memory.address], np.uint64))
    near, far = (found.windows[index] for index in found.which)
    ground.host[:] = 9
    offsets = np.arange(count, dtype=np.uint64)
    regions = np.full(count, way.region(far.region), dtype=np.uint32)
    regions[bad] = 0xFFFFFF
    moves = Moves(
        buffers=np.full(count, near.buffer.id, dtype=np.uint32),
        buffer_offsets=offsets,
        regions=regions,
        region_offsets=offsets,
        lengths=np.ones(count, dtype=np.uint64),
    )
    ground.far[:] = 0
    with pytest.raises(FailedMoveError) as failed:
        way.write(moves)
    assert failed.value.index == bad
    assert ground.far[bad] == 0
    assert ground.far[bad - 1] == 9
    assert not ground.far[count - 1]
    ground.lane.execute("nic", "h2d", ground.copies("h2d", [0], [0], BLOCK))
    ground.done()
    assert (ground.far[:BLOCK] == 9).all()


def test_a_region_that_was_closed_behind_its_back_is_made_anew(ground: Ground) -> None:
    copies = ground.copies("h2d", [0], [0], BLOCK)
    ground.lane.execute("nic", "h2d", copies)
    for window in ground.device._windows._windows:
        window.region.close()
    ground.far[:] = 0
    ground.lane.execute("nic", "h2d", copies)
    ground.done()
    assert np.array_equal(ground.far[:BLOCK], ground.host[:BLOCK])


class Foreign:
    """A device whose memory is no host memory: it has a descriptor of it, or has not."""

    name = "foreign"

    def __init__(self, plane: EmbeddedPlane, fd: int) -> None:
        self.plane = plane
        self.fd = fd

    def dmabuf(self, address: int, length: int) -> tuple[int, int]:
        if self.fd < 0:
            raise RuntimeError("this driver has no such call")
        return os.dup(self.fd), address % 4096


def test_memory_of_a_device_is_reached_by_the_descriptor_it_gives() -> None:
    with EmbeddedPlane("of a device") as theirs, EmbeddedPlane("of a card") as plane:
        with theirs.buffer(3 * BLOCK) as memory, memory.export() as export:
            memory.memory()[:] = bytes(range(256)) * (3 * BLOCK // 256)
            made = stream.Range(0x7000_0000_0064, 5000, "device", object(), "of a test")
            before = len(os.listdir("/proc/self/fd"))
            buffer, offset = _window._opened(plane, made, Foreign(theirs, export.fd))
            with buffer:
                assert offset == 0x64
                assert buffer.memory()[offset] == 0x64
                assert len(buffer) == 3 * BLOCK
                assert len(os.listdir("/proc/self/fd")) <= before + 1  # the plane's own


def test_memory_that_nothing_reaches_says_what_was_tried() -> None:
    made = stream.Range(0x7000_0000_0064, 5000, "device", object(), "of a test")
    with EmbeddedPlane("of a card") as plane:
        with pytest.raises(UnsupportedError, match=r"kernel plane.*no such call"):
            _window._opened(plane, made, Foreign(plane, -1))


def test_a_lost_way_ends_the_tier_and_not_the_device(ground: Ground) -> None:
    copies = ground.copies("h2d", [0], [0], BLOCK)
    ground.lane.execute("nic", "h2d", copies)
    assert ground.lane._way is not None
    ground.lane._way._far.close()
    with pytest.raises(CopyError, match="lost") as failed:
        ground.lane.execute("nic", "h2d", copies)
    assert isinstance(failed.value.__cause__, PeerLostError)
    tier = stream.tier_of(ground.device, "nic")
    assert not tier.available
    assert "lo0" in tier.reason
    ground.lane.execute("single", "h2d", copies)
    ground.done()
    assert np.array_equal(ground.far[:BLOCK], ground.host[:BLOCK])
    other = ground.device.lane()
    with pytest.raises(CopyError, match="lost"):
        other.execute("nic", "h2d", copies)


def test_a_failure_before_a_copy_by_the_card_is_told_by_the_mark_after_it() -> None:
    faults = stream.sim.Faults(fail=frozenset({1}))
    with contextlib.ExitStack() as stack:
        device = stack.enter_context(with_loopback(stream.open_device("sim", faults=faults)))
        ground = Ground(device, stack)
        ground.lane.execute("single", "h2d", ground.copies("h2d", [0], [0], BLOCK))
        ground.lane.execute("nic", "h2d", ground.copies("h2d", [0], [0], BLOCK))
        with pytest.raises(CopyError, match="half way"):
            ground.lane.mark().wait(10)
        assert ground.lane.mark().wait(10)
        assert np.array_equal(ground.far[:BLOCK], ground.host[:BLOCK])


def test_marks_tell_the_time_the_card_took_where_the_devices_clock_does_not(
    ground: Ground,
) -> None:
    before = ground.lane.mark()
    ground.lane.execute("nic", "h2d", ground.copies("h2d", [0], [0], BLOCKS * BLOCK))
    after = ground.lane.mark()
    assert after.wait(10)
    assert after.seconds_since(before) > 0
    assert after.seconds_since(after) == 0


def test_marks_of_one_lane_are_waited_for_by_another(ground: Ground) -> None:
    other = ground.device.lane()
    ground.lane.execute("nic", "h2d", ground.copies("h2d", [0], [0], BLOCK))
    other.wait_for(ground.lane.mark())
    other.execute("nic", "d2h", ground.copies("d2h", [0], [BLOCK], BLOCK))
    assert other.mark().wait(10)
    assert np.array_equal(ground.host[:BLOCK], ground.host[BLOCK : 2 * BLOCK])
    other.close()


def test_two_lanes_copy_at_once_and_neither_disturbs_the_other(ground: Ground) -> None:
    half = BLOCKS // 2
    wanted = ground.host.copy()

    def carry(first: int) -> None:
        lane = ground.device.lane()
        try:
            for block in range(first, first + half):
                at = [block * BLOCK]
                lane.execute("nic", "h2d", ground.copies("h2d", at, at, BLOCK))
        finally:
            lane.close()

    both = [threading.Thread(target=carry, args=(first,)) for first in (0, half)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join(60)
    assert np.array_equal(ground.far, wanted)


def test_a_copy_that_waits_for_a_stalled_one_ends_when_its_lane_is_closed() -> None:
    faults = stream.sim.Faults(stall=frozenset({1}))
    with contextlib.ExitStack() as stack:
        device = stack.enter_context(with_loopback(stream.open_device("sim", faults=faults)))
        ground = Ground(device, stack)
        ground.lane.execute("single", "h2d", ground.copies("h2d", [0], [0], BLOCK))
        ended: list[type[Exception]] = []

        def carry() -> None:
            try:
                ground.lane.execute("nic", "h2d", ground.copies("h2d", [0], [BLOCK], BLOCK))
            except (CopyError, ClosedError) as error:
                ended.append(type(error))

        waiting = threading.Thread(target=carry)
        waiting.start()
        ground.lane.close()
        waiting.join(30)
        assert len(ended) == 1
        assert not ground.far[BLOCK : 2 * BLOCK].any()


def test_a_stream_takes_the_card_where_it_is_required(ground: Ground) -> None:
    wanted = ground.host.copy()
    every = [block * BLOCK for block in range(BLOCKS)]
    with stream.CopyStream(ground.device, require="nic") as copying:
        up = copying.copy(ground.copies("h2d", every, every[::-1], BLOCK))
        copying.call(lambda: ground.host.fill(0))
        event = copying.record()
        event.wait(30)
        down = copying.copy(ground.copies("d2h", every[::-1], every, BLOCK))
        copying.synchronize(30)
        assert up.done
        assert down.done
        assert (up.tier, down.tier) == ("nic", "nic")
    assert np.array_equal(ground.host, wanted)


def test_closing_gives_back_all_the_plane_had(ground: Ground) -> None:
    device = ground.device
    plane = device._plane
    ground.lane.execute("nic", "h2d", ground.copies("h2d", [0], [0], BLOCK))
    device.close()
    device.close()
    assert plane.closed
    assert device.inner.closed
    assert device.closed
    with pytest.raises(ClosedError):
        device.__enter__()


def test_a_machine_without_a_card_says_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_network, "cards", tuple)
    with stream.open_device("sim") as device:
        with pytest.raises(UnsupportedError, match="rdma link add"):
            with_network(device)
        with pytest.raises(InvalidError, match="mlx5_9"):
            with_network(device, "mlx5_9")
        assert not device.closed


def test_an_address_is_of_a_card_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_network, "cards", lambda: (LOOPBACK,))
    with stream.open_device("sim") as device:
        with pytest.raises(InvalidError, match="not named"):
            with_network(device, address="10.0.0.1")
        with pytest.raises(InvalidError, match="address"):
            with_network(device, "lo0", address="10.0.0.1:99")

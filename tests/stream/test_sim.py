# SPDX-License-Identifier: MIT
"""The simulated device: its times are the model's, its faults come when ordered."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from ground import LENGTH, Ground
from hypothesis import given, settings

from dmaplane import (
    BusyError,
    ClosedError,
    CopyError,
    DeviceLostError,
    InvalidError,
    UnsupportedError,
)
from dmaplane.stream import Copies, open_device, tier_of
from dmaplane.stream.sim import Cost, CostModel, Faults, SimDevice, TierCost

PLAIN = CostModel(
    tiers=(
        TierCost("single", Cost(1e-3, 1e-4, 1e9), Cost(2e-3, 0, 2e9), two_way_share=0.5),
        TierCost("batch", Cost(1e-3, 1e-4, 1e9), Cost(1e-3, 1e-4, 1e9), busy_penalty=3.0),
        TierCost("staged", Cost(0, 0, 1e9), Cost(0, 0, 1e9)),
    )
)


@pytest.fixture
def sim() -> Iterator[SimDevice]:
    with open_device("sim", costs=PLAIN) as opened:
        assert isinstance(opened, SimDevice)
        yield opened


def _seconds(device: SimDevice, tier: Any, copies: Copies) -> float:
    lane = device.lane()
    first = lane.mark()
    lane.execute(tier, device.registry.check(copies), copies)
    last = lane.mark()
    assert last.wait(30)
    lane.close()
    return last.seconds_since(first)


def test_a_copy_takes_what_the_model_says(sim: SimDevice) -> None:
    ground = Ground(sim)
    starts = np.arange(10) * 8192
    apart = Copies.many(ground.there + starts, ground.at + starts, 1000)
    assert _seconds(sim, "single", apart) == pytest.approx(1e-3 + 10 * 1e-4 + 10_000 / 1e9)
    back = Copies.many(ground.at + starts, ground.there + starts, 1000)
    assert _seconds(sim, "single", back) == pytest.approx(2e-3 + 10_000 / 2e9)
    joined = np.arange(10) * 1000
    beside = Copies.many(ground.there + joined, ground.at + joined, 1000)
    assert _seconds(sim, "batch", beside) == pytest.approx(1e-3 + 1e-4 + 10_000 / 1e9)
    ground.close()


def test_what_waits_for_a_mark_is_later_than_it(sim: SimDevice) -> None:
    ground = Ground(sim)
    first, second = sim.lane(), sim.lane()
    begun = second.mark()
    first.execute("single", "h2d", ground.up(0, 1000))
    second.wait_for(first.mark())
    second.execute("batch", "h2d", ground.up(0, 1000))
    ended = second.mark()
    assert ended.wait(30)
    assert ended.seconds_since(begun) == pytest.approx(2 * (1e-3 + 1e-4 + 1000 / 1e9))
    first.close()
    second.close()
    ground.close()


def test_time_stands_still_between_copies_unless_paced(sim: SimDevice) -> None:
    lane = sim.lane()
    first = lane.mark()
    assert first.wait(10)
    time.sleep(0.01)
    last = lane.mark()
    assert last.wait(10)
    assert last.seconds_since(first) == 0
    lane.close()


def test_a_busy_device_is_slower_where_a_tier_says_so(sim: SimDevice) -> None:
    ground = Ground(sim)
    quiet = _seconds(sim, "batch", ground.up(0, 1000))
    plain = _seconds(sim, "single", ground.up(0, 1000))
    assert not sim.busy()
    sim.set_busy(True)
    assert sim.busy()
    assert _seconds(sim, "batch", ground.up(0, 1000)) == pytest.approx(3 * quiet)
    assert _seconds(sim, "single", ground.up(0, 1000)) == pytest.approx(plain)
    ground.close()


def test_two_ways_at_once_share_the_link() -> None:
    with open_device("sim", costs=PLAIN, faults=Faults(stall=frozenset({1}))) as device:
        assert isinstance(device, SimDevice)
        ground = Ground(device)
        other = device.lane()
        other.execute("single", "d2h", ground.down(4096, 8))  # is pending, and stalls
        shared = _seconds(device, "single", ground.up(0, 100_000))
        assert shared == pytest.approx(1e-3 + 1e-4 + 100_000 / (1e9 * 0.5))
        device.resume()
        assert other.mark().wait(30)
        alone = _seconds(device, "single", ground.up(0, 100_000))
        assert alone == pytest.approx(1e-3 + 1e-4 + 100_000 / 1e9)


def test_paced_copies_are_not_there_before_their_time() -> None:
    slow = CostModel(tiers=(TierCost("single", Cost(0.03, 0, 1e12), Cost(0.03, 0, 1e12)),))
    with open_device("sim", costs=slow, paced=True) as device:
        ground = Ground(device)
        with ground.stream() as stream:
            began = time.monotonic()
            operations = [stream.copy(ground.up(0, 64)) for _ in range(3)]
            operations[-1].wait(30)
            assert time.monotonic() - began >= 0.09
            assert all((one.seconds or 0) >= 0.03 - 1e-9 for one in operations)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 300_000), min_size=1, max_size=60),
    st.randoms(use_true_random=False),
    st.booleans(),
)
def test_staged_brings_the_same_bytes_whatever_the_order(
    lengths: list[int], random: Any, up: bool
) -> None:
    """Also over a slot's end, and where the host's piece is two registrations."""
    total = sum(lengths)
    pages = np.zeros(total, dtype=np.uint8)
    at = int(pages.ctypes.data)
    cut = int(np.cumsum(lengths)[len(lengths) // 2]) if len(lengths) > 1 else total
    with open_device("sim", costs=PLAIN) as device:
        device.register(at, cut)
        if cut < total:
            device.register(at + cut, total - cut)
        memory = device.memory(total)
        assert hasattr(memory, "numpy")
        host = np.cumsum(lengths) - lengths
        order = list(range(len(lengths)))
        random.shuffle(order)
        sizes = np.array(lengths)[order]
        packed = np.cumsum(sizes) - sizes
        pages[:] = np.arange(total) % 251
        memory.numpy()[:] = np.arange(total) % 241
        before = pages.copy(), memory.numpy().copy()
        out, to = at + host[order], memory.address + packed
        copies = Copies.many(to, out, sizes) if up else Copies.many(out, to, sizes)
        _seconds(device, "staged", copies)  # type: ignore[arg-type]
        for start, far, size in zip(host[order], packed, sizes, strict=True):
            source = before[0][start:][:size] if up else before[1][far:][:size]
            result = memory.numpy()[far:][:size] if up else pages[start:][:size]
            assert (source == result).all()


def test_the_identity_changes_with_what_copies_cost() -> None:
    with (
        open_device("sim") as one,
        open_device("sim") as same,
        open_device("sim", costs=PLAIN) as other,
        open_device("sim", unavailable={"kernel": "no compiler"}) as less,
    ):
        assert one.identity == same.identity
        assert len({one.identity, other.identity, less.identity}) == 3
        assert tier_of(less, "kernel").reason == "no compiler"
        assert "no row" in tier_of(other, "kernel").reason
        assert "network card" in tier_of(one, "nic").reason
        lane = other.lane()
        with pytest.raises(InvalidError, match="kernel is not there"):
            lane.execute("kernel", "h2d", Copies.one(1, 2, 3))
        lane.close()


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Cost(-1, 0, 1e9), "launch_s"),
        (lambda: Cost(0, float("nan"), 1e9), "item_s"),
        (lambda: Cost(0, 0, 0), "bytes_per_s"),
        (lambda: TierCost("bar", Cost(0, 0, 1), Cost(0, 0, 1), two_way_share=0), "two_way_share"),
        (lambda: TierCost("bar", Cost(0, 0, 1), Cost(0, 0, 1), busy_penalty=0.5), "busy_penalty"),
        (lambda: CostModel(tiers=(*PLAIN.tiers, *PLAIN.tiers)), "tiers"),
        (lambda: CostModel(tiers=(TierCost("nic", Cost(0, 0, 1), Cost(0, 0, 1)),)), "tiers"),
        (lambda: Faults(lose=0), "faults"),
        (lambda: open_device("sim", unavailable={"warp": "none"}), "unavailable"),
        (lambda: open_device("sim", unavailable={"bar": ""}), "unavailable"),
        (lambda: open_device("sim:1"), "device"),
        (lambda: open_device("gpu"), "device"),
        (lambda: open_device("cuda:x"), "device"),
        (lambda: open_device("auto:1"), "device"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(make: Any, field: str) -> None:
    with pytest.raises(InvalidError) as refused:
        make()
    assert refused.value.field == field


def test_auto_is_never_the_simulation_unasked() -> None:
    try:
        with open_device("auto") as opened:
            assert opened.name.startswith("cuda")
        return
    except UnsupportedError as told:
        missing = str(told)
    assert 'open_device("sim")' in missing


def test_a_closed_lane_says_so_at_its_marks() -> None:
    with open_device("sim", faults=Faults(stall=frozenset({1}))) as device:
        ground = Ground(device)
        lane = device.lane()
        lane.execute("single", "h2d", ground.up(0, 64))
        mark = lane.mark()
        assert not mark.reached()
        with pytest.raises(InvalidError, match="not both are reached"):
            mark.seconds_since(mark)
        lane.close()
        lane.close()
        with pytest.raises(ClosedError):
            mark.reached()
        with pytest.raises(ClosedError):
            lane.execute("single", "h2d", ground.up(0, 64))
        with pytest.raises(ClosedError):
            lane.mark()
        ground.close()


def test_a_mark_tells_what_failed_since_the_one_before_it_and_tells_it_again() -> None:
    with open_device("sim", faults=Faults(fail=frozenset({2}))) as device:
        assert isinstance(device, SimDevice)
        ground = Ground(device)
        lane, other = device.lane(), device.lane()
        marks = []
        for _ in range(3):
            lane.execute("single", "h2d", ground.up(0, 64))
            marks.append(lane.mark())
        assert marks[2].wait(30)
        assert marks[0].reached()
        for _ in range(2):
            with pytest.raises(CopyError, match="call 2"):
                marks[1].reached()
        other.wait_for(marks[1])
        after = other.mark()
        assert after.wait(30)  # a failed copy of another lane is that lane's matter
        with pytest.raises(InvalidError, match="a mark of it"):
            other.wait_for(ground)
        device.lose("pulled out")
        with pytest.raises(DeviceLostError, match="pulled out"):
            other.execute("single", "h2d", ground.up(0, 64))
        late = other.mark()
        with pytest.raises(DeviceLostError, match="pulled out"):
            late.wait(30)


def test_what_waits_for_a_mark_that_never_comes_is_not_copied() -> None:
    """Its lane was closed with a copy in it: what is behind may not run as if that were there."""
    with open_device("sim", faults=Faults(stall=frozenset({1}))) as device:
        ground = Ground(device)
        ground.host[:] = 7
        lane, other = device.lane(), device.lane()
        lane.execute("single", "h2d", ground.up(0, 64))
        other.wait_for(lane.mark())
        for number in range(2):
            other.execute("batch", "h2d", ground.up(4096 * number, 64))
        after = other.mark()
        lane.close()
        with pytest.raises(CopyError, match="never comes"):
            after.wait(30)
        third = device.lane()
        third.wait_for(after)
        third.execute("batch", "h2d", ground.up(0, 64))
        with pytest.raises(CopyError, match="never comes"):
            third.mark().wait(30)
        assert not ground.memory.numpy().any()


def test_a_lane_closed_with_nothing_left_in_it_is_no_reason_to_wait_or_fail(
    sim: SimDevice,
) -> None:
    ground = Ground(sim)
    for _ in range(50):
        lane, other = sim.lane(), sim.lane()
        mark = lane.mark()
        lane.close()
        other.wait_for(mark)
        other.execute("batch", "h2d", ground.up(0, 64))
        assert other.mark().wait(30)
        other.close()


def test_a_device_whose_closing_is_interrupted_has_closed_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = SimDevice()
    lanes = [device.lane() for _ in range(3)]
    ended: list[object] = []
    close = type(lanes[0]).close

    def interrupted(lane: Any) -> None:
        ended.append(lane)
        close(lane)
        if len(ended) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(type(lanes[0]), "close", interrupted)
    with pytest.raises(KeyboardInterrupt):
        device.close()
    assert len(ended) == 3
    assert device.plane.closed
    device.close()


def test_memory_and_registrations_end_once_and_with_the_device() -> None:
    with open_device("sim") as device:
        assert isinstance(device, SimDevice)
        memory = device.memory(LENGTH)
        assert not memory.numpy().any()
        assert device.registry.resolve(memory.address + 5)[1] == 5
        hold = device.registry.resolve(memory.address)[0]
        with pytest.raises(InvalidError, match="freed by close"):
            device.unregister(hold)
        pages = np.zeros(4096, dtype=np.uint8)
        given = device.register(int(pages.ctypes.data), 4096)
        held = device.registry.hold(Copies.one(memory.address, given.address, 16))
        with pytest.raises(BusyError):
            memory.close()
        held.release()
        memory.close()
        memory.close()
        with pytest.raises(ClosedError):
            memory.numpy()
        with pytest.raises(InvalidError):
            device.register(0, 4096)
        later = device.memory(4096)
        view = later.numpy()
    view[:] = 1  # memory that is shown outlives its device
    later.close()
    device.close()
    with pytest.raises(ClosedError):
        device.lane()


def test_a_device_nobody_closed_says_so() -> None:
    device = open_device("sim")
    assert isinstance(device, SimDevice)
    plane = device.plane
    with pytest.warns(ResourceWarning, match="device sim"):
        del device
    plane.close()

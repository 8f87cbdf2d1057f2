# SPDX-License-Identifier: MIT
"""The choice against cost models: never much worse than the best, and it says why."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dmaplane
from dmaplane import CopyError, UnsupportedError
from dmaplane.stream import (
    Choice,
    Copies,
    CopyStream,
    Direction,
    HostPool,
    Profile,
    Tier,
    TierName,
    open_device,
)
from dmaplane.stream._calibration import COUNTS, SIZES, Calibration, calibrate
from dmaplane.stream.sim import Cost, CostModel, SimDevice, TierCost

WORSE = 1.05
Law = Callable[[float, float], float]  # of count and block bytes: seconds


class ModelMeter:
    """Answers by a law for each tier, on a clock that only it moves."""

    def __init__(self, laws: dict[TierName, Law], *, noise: float = 0.0) -> None:
        self.laws = laws
        self.noise = noise
        self.random = np.random.default_rng(5)
        self.now = 0.0

    def seconds(self, tier: Tier, direction: Direction, *, block_bytes: int, count: int) -> float:
        taken = self.laws[tier.name](count, block_bytes)
        self.now += 3e-5 + taken
        return taken * (1 + self.noise * (2 * self.random.random() - 1))

    def prove(self, tier: Tier, direction: Direction) -> None:
        self.laws[tier.name](1, 4096)

    def profile(self, seconds: float = 2.0, **changes: object) -> Profile:
        tiers = tuple(
            dataclasses.replace(Tier(name, available=True), **changes) for name in self.laws
        )
        found = calibrate(self, tiers, seconds=seconds, clock=lambda: self.now)
        assert self.now < seconds + 0.2
        return profile_of(found, tiers)


def profile_of(found: Calibration, tiers: tuple[Tier, ...]) -> Profile:
    return Profile(
        identity="model",
        device="model",
        tiers=tiers,
        failed=found.failed,
        rows=found.rows,
        made=0.0,
        seconds=0.0,
        samples=found.samples,
    )


def affine(cost: Cost) -> Law:
    return lambda n, s: cost.launch_s + n * cost.item_s + n * s / cost.bytes_per_s


def worst(choice: Choice, laws: dict[TierName, Law], points: list[tuple[int, int]]) -> float:
    """How many times the best the choice costs, at the worst of these points."""
    found = 1.0
    for count, size in points:
        taken = choice.estimate(count, size, "h2d")[0].tier
        best = min(law(count, size) for law in laws.values())
        found = max(found, laws[taken](count, size) / best)
    return found


def between(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(math.log(low), math.log(high)).map(math.exp)


costs = st.builds(
    Cost, launch_s=between(3e-7, 3e-5), item_s=between(1e-9, 1e-5), bytes_per_s=between(3e8, 1e11)
)
models = st.dictionaries(
    st.sampled_from(("single", "batch", "kernel", "staged", "bar")), costs, min_size=2
)
points = st.lists(
    st.tuples(between(1, 1 << 17).map(round), between(512, 1 << 24).map(round)),
    min_size=30,
    max_size=30,
)
GRID = [(count, size) for count in COUNTS for size in SIZES]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(models, points)
def test_no_choice_costs_much_more_than_the_best_on_the_grid_and_between(
    model: dict[TierName, Cost], others: list[tuple[int, int]]
) -> None:
    laws = {name: affine(cost) for name, cost in model.items()}
    choice = Choice(ModelMeter(laws).profile())
    assert worst(choice, laws, GRID + others) <= 1.001  # a line is exact for a sum


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(models, points)
def test_nor_does_it_where_measurements_are_a_percent_off(
    model: dict[TierName, Cost], others: list[tuple[int, int]]
) -> None:
    laws = {name: affine(cost) for name, cost in model.items()}
    choice = Choice(ModelMeter(laws, noise=0.01).profile())
    inside = [(n, s) for n, s in GRID + others if n * s <= 1 << 30]
    assert worst(choice, laws, inside) <= WORSE


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(models, st.sampled_from([1.5, 2.0, 4.0]), points)
def test_nor_where_submitting_and_moving_overlap(
    model: dict[TierName, Cost], power: float, others: list[tuple[int, int]]
) -> None:
    def law(cost: Cost) -> Law:
        def seconds(n: float, s: float) -> float:
            items, moved = n * cost.item_s, n * s / cost.bytes_per_s
            return cost.launch_s + (items**power + moved**power) ** (1 / power)

        return seconds

    laws = {name: law(cost) for name, cost in model.items()}
    choice = Choice(ModelMeter(laws).profile())
    inside = [(n, s) for n, s in GRID + others if n * s <= 1 << 30]
    assert worst(choice, laws, inside) <= WORSE


def test_a_cliff_between_two_sizes_is_found() -> None:
    # As batched copies were seen to have one: below 28 KiB each block costs the host 4 us.
    edge = 28 << 10

    def batch(n: float, s: float) -> float:
        return 5e-6 + n * (4e-6 if s < edge else 0.1e-6) + n * s / 55e9

    laws: dict[TierName, Law] = {"batch": batch, "kernel": affine(Cost(4e-6, 0.3e-6, 45e9))}
    choice = Choice(ModelMeter(laws).profile())
    sizes = [size for size in range(20 << 10, 36 << 10, 256) if abs(size - edge) > 512]
    assert worst(choice, laws, [(n, s) for n in (16, 200, 3000) for s in sizes]) <= WORSE
    assert choice.estimate(1000, 24 << 10, "h2d")[0].tier == "kernel"
    assert choice.estimate(1000, 32 << 10, "h2d")[0].tier == "batch"


def test_a_table_cut_short_is_coarse_and_still_chooses() -> None:
    laws: dict[TierName, Law] = {
        "batch": affine(Cost(5e-6, 0.5e-6, 55e9)),
        "kernel": affine(Cost(4e-6, 11e-9, 51.5e9)),
    }
    meter = ModelMeter(laws)
    profile = meter.profile(seconds=1e-4)
    assert meter.now < 0.1
    assert worst(Choice(profile), laws, GRID) <= 1.001


def test_the_time_given_is_kept() -> None:
    slow: dict[TierName, Law] = {
        name: affine(Cost(1e-4, 2e-4, 1e8)) for name in ("single", "batch", "kernel", "staged")
    }
    meter = ModelMeter(slow)
    meter.profile(seconds=2.0)
    assert meter.now < 2.15  # and the cell that was under way


class Hiccups(ModelMeter):
    """Every now and then something else has the machine for a while."""

    def seconds(self, tier: Tier, direction: Direction, *, block_bytes: int, count: int) -> float:
        taken = super().seconds(tier, direction, block_bytes=block_bytes, count=count)
        if self.random.random() < 0.02:
            self.now += 0.01
            return taken + 0.01
        return taken


def test_hiccups_do_not_count() -> None:
    laws: dict[TierName, Law] = {
        "batch": affine(Cost(5e-6, 0.5e-6, 55e9)),
        "kernel": affine(Cost(4e-6, 11e-9, 51.5e9)),
    }
    choice = Choice(Hiccups(laws).profile(seconds=20.0))
    assert worst(choice, laws, GRID) <= WORSE


def test_a_tier_that_fails_while_measured_is_left_out_with_the_reason() -> None:
    def broken(n: float, s: float) -> float:
        raise CopyError("it broke")

    laws: dict[TierName, Law] = {"batch": affine(Cost(5e-6, 1e-6, 55e9)), "kernel": broken}
    choice = Choice(ModelMeter(laws).profile())
    found = {one.tier: one for one in choice.estimate(100, 4096, "h2d")}
    assert found["batch"].allowed
    assert not found["kernel"].allowed
    assert found["kernel"].why == "it broke"


# ---- on the simulated device, through its lanes


MODELS = (
    CostModel(),
    CostModel(
        tiers=(
            TierCost("single", Cost(1e-6, 6e-6, 25e9), Cost(1e-6, 6e-6, 25e9)),
            TierCost("batch", Cost(9e-6, 0.2e-6, 25e9), Cost(3e-6, 2e-6, 25e9)),
            TierCost("kernel", Cost(20e-6, 40e-9, 12e9), Cost(2e-6, 4e-9, 26e9)),
        )
    ),
)


@pytest.mark.parametrize("model", MODELS, ids=["default", "older"])
def test_on_the_simulated_device_every_call_takes_nearly_the_best_tier(model: CostModel) -> None:
    with SimDevice(costs=model) as device:
        choice = Choice(Profile.measure(device, seconds=1.0))
        random = np.random.default_rng(3)
        for _ in range(150):
            count = round(math.exp(random.uniform(0, math.log(20000))))
            size = round(math.exp(random.uniform(math.log(512), math.log(4 << 20))))
            copies = scattered(count, size, extent=bool(random.integers(2)))
            for direction in ("h2d", "d2h"):
                taken = choice(copies, direction, device)  # type: ignore[arg-type]
                assert cost(model, taken, copies, direction) <= WORSE * min(
                    cost(model, tier.name, copies, direction)
                    for tier in device.tiers()
                    if not tier.refusal(copies, direction)  # type: ignore[arg-type]
                )


def scattered(count: int, size: int, *, extent: bool) -> Copies:
    """Blocks with gaps; with @extent both sides are of one order and the host's has no gaps."""
    index = np.random.default_rng(count).permutation(count).astype(np.uint32)
    near = np.arange(count, dtype=np.uint32)
    return Copies.indexed(
        source=1 << 40,
        destination=1 << 50,
        source_stride=size if extent else size + 64,
        destination_stride=size if extent else size + 64,
        length=size,
        source_index=near if extent else index,
        destination_index=index if extent else near,
    )


def cost(model: CostModel, tier: TierName, copies: Copies, direction: object) -> float:
    row = model.of(tier)
    assert row is not None
    return row.seconds(copies, direction, two_ways=False, busy=False)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def measured() -> Choice:
    with open_device("sim") as device:
        return Choice(Profile.measure(device, seconds=1.0))


def test_neighbours_are_judged_as_the_runs_they_are(measured: Choice) -> None:
    with open_device("sim") as device:
        together = Copies.scatter((1 << 50) + np.arange(4096) * 4096, 1 << 40, 4096)
        assert together.merged().count == 1
        apart = scattered(4096, 4096, extent=False)
        assert measured(apart, "h2d", device) == "kernel"
        with SimDevice(unavailable={"staged": "not wanted"}) as other:
            assert measured(together, "h2d", other) == "batch"


def test_a_stream_copies_by_what_the_choice_names(measured: Choice) -> None:
    blocks, size = 2048, 4096
    with (
        dmaplane.open(plane="embedded") as plane,
        open_device("sim") as device,
        HostPool(plane, device, 16 << 20) as pool,
        device.memory(blocks * size) as memory,
        pool.extent(blocks * size) as extent,
        pool.extent(blocks * size) as back,
        CopyStream(device, choose=measured) as stream,
    ):
        extent.numpy()[:] = np.random.default_rng(2).integers(0, 256, blocks * size, np.uint8)
        order = np.random.default_rng(3).permutation(blocks).astype(np.uint32)
        there, here = memory.address, back.address
        index = np.arange(blocks, dtype=np.uint32)
        out = stream.copy(grid(extent.address, there, size, index, order))
        home = stream.copy(grid(there, here, size, order[::-1], index[::-1]))
        one = stream.copy(Copies.one(there, extent.address, 512))
        stream.synchronize(10)
        assert [out.tier, home.tier] == ["staged", "staged"]
        assert one.tier == measured.estimate(1, 512, "h2d")[0].tier == "bar"
        assert np.array_equal(extent.numpy(), back.numpy())


def grid(
    source: int,
    destination: int,
    size: int,
    source_index: npt.NDArray[np.uint32],
    destination_index: npt.NDArray[np.uint32],
) -> Copies:
    return Copies.indexed(
        source=source,
        destination=destination,
        source_stride=size,
        destination_stride=size,
        length=size,
        source_index=source_index,
        destination_index=destination_index,
    )


def test_a_busy_device_moves_the_choice_to_tiers_that_leave_it_alone(measured: Choice) -> None:
    count, size = 64, 64 << 10
    idle = measured.estimate(count, size, "h2d")[0]
    busy = measured.estimate(count, size, "h2d", busy=True)
    assert idle.tier == "kernel"
    assert busy[0].tier == "batch"
    assert "busy costs it 2.00 times" in next(one.why for one in busy if one.tier == "kernel")
    with SimDevice() as device:
        copies = scattered(count, size, extent=False)
        assert measured(copies, "h2d", device) == "kernel"
        device.set_busy(True)
        assert measured(copies, "h2d", device) == "batch"


def test_only_an_extent_lets_staging_be_chosen(measured: Choice) -> None:
    apart = measured.estimate(4096, 4096, "d2h")
    staged = next(one for one in apart if one.tier == "staged")
    assert not staged.allowed
    assert "extent of a HostPool" in staged.why
    assert measured.estimate(4096, 4096, "d2h", extent=True)[0].tier == "staged"


def test_estimates_come_cheapest_first_and_say_why(measured: Choice) -> None:
    found = measured.estimate(1000, 4096, "h2d")
    allowed = [one for one in found if one.allowed]
    assert [one.allowed for one in found] == sorted((one.allowed for one in found), reverse=True)
    assert [one.seconds for one in allowed] == sorted(one.seconds or 0.0 for one in allowed)
    assert found[0].why == "the cheapest"
    assert all(one.why for one in found)
    assert next(one.why for one in found if one.tier == "nic").startswith("the simulation has no")


def test_no_way_at_all_is_an_error_with_every_reason(measured: Choice) -> None:
    gone = dict.fromkeys(("single", "batch", "kernel", "bar"), "switched off")
    with SimDevice(unavailable=gone) as device:  # type: ignore[arg-type]
        with pytest.raises(UnsupportedError, match=r"kernel: switched off.*staged: it needs"):
            measured(scattered(4, 4096, extent=False), "h2d", device)


def test_a_tier_nobody_measured_is_taken_only_for_want_of_others(measured: Choice) -> None:
    bare = Choice(dataclasses.replace(measured.profile, rows=()))
    with open_device("sim") as device:
        assert bare(scattered(4, 4096, extent=False), "h2d", device) == "single"
    first = bare.estimate(4, 4096, "h2d")[0]
    assert (first.tier, first.allowed, first.seconds) == ("single", True, None)
    assert {one.why for one in bare.estimate(4, 4096, "h2d") if one.tier == "kernel"} == {
        "it was not measured"
    }


@pytest.mark.parametrize(
    ("given", "field"),
    [((0, 4096, "h2d"), "count"), ((1, 0, "h2d"), "block_bytes"), ((1, 1, "up"), "direction")],
)
def test_nonsense_is_refused(measured: Choice, given: tuple[int, int, str], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        measured.estimate(*given)  # type: ignore[arg-type]

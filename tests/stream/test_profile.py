# SPDX-License-Identifier: MIT
"""Profiles: read off a table, kept in a file that anybody may have damaged."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopback import with_loopback

from dmaplane import DeviceLostError, InvalidError, SystemCallError
from dmaplane.stream import (
    Choice,
    Copies,
    Device,
    Direction,
    Profile,
    Tier,
    TierName,
    open_device,
)
from dmaplane.stream._cabinet import FILE_BYTES_MAX, POINTS_MAX
from dmaplane.stream._calibration import calibrate
from dmaplane.stream._curve import Curve, Row
from dmaplane.stream.sim import Cost, CostModel, Faults, SimDevice, TierCost
from dmaplane.stream.sim._lane import SimLane


@pytest.fixture(autouse=True)
def cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "dmaplane"


@pytest.fixture
def device() -> Iterator[Device]:
    with open_device("sim") as opened:
        yield opened


@pytest.fixture(scope="module")
def measured() -> Profile:
    with open_device("sim") as opened:
        return Profile.measure(opened, seconds=0.2)


def test_a_profile_comes_back_as_it_was_kept(
    device: Device, measured: Profile, cache: pathlib.Path
) -> None:
    assert Profile.load(device) is None
    path = measured.save()
    assert path.parent == cache
    assert [one.name for one in cache.iterdir()] == [path.name], "something was left beside it"
    kept = Profile.load(device)
    assert kept == measured
    assert kept is not None
    assert str(path) in kept.origin
    assert path.stat().st_mode & 0o077 == 0
    assert cache.stat().st_mode & 0o077 == 0


def test_a_choice_of_a_device_keeps_its_profile(device: Device) -> None:
    choice = Choice.of(device)
    assert Profile.load(device) == choice.profile


def test_the_first_use_measures_and_the_next_does_not(device: Device) -> None:
    first = Profile.of(device, seconds=0.1)
    again = Profile.of(device, seconds=0.1)
    assert again == first
    assert first.origin.startswith("measured now (none was kept), kept in")
    assert again.origin.startswith("kept in")
    fresh = Profile.of(device, seconds=0.1, refresh=True)
    assert fresh.made > first.made
    assert fresh.origin.startswith("measured now (asked to)")


def test_another_model_or_other_tiers_have_another_profile(
    device: Device, measured: Profile
) -> None:
    measured.save()
    assert Profile.load(device) is not None
    with SimDevice(unavailable={"batch": "switched off"}) as other:
        assert Profile.load(other) is None
    cost = Cost(1e-6, 1e-6, 1e9)
    with SimDevice(costs=CostModel(tiers=(TierCost("single", cost, cost),))) as other:
        assert Profile.load(other) is None


def test_a_profile_of_somebody_else_under_our_name_is_not_taken(
    device: Device, measured: Profile
) -> None:
    path = measured.save()
    other = json.loads(path.read_text())
    other["identity"] = "cuda:something else"
    path.write_text(json.dumps(other))
    assert Profile.load(device) is None


def test_one_of_another_version_is_measured_again(device: Device, measured: Profile) -> None:
    path = measured.save()
    other = json.loads(path.read_text())
    other["version"] = 2
    path.write_text(json.dumps(other))
    assert Profile.load(device) is None


def _changed(path: str, value: Any) -> Any:
    """What changes a profile at "rows.0.counts" to @value."""

    def change(top: dict[str, Any]) -> None:
        *way, last = [int(step) if step.isdecimal() else step for step in path.split(".")]
        at: Any = top
        for step in way:
            at = at[step]
        at[last] = value

    return change


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("format", "something", "format"),
        ("version", "1", "version"),
        ("identity", 7, "identity"),
        ("identity", "x" * 2000, "identity"),
        ("device", None, "device"),
        ("made", float("nan"), "made"),
        ("made", 10**400, "made"),
        ("seconds", -1, "seconds"),
        ("samples", 1.5, "samples"),
        ("samples", True, "samples"),
        ("tiers", {}, "tiers"),
        ("tiers", [{}] * 17, "tiers"),
        ("tiers.0", 3, r"tiers\[0\]"),
        ("tiers.0.name", "teleport", r"tiers\[0\].name"),
        ("tiers.0.available", 1, r"tiers\[0\].available"),
        ("tiers.0.directions", ["up"], r"tiers\[0\].directions"),
        ("tiers.0.busy_penalty", float("inf"), r"tiers\[0\].busy_penalty"),
        ("failed", [["kernel"]], r"failed\[0\]"),
        ("failed", [["kernel", 3]], r"failed\[0\]"),
        ("rows", "many", "rows"),
        ("rows", [{}] * 1025, "rows"),
        ("rows.0.tier", "teleport", r"rows\[0\].tier"),
        ("rows.0.direction", "up", r"rows\[0\].direction"),
        ("rows.0.block_bytes", 0, r"rows\[0\].block_bytes"),
        ("rows.0.block_bytes", 1 << 80, r"rows\[0\].block_bytes"),
        ("rows.0.counts", [], r"rows\[0\]"),
        ("rows.0.counts", [4, 1], r"rows\[0\]"),
        ("rows.0.counts", list(range(1, 40)), r"rows\[0\].counts"),
        ("rows.0.seconds", ["soon"], r"rows\[0\].seconds"),
        ("rows.0.seconds", [0.0], r"rows\[0\].seconds"),
    ],
)
def test_a_damaged_file_names_its_field(
    device: Device, measured: Profile, path: str, value: Any, field: str
) -> None:
    file = measured.save()
    top = json.loads(file.read_text())
    _changed(path, value)(top)
    file.write_text(json.dumps(top))
    with pytest.raises(InvalidError, match=f"^{field}.*--refresh"):
        Profile.load(device)


def test_a_damaged_file_is_measured_again_and_the_caller_is_told_why(
    device: Device, measured: Profile
) -> None:
    measured.save().write_text("{")
    again = Profile.of(device, seconds=0.05)
    assert "no JSON" in again.origin
    assert Profile.load(device) == again


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b" " * (FILE_BYTES_MAX + 1), b"1" * 10_000],
    ids=["empty", "half", "a list", "bytes", "deep", "long", "digits"],
)
def test_what_is_no_profile_at_all_is_refused(
    device: Device, measured: Profile, content: bytes
) -> None:
    file = measured.save()
    file.write_bytes(content)
    with pytest.raises(InvalidError, match=str(file)):
        Profile.load(device)


def test_what_is_no_plain_file_is_refused_without_waiting(
    device: Device, measured: Profile
) -> None:
    file = measured.save()
    file.unlink()
    for make in (os.mkfifo, os.mkdir):
        make(file)
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(InvalidError, match="plain file"):
            Profile.load(device)
        assert len(os.listdir("/proc/self/fd")) == before
        if make is os.mkfifo:
            file.unlink()


def test_two_rows_of_one_kind_are_refused(device: Device, measured: Profile) -> None:
    file = measured.save()
    top = json.loads(file.read_text())
    top["rows"][3] = top["rows"][0]
    file.write_text(json.dumps(top))
    with pytest.raises(InvalidError, match=r"^rows\[3\]: the second one"):
        Profile.load(device)


def test_a_file_that_cannot_be_read_is_measured_again(
    device: Device, measured: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured.save()
    read = os.read

    def refuse(fd: int, length: int) -> bytes:
        if length > 1 << 16:
            raise OSError(5, "Input/output error")
        return read(fd, length)

    monkeypatch.setattr(os, "read", refuse)
    with pytest.raises(SystemCallError, match="EIO"):
        Profile.load(device)
    assert "EIO" in Profile.of(device, seconds=0.05).origin


def test_who_has_no_home_is_measured_for_and_told(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless() -> pathlib.Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(pathlib.Path, "home", homeless)
    assert "not kept: finding the cache folder" in Profile.of(device, seconds=0.05).origin


class Noisy:
    """Every measurement is a little off, on a clock that only it moves."""

    def __init__(self, noise: float) -> None:
        self.random = random.Random(3)
        self.noise = noise
        self.now = 0.0

    def prove(self, tier: Tier, direction: Direction) -> None:
        pass

    def seconds(self, tier: Tier, direction: Direction, *, block_bytes: int, count: int) -> float:
        taken = 5e-6 + count * 2e-7 + count * block_bytes / 4e10
        self.now += 3e-5 + taken
        return taken * (1 + self.random.uniform(-self.noise, self.noise))


@pytest.mark.parametrize("noise", [0.1, 0.25])
def test_a_profile_measured_with_noise_can_be_read_again(noise: float) -> None:
    cost = Cost(1e-6, 1e-6, 1e9)
    meter = Noisy(noise)
    with SimDevice(costs=CostModel(tiers=(TierCost("single", cost, cost),))) as device:
        found = calibrate(meter, device.tiers(), seconds=2.0, clock=lambda: meter.now)
        assert max(len(one.counts) for one in found.rows) == POINTS_MAX, "none was made finer"
        profile = Profile(
            identity=device.identity,
            device=device.name,
            tiers=device.tiers(),
            failed=(),
            rows=found.rows,
            made=1.0,
            seconds=2.0,
            samples=found.samples,
        )
        profile.save()
        assert Profile.load(device) == profile


def test_reasons_of_any_length_are_kept_as_far_as_they_can_be(measured: Profile) -> None:
    with SimDevice(unavailable={"bar": "x" * 5000}) as other:
        profile = Profile.measure(other, seconds=0.05)
        profile.save()
        assert Profile.load(other) == profile


def test_what_could_not_be_read_again_is_not_written(
    measured: Profile, cache: pathlib.Path
) -> None:
    with pytest.raises(InvalidError, match="identity"):
        dataclasses.replace(measured, identity="x" * 2000).save()
    assert not cache.exists()


def test_what_tiers_may_do_is_the_devices_to_say(device: Device, measured: Profile) -> None:
    dataclasses.replace(
        measured,
        tiers=tuple(dataclasses.replace(tier, largest=1, merges=True) for tier in measured.tiers),
    ).save()
    kept = Profile.load(device)
    assert kept is not None
    assert kept.tiers == device.tiers()


def test_a_folder_that_cannot_be_had_is_told_and_no_reason_to_fail(
    device: Device, measured: Profile, cache: pathlib.Path
) -> None:
    cache.write_text("in the way")
    with pytest.raises(SystemCallError, match=str(cache)):
        measured.save()
    found = Profile.of(device, seconds=0.05)
    assert "not kept: writing" in found.origin
    assert Choice(found).estimate(100, 4096, "h2d")[0].allowed


def test_a_profile_kept_half_way_leaves_the_old_one(
    device: Device, measured: Profile, cache: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured.save()

    def refuse(_: str, __: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(SystemCallError, match="ENOSPC"):
        dataclasses.replace(measured, samples=1).save()
    assert Profile.load(device) == measured
    assert len(list(cache.iterdir())) == 1


def test_measuring_gives_back_all_it_took(device: Device) -> None:
    Profile.measure(device, seconds=0.05)
    assert device.registry.ranges == ()


class Forgetful(SimDevice):
    """Its kernels leave the last byte of what they copy out."""

    def lane(self) -> SimLane:
        return ForgetfulLane(self)


class ForgetfulLane(SimLane):
    def execute(self, tier: TierName, direction: Direction, copies: Copies) -> None:
        if tier == "kernel":
            copies = Copies.many(copies.destinations, copies.sources, copies.lengths - 1)
        super().execute(tier, direction, copies)


def test_a_tier_that_brings_other_bytes_is_never_chosen() -> None:
    with Forgetful() as device:
        profile = Profile.measure(device, seconds=0.1)
        (name, why), *others = profile.failed
        assert not others
        assert name == "kernel"
        assert "came back as others" in why
        choice = Choice(profile)
        found = {one.tier: one for one in choice.estimate(1000, 4096, "h2d")}
        assert not found["kernel"].allowed
        assert found["kernel"].why == why
        assert choice(Copies.one(1 << 50, 1 << 40, 100_000), "h2d", device) != "kernel"
        assert "not kept: kernel failed" in Profile.of(device, seconds=0.1).origin
        assert Profile.load(device) is None


class OneWay(SimDevice):
    """What its copies one by one bring back lacks a byte."""

    def lane(self) -> SimLane:
        return OneWayLane(self)


class OneWayLane(SimLane):
    def execute(self, tier: TierName, direction: Direction, copies: Copies) -> None:
        if (tier, direction) == ("single", "d2h"):
            copies = Copies.many(copies.destinations, copies.sources, copies.lengths - 1)
        super().execute(tier, direction, copies)


@pytest.mark.parametrize("others", [(), ("kernel", "staged", "bar")], ids=["five", "two"])
def test_a_tier_that_brings_other_bytes_is_not_blamed_on_the_others(
    others: tuple[TierName, ...],
) -> None:
    with OneWay(unavailable=dict.fromkeys(others, "not here")) as device:
        profile = Profile.measure(device, seconds=0.1)
        assert [name for name, _ in profile.failed] == ["single"]
        assert "back by single" in profile.failed[0][1]


class Large(SimDevice):
    """One of its tiers takes no blocks that fit into what is measured with."""

    def tiers(self) -> tuple[Tier, ...]:
        return tuple(
            dataclasses.replace(tier, smallest=64 << 20) if tier.name == "batch" else tier
            for tier in super().tiers()
        )


def test_a_tier_of_larger_blocks_than_can_be_measured_is_left_out() -> None:
    with Large() as device:
        profile = Profile.measure(device, seconds=0.1)
        ((name, why),) = profile.failed
        assert name == "batch"
        assert "do not fit" in why
        assert {row.tier for row in profile.rows} == {"single", "kernel", "staged", "bar"}


def test_a_meter_holds_what_is_in_its_lane_until_that_has_ended(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[list[int]] = []
    close = SimLane.close

    def look(lane: SimLane) -> None:
        held.append([device.registry.uses(one) for one in device.registry.ranges])
        close(lane)

    monkeypatch.setattr(SimLane, "close", look)
    Profile.measure(device, seconds=0.05)
    assert len(held) == 1
    assert all(held[0]), "the ranges could have been released under a copy"
    assert device.registry.ranges == ()


def test_a_profile_of_a_busy_device_is_not_kept() -> None:
    with SimDevice() as device:
        device.set_busy(True)
        assert "not kept: the device was busy" in Profile.of(device, seconds=0.05).origin
        assert Profile.load(device) is None


def test_a_lost_device_ends_the_calibration() -> None:
    with SimDevice(faults=Faults(lose=50)) as device:
        with pytest.raises(DeviceLostError):
            Profile.measure(device, seconds=0.5)


def test_a_tier_that_fails_once_too_often_is_left_out() -> None:
    with SimDevice(faults=Faults(fail=frozenset({40}))) as device:
        profile = Profile.measure(device, seconds=0.1)
        assert len(profile.failed) == 1
        assert "half way" in profile.failed[0][1]
        assert {row.tier for row in profile.rows}.isdisjoint(dict(profile.failed))


def test_a_device_with_a_card_has_a_profile_of_its_own(device: Device) -> None:
    plain = Profile.of(device, seconds=0.1)
    with with_loopback(open_device("sim")) as carded:
        assert Profile.load(carded) is None
        profile = Profile.of(carded, seconds=0.5)
        assert {row.tier for row in profile.rows} == {row.tier for row in plain.rows} | {"nic"}
        assert Profile.load(carded) == profile
    assert Profile.load(device) == plain


def test_progress_rises_to_the_end(device: Device) -> None:
    told: list[float] = []
    Profile.measure(device, seconds=0.1, progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 1.0


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), 601])
def test_a_time_that_cannot_be_is_refused(device: Device, seconds: float) -> None:
    with pytest.raises(InvalidError, match="seconds"):
        Profile.measure(device, seconds=seconds)


# ---- curves


def row(size: int, counts: tuple[int, ...], seconds: tuple[float, ...]) -> Row:
    return Row("batch", "h2d", size, counts, seconds)


@given(
    st.floats(0, 1e-4), st.floats(1e-9, 1e-4), st.floats(1e-12, 1e-8),
    st.integers(1, 1 << 17), st.integers(1, 1 << 24),
)  # fmt: skip
def test_a_sum_is_read_off_exactly(
    launch: float, item: float, byte: float, count: int, size: int
) -> None:
    def law(n: float, s: float) -> float:
        return launch + n * item + n * s * byte

    counts = (1, 4, 64, 1024)
    rows = [row(s, counts, tuple(law(n, s) for n in counts)) for s in (512, 8192, 1 << 20)]
    assert Curve(rows).seconds(count, size) == pytest.approx(law(count, size), rel=1e-6)


@given(st.lists(st.floats(1e-9, 1.0), min_size=9, max_size=9), st.data())
def test_whatever_was_measured_a_reading_is_a_time(
    seconds: list[float], data: st.DataObject
) -> None:
    counts = (1, 16, 256)
    rows = [
        row(size, counts, tuple(seconds[3 * at : 3 * at + 3]))
        for at, size in enumerate((512, 4096, 65536))
    ]
    curve = Curve(rows)
    count = data.draw(st.integers(1, 1 << 24))
    size = data.draw(st.integers(1, 1 << 40))
    assert 0 < curve.seconds(count, size) < float("inf")
    for one in rows:
        for at, number in enumerate(counts):
            assert curve.seconds(number, one.block_bytes) == one.seconds[at]


def test_one_point_is_taken_as_so_much_a_block() -> None:
    curve = Curve([row(4096, (1,), (1e-5,))])
    assert curve.seconds(1, 4096) == 1e-5
    assert curve.seconds(10, 4096) == pytest.approx(1e-4)
    assert curve.seconds(1, 8192) == pytest.approx(2e-5)

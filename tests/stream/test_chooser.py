# SPDX-License-Identifier: MIT
"""The chooser of a stream that was given none: measured once, shared, no reason to fail."""

from __future__ import annotations

import functools
import pathlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from dmaplane import NoMemoryError, OperationCancelledError
from dmaplane.stream import (
    CalibrationWarning,
    Copies,
    CopyStream,
    Operation,
    Profile,
    Registry,
    _calibration,
    _profile,
)
from dmaplane.stream._calibration import Calibration, DeviceMeter, calibrate
from dmaplane.stream.sim import Cost, CostModel, Faults, SimDevice, TierCost

SIZE = 1 << 16
ARENA = 16 << 20


@pytest.fixture(autouse=True)
def cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "dmaplane"


class Watch:
    """How often a device was measured, and how many at the same time."""

    def __init__(self) -> None:
        self.count = 0
        self.now = 0
        self.most = 0
        self.meanwhile: Callable[[], object] = lambda: None

    def calibrate(self, meter: Any, tiers: Any, **settings: Any) -> Calibration:
        self.count += 1
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            self.meanwhile()
            return calibrate(meter, tiers, **{**settings, "seconds": 0.05})
        finally:
            self.now -= 1


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Measuring is short here, and in little memory."""
    made = Watch()
    monkeypatch.setattr(_profile, "calibrate", made.calibrate)
    monkeypatch.setattr(_profile, "DeviceMeter", functools.partial(DeviceMeter, arena=ARENA))
    return made


class Rig:
    """A simulated device, host memory it may touch, and streams that were given no chooser."""

    def __init__(self, **settings: Any) -> None:
        self.device = SimDevice(**settings)
        self.host = np.arange(SIZE, dtype=np.uint32).view(np.uint8)[:SIZE].copy()
        self.range = self.device.register(int(self.host.ctypes.data), SIZE)
        self.memory = self.device.memory(SIZE)

    def up(self, stream: CopyStream, part: int = 0) -> Operation:
        """A copy of one of 16 parts."""
        at = part * SIZE // 16
        return stream.copy(
            Copies.one(self.memory.address + at, self.range.address + at, SIZE // 16)
        )

    def arrived(self, *parts: int) -> bool:
        there = self.memory.numpy().reshape(16, -1)
        return all((there[part] == self.host.reshape(16, -1)[part]).all() for part in parts)


@pytest.fixture
def rig() -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def make(**settings: Any) -> Rig:
        made.append(Rig(**settings))
        return made[-1]

    yield make
    for each in made:
        each.device.close()


def test_streams_at_once_measure_their_device_once(rig: Any, watch: Watch) -> None:
    ground = rig()
    both = threading.Barrier(2)
    with CopyStream(ground.device) as first, CopyStream(ground.device) as second:

        def go(stream: CopyStream, part: int) -> None:
            both.wait(30)
            ground.up(stream, part).wait(60)

        threads = [
            threading.Thread(target=go, args=(stream, part))
            for part, stream in enumerate((first, second))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert ground.arrived(0, 1)
    with CopyStream(ground.device) as third:
        ground.up(third, 2).wait(60)
    assert watch.count == 1
    assert Profile.load(ground.device) is not None, "it was not kept"


def test_devices_are_measured_one_after_the_other(rig: Any, watch: Watch) -> None:
    cost = Cost(1e-6, 1e-6, 1e9)
    grounds = [rig(), rig(costs=CostModel(tiers=(TierCost("single", cost, cost),)))]
    streams = [CopyStream(ground.device) for ground in grounds]
    watch.meanwhile = lambda: time.sleep(0.01)  # so that two would meet
    operations = [ground.up(stream) for ground, stream in zip(grounds, streams, strict=True)]
    for operation in operations:
        operation.wait(60)
    for stream in streams:
        stream.close()
    assert (watch.count, watch.most) == (2, 1)


def test_a_device_that_cannot_be_measured_copies_all_the_same_and_says_so_once(
    rig: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def refuse(*_: Any, **__: Any) -> None:
        tried.append(1)
        raise NoMemoryError("64 MiB of device memory")

    monkeypatch.setattr(_profile, "DeviceMeter", refuse)
    ground = rig(unavailable={"single": "not today"})
    with CopyStream(ground.device) as first, CopyStream(ground.device) as second:
        with pytest.warns(CalibrationWarning, match="64 MiB of device memory") as told:
            operations = _waited(ground.up(first, 0), ground.up(first, 1), ground.up(second, 2))
    assert ground.arrived(0, 1, 2)
    assert {operation.tier for operation in operations} == {"batch"}
    assert len(tried) == 1
    assert len([one for one in told if one.category is CalibrationWarning]) == 1


def _waited(*operations: Operation) -> tuple[Operation, ...]:
    for operation in operations:
        operation.wait(60)
    return operations


def test_a_copy_that_never_ends_ends_measuring_and_keeps_the_memory_it_may_write(
    rig: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    meters: list[DeviceMeter] = []

    def meter(*arguments: Any) -> DeviceMeter:
        meters.append(DeviceMeter(*arguments, arena=ARENA))
        return meters[-1]

    monkeypatch.setattr(_profile, "DeviceMeter", meter)
    monkeypatch.setattr(_calibration, "STUCK_SECONDS", 0.05)
    monkeypatch.setattr(_profile, "_left", [])
    ground = rig(faults=Faults(stall=frozenset({1})))
    with CopyStream(ground.device) as stream:
        with pytest.warns(CalibrationWarning, match="is the device hung"):
            ground.up(stream).wait(60)
    assert ground.arrived(0)
    assert len(_profile._left) == 1
    kept = [one for one in ground.device.registry.ranges if one.length == ARENA]
    assert [one.kind for one in kept] in (["host", "device"], ["device", "host"])
    assert all(ground.device.registry.uses(one) for one in kept)
    ground.device.close()
    meters[0]._ending.close()
    _profile._left.pop().close()


def test_closing_a_stream_ends_what_it_measures(
    rig: Any, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what waits for its turn to measure."""
    ground = rig()
    began = threading.Event()

    def for_ever(_: Any, __: Any, *, progress: Any, **___: Any) -> None:
        began.set()
        while True:
            progress(0.5)
            time.sleep(0.001)

    monkeypatch.setattr(_profile, "calibrate", for_ever)
    first, second = CopyStream(ground.device), CopyStream(ground.device)
    operation = ground.up(first)
    assert began.wait(30)
    waiting = ground.up(second)
    while waiting.state == "queued":
        time.sleep(0.001)
    second.close(timeout=60)
    assert isinstance(waiting.error, OperationCancelledError)
    assert not operation.done
    first.close(timeout=60)
    assert isinstance(operation.error, OperationCancelledError)
    assert not any(ground.device.registry.uses(one) for one in ground.device.registry.ranges)


def test_what_is_measured_beside_other_copies_is_not_kept(rig: Any, watch: Watch) -> None:
    ground = rig()
    registry: Registry = ground.device.registry
    copies = Copies.one(ground.memory.address, ground.range.address, 64)
    watch.meanwhile = lambda: registry.hold(copies).release()
    assert "not kept: other copies" in Profile.of(ground.device).origin
    assert Profile.load(ground.device) is None
    watch.meanwhile = lambda: None
    assert "kept in" in Profile.of(ground.device).origin


def test_a_warning_that_is_an_error_fails_one_copy_and_no_more(
    rig: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As this suite has it: warnings are errors."""

    def refuse(*_: Any, **__: Any) -> None:
        raise NoMemoryError("none")

    monkeypatch.setattr(_profile, "DeviceMeter", refuse)
    ground = rig()
    with CopyStream(ground.device) as stream:
        first, second = ground.up(stream), ground.up(stream)
        second.wait(60)
        assert "CalibrationWarning" in str(first.error)

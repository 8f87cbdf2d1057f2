# SPDX-License-Identifier: MIT
"""Streams against a model of two arrays: any sequence of steps leaves the bytes it says.

Each of three streams has a zone of host memory and one of the device's; zones change hands by
events, which have to order the streams' copies for the model to hold. Some calls fail: what
they wrote is unknown from there on, and so is what is copied from it. Cancelled ones wrote
nothing.
"""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from ground import LENGTH, Ground
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dmaplane import CopyError, DmaplaneError, OperationCancelledError
from dmaplane.stream import Copies, Operation, TierName, open_device
from dmaplane.stream.sim import Faults

STREAMS = 3
BLOCKS = 8
BLOCK = 96
STRIDE = 128
ZONE = BLOCKS * STRIDE

streams = st.integers(0, STREAMS - 1)
some_blocks = st.lists(st.integers(0, BLOCKS - 1), min_size=1, max_size=BLOCKS, unique=True)
tiers = st.sampled_from([None, "single", "batch", "kernel", "bar"])


class StreamMachine(RuleBasedStateMachine):
    @initialize(ahead=st.integers(1, 6), faulty=st.booleans())
    def open(self, ahead: int, faulty: bool) -> None:
        faults = Faults(fail=frozenset(range(13, 4000, 13))) if faulty else Faults()
        self.device = open_device("sim", faults=faults)
        self.ground = Ground(self.device)
        self.streams = [self.ground.stream(ahead=ahead, depth=64) for _ in range(STREAMS)]
        self.zones = list(range(STREAMS))  # of each stream
        self.host = self.ground.random(ahead)
        self.there = np.zeros(LENGTH, dtype=np.uint8)
        self.host_known = np.ones(LENGTH, dtype=np.bool_)
        self.there_known = np.ones(LENGTH, dtype=np.bool_)
        self.log: list[tuple[Operation, bool, np.ndarray, np.ndarray]] = []
        self.called: list[tuple[int, int]] = []
        self.calls = [0] * STREAMS

    @rule(which=streams, to=some_blocks, out=some_blocks, up=st.booleans(), tier=tiers)
    def copy(
        self, which: int, to: list[int], out: list[int], up: bool, tier: TierName | None
    ) -> None:
        count = min(len(to), len(out))
        base = self.zones[which] * ZONE
        host, there = self.ground.at + base, self.ground.there + base
        copies = Copies.indexed(
            source=host if up else there,
            destination=there if up else host,
            source_stride=STRIDE,
            destination_stride=STRIDE,
            length=BLOCK,
            source_index=np.array(out[:count]),
            destination_index=np.array(to[:count]),
        )
        operation = self.streams[which].copy(copies, require=tier)
        within = np.arange(BLOCK)
        bytes_to = (base + np.array(to[:count])[:, None] * STRIDE + within).ravel()
        bytes_out = (base + np.array(out[:count])[:, None] * STRIDE + within).ravel()
        self.log.append((operation, up, bytes_to, bytes_out))

    @rule(one=streams, other=streams)
    def change_hands(self, one: int, other: int) -> None:
        events = [stream.record() for stream in self.streams]
        self.streams[one].wait(events[other])
        self.streams[other].wait(events[one])
        zones = self.zones
        zones[one], zones[other] = zones[other], zones[one]

    @rule(which=streams)
    def call(self, which: int) -> None:
        number = self.calls[which]
        self.calls[which] += 1
        self.streams[which].call(lambda: self.called.append((which, number)))

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.log:
            operation = data.draw(st.sampled_from([row[0] for row in self.log[-8:]]))
            owner = next(s for s in self.streams if s._schedule is operation._schedule)
            taken = owner.cancel(operation, timeout=30)
            assert operation.done
            if taken:
                assert isinstance(operation.error, OperationCancelledError)

    @rule(which=streams)
    def wait(self, which: int) -> None:
        event = self.streams[which].record()
        before = [row[0] for row in self.log if row[0]._schedule is event._schedule]
        event.wait(30)
        assert all(operation.done for operation in before)

    @rule()
    def settle_and_compare(self) -> None:
        for stream in self.streams:
            try:
                stream.synchronize(30)
            except CopyError:
                pass  # a fault; the model asks each operation below
        for operation, up, to, out in self.log:
            assert operation.done
            error = operation.error
            source, target = (self.host, self.there) if up else (self.there, self.host)
            known, told = (
                (self.host_known, self.there_known) if up else (self.there_known, self.host_known)
            )
            if error is None:
                target[to] = source[out]
                told[to] = known[out]
            elif not isinstance(error, OperationCancelledError):
                assert "half way" in str(error)
                told[to] = False
        self.log.clear()
        for which in range(STREAMS):
            mine = [number for stream, number in self.called if stream == which]
            assert mine == list(range(self.calls[which]))
        host = self.ground.host
        assert (host[self.host_known] == self.host[self.host_known]).all()
        there = self.ground.memory.numpy()  # type: ignore[attr-defined]
        assert (there[self.there_known] == self.there[self.there_known]).all()

    @invariant()
    def streams_go_on(self) -> None:
        assert all(stream.failed is None for stream in getattr(self, "streams", ()))

    def teardown(self) -> None:
        if not hasattr(self, "streams"):
            return
        self.settle_and_compare()
        for stream in self.streams:
            told = stream.statistics()
            assert told.in_flight == 0
            assert told.submitted == told.completed + told.failed + told.cancelled
            stream.close()
        self.ground.close()  # nothing is held
        self.device.close()


StreamMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
TestStreams = StreamMachine.TestCase


def test_the_model_would_see_a_copy_that_was_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from dmaplane.stream.sim._lane import SimLane

    monkeypatch.setattr(SimLane, "_copy", lambda *_: None)
    machine = StreamMachine()
    machine.open(ahead=1, faulty=False)
    machine.copy(0, [1, 2], [3, 4], True, "single")
    with pytest.raises(AssertionError):
        machine.settle_and_compare()
    for stream in machine.streams:
        stream.close()
    try:
        machine.ground.close()
    except DmaplaneError as held:
        raise AssertionError("something is still held") from held
    machine.device.close()

# SPDX-License-Identifier: MIT
"""A plane against a small Python model: buffers, views, exports, channels, operations.

The model knows what every byte is and who holds what; the plane must agree after any
sequence of steps, in particular about what it refuses.
"""

from __future__ import annotations

import gc

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

import dmaplane
from dmaplane._storage import free_retired

LENGTH = 16384


class ModelBuffer:
    def __init__(self, real: dmaplane.Buffer, content: np.ndarray) -> None:
        self.real = real
        self.content = content  # shared by an original and its imports
        self.original: ModelBuffer | None = None  # of an import: what was exported
        self.views: list[np.ndarray] = []
        self.closed = False


class PlaneMachine(RuleBasedStateMachine):
    buffers = Bundle("buffers")
    channels = Bundle("channels")

    @initialize()
    def open(self) -> None:
        self.plane = dmaplane.open(plane="embedded")
        self.live: list[ModelBuffer] = []
        self.ids: set[int] = set()
        self.open_channels: list[dmaplane.Channel] = []
        self.done = 0

    def _twins(self, model: ModelBuffer) -> list[ModelBuffer]:
        """Imports whose memory is @model's: to the plane they are an export of it."""
        return [one for one in self.live if one.original is model]

    def _added(self, real: dmaplane.Buffer, content: np.ndarray) -> ModelBuffer:
        assert real.id not in self.ids, "an id was reused"
        self.ids.add(real.id)
        model = ModelBuffer(real, content)
        self.live.append(model)
        return model

    @precondition(lambda self: len(self.live) < 12)
    @rule(target=buffers, huge=st.sampled_from([None, None, "prefer"]))
    def create(self, huge: object) -> object:
        real = self.plane.buffer(LENGTH, huge=huge)  # type: ignore[arg-type]
        return self._added(real, np.zeros(LENGTH, np.uint8))

    @precondition(lambda self: len(self.live) < 12)
    @rule(target=buffers, model=buffers)
    def export_and_import(self, model: ModelBuffer) -> object:
        if model.closed or model.original is not None:
            return multiple()
        with model.real.export() as export:
            real = self.plane.import_buffer(export)
        assert len(real) >= LENGTH
        twin = self._added(real, model.content)
        twin.original = model
        return twin

    @rule(model=buffers, at=st.integers(0, LENGTH - 1), value=st.integers(0, 255))
    def write(self, model: ModelBuffer, at: int, value: int) -> None:
        if not model.closed:
            model.real.numpy(LENGTH)[at] = value
            model.content[at] = value

    @rule(model=buffers)
    def view(self, model: ModelBuffer) -> None:
        if not model.closed:
            model.views.append(model.real.numpy(LENGTH))

    @rule(model=buffers)
    def drop_views(self, model: ModelBuffer) -> None:
        model.views.clear()

    @rule(model=buffers)
    def destroy(self, model: ModelBuffer) -> None:
        if model.closed:
            with pytest.raises(dmaplane.ClosedError):
                model.real.destroy()
            return
        if model.views or self._twins(model):
            with pytest.raises(dmaplane.BusyError) as busy:
                model.real.destroy()
            assert busy.value.holders.views == len(model.views)
            assert bool(busy.value.holders.exports) == bool(self._twins(model))
        else:
            model.real.destroy()
            model.closed = True

    @rule(model=consumes(buffers))
    def close(self, model: ModelBuffer) -> None:
        model.real.close()
        model.closed = True

    @precondition(lambda self: len(self.open_channels) < 4)
    @rule(target=channels, power=st.integers(0, 5), workers=st.integers(1, 2))
    def create_channel(self, power: int, workers: int) -> dmaplane.Channel:
        channel = self.plane.channel(slots=1 << power, workers=workers)
        self.open_channels.append(channel)
        return channel

    @rule(channel=consumes(channels))
    def close_channel(self, channel: dmaplane.Channel) -> None:
        channel.close()
        self.open_channels.remove(channel)

    @rule(
        channel=channels,
        source=buffers,
        into=buffers,
        start=st.integers(0, LENGTH - 1),
        end=st.integers(0, LENGTH - 1),
        to=st.integers(0, LENGTH - 1),
    )
    def copy(
        self,
        channel: dmaplane.Channel,
        source: ModelBuffer,
        into: ModelBuffer,
        start: int,
        end: int,
        to: int,
    ) -> None:
        length = min(abs(end - start) + 1, LENGTH - to, LENGTH - start)
        if source.content is into.content and (abs(start - to) < length):
            return  # the same memory: overlapping copies are refused or undefined
        src = slice(start, start + length)
        dst = slice(to, to + length)
        try:
            done = channel.copy(into.real[dst], source.real[src], checksum=True).wait(timeout=20)
        except dmaplane.ClosedError:
            assert source.closed or into.closed
            return
        assert not source.closed
        assert not into.closed
        into.content[dst] = source.content[src]
        assert done.length_bytes == length
        assert done.checksum == dmaplane.crc32c(into.content[dst].tobytes())

    @rule(channel=channels, model=buffers, pattern=st.integers(0, (1 << 32) - 1))
    def fill(self, channel: dmaplane.Channel, model: ModelBuffer, pattern: int) -> None:
        if not model.closed:
            channel.fill(model.real[:LENGTH], pattern).wait(timeout=20)
            model.content.view(np.uint32)[:] = pattern

    @rule(channel=channels, count=st.integers(0, 100))
    def nops(self, channel: dmaplane.Channel, count: int) -> None:
        rows = np.zeros(count, dmaplane.SUBMISSION)
        rows["user_data"] = np.arange(count)
        done = channel.submit(rows, timeout=20)
        assert sorted(done["user_data"].tolist()) == list(range(count))

    @invariant()
    def plane_agrees(self) -> None:
        free_retired(self.plane)
        self.live = [
            model for model in self.live if not model.closed or model.views or self._twins(model)
        ]
        self.live = [
            model for model in self.live if not model.closed or model.views or self._twins(model)
        ]  # twice: what a twin held goes with it
        counted = self.plane.statistics()
        assert counted.buffers == len(self.live)
        assert counted.channels == len(self.open_channels)
        assert counted.in_flight == 0
        for model in self.live:
            for view in model.views:
                assert (view == model.content).all()
            if not model.closed:
                assert model.real.holders.views == len(model.views)

    def teardown(self) -> None:
        self.plane.close()
        for model in self.live:
            kept = all((view == model.content).all() for view in model.views)
            assert kept, "a view lost its bytes with the plane"
            model.views.clear()
        gc.collect(0)
        assert self.plane._ended


PlaneMachine.TestCase.settings = settings(
    max_examples=50,
    stateful_step_count=30,
    phases=[Phase.explicit, Phase.generate],
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
test_plane_is_its_model = PlaneMachine.TestCase

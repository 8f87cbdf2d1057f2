# SPDX-License-Identifier: MIT
"""Part of `bench endpoint`: whether an operation costs the same as there is more of everything.

Blocks are 64 bytes, so that what a plane does for an operation is all there is to see. Who
has N of something and who has one (or 256 in flight) are measured in turns.
"""

from __future__ import annotations

import contextlib
import time
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np

from dmaplane.bench import _link, _result

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from dmaplane._buffer import Buffer
    from dmaplane._channel import Channel
    from dmaplane._plane import Plane

BLOCK_BYTES: Final = 64
MEMORY_BYTES: Final = 1 << 20
SLOTS: Final = 65536
WINDOW: Final = 4096
ENDPOINTS: Final = (10, 100, 1_000)
OUTSTANDING: Final = (4_096, 32_768, 100_000)
OUTSTANDING_PEER: Final = 256
IDLE_ENDPOINTS: Final = 64
IDLE_WINDOW: Final = 64
"""What an endpoint has unless it asks for more; its memory grows with it."""
BURST: Final = 16


class Crowd:
    """Endpoints over one path, and rows over any of them."""

    def __init__(
        self,
        stack: contextlib.ExitStack,
        plane: Plane,
        far: _link.FarSide,
        path: _link.Path,
        count: int,
        window: int = WINDOW,
    ) -> None:
        self._far = far
        self._buffer: Buffer = stack.enter_context(plane.buffer(MEMORY_BYTES))
        # Two channels: one ring does not hold as many as are in flight.
        self._channels: list[Channel] = [
            stack.enter_context(plane.channel(slots=SLOTS)) for _ in range(2)
        ]
        self.link = stack.enter_context(
            _link.Link(plane, far, path, self._channels[0], window=window, slots=SLOTS)
        )
        self.link.connect(1, self._channels[1])
        self.link.connect(count)

    def grow(self, count: int) -> tuple[float, float]:
        """@count more endpoints; KiB that each of them takes, here and there."""
        before = _link.memory_bytes(), self._far.ask("memory")["bytes"]
        self.link.connect(count)
        after = _link.memory_bytes(), self._far.ask("memory")["bytes"]
        here, there = (
            (late - early) / count / 1024 for late, early in zip(after, before, strict=True)
        )
        return here, there

    def rows(self, count: int, endpoints: list[int]) -> npt.NDArray[np.void]:
        """@count rows, BURST for one of @endpoints (by their place), then the next."""
        blocks = np.arange(count) % (MEMORY_BYTES // BLOCK_BYTES)
        rows = _link.rows_over(0, self._buffer.id, 0, BLOCK_BYTES, blocks, blocks)
        # The first endpoint of all is the second channel's.
        chosen = 1 + np.asarray(endpoints)[np.arange(count) // BURST % len(endpoints)]
        rows["endpoint_id"] = np.asarray(self.link.endpoints)[chosen]
        rows["target_id"] = np.asarray(self.link.regions)[chosen]
        return rows

    def batches_ns(self, rows: npt.NDArray[np.void], outstanding: int) -> float:
        """Nanoseconds a row: @outstanding of them submitted and waited for, again and again."""
        self._far.tell("drain", door=self.link.door, count=len(rows), wait=min(outstanding, 1024))
        self._far.hear()
        begin = time.monotonic_ns()
        for first in range(0, len(rows), outstanding):
            self._submit(rows[first : first + outstanding])
        end = time.monotonic_ns()
        said: int = self._far.hear()["end_ns"]
        return (max(end, said) - begin) / len(rows)

    def _submit(self, rows: npt.NDArray[np.void]) -> None:
        first, second = self._channels
        parts = [(first, rows[:SLOTS])]
        if len(rows) > SLOTS:
            # Half of them, on the endpoint that the second channel has.
            other = rows[len(rows) // 2 :].copy()
            other["endpoint_id"] = self.link.endpoints[0]
            other["target_id"] = self.link.regions[0]
            parts = [(first, rows[: len(rows) // 2]), (second, other)]
        for channel, some in parts:
            channel.push(some)
        for channel, some in parts:
            _link.succeeded(channel.completions(wait=len(some)))


def _measure_endpoints(
    measured: _result.Measured,
    plane: Plane,
    far: _link.FarSide,
    path: _link.Path,
    quick: bool,
    report: Callable[[str], None],
) -> float:
    """The worst ratio for traffic on one endpoint among many."""
    pairs, count = (3, 8_192) if quick else (5, 65_536)
    ratios = []
    with contextlib.ExitStack() as outer:
        one = Crowd(outer, plane, far, path, 1)
        alone = one.rows(count, [0])
        for many in ENDPOINTS[: 2 if quick else None]:
            report(f"{path}, {many:,} endpoints")
            with contextlib.ExitStack() as inner:
                crowd = Crowd(inner, plane, far, path, many)
                among, turns = crowd.rows(count, [many // 2]), crowd.rows(count, list(range(many)))
                for what, rows in (("1", among), ("each in turn", turns)):
                    mine, other = _result.interleaved(
                        pairs,
                        partial(crowd.batches_ns, rows, 1024),
                        partial(one.batches_ns, alone, 1024),
                    )
                    row = _result.paired_row(
                        f"{path}, {what} of {many:,} endpoints", "ns", mine, "only one", other
                    )
                    measured.add(row)
                    if what == "1":
                        ratios.append(row["ratio"] or 0.0)
    return max(ratios)


def _measure_outstanding(
    measured: _result.Measured,
    plane: Plane,
    far: _link.FarSide,
    path: _link.Path,
    quick: bool,
    report: Callable[[str], None],
) -> float:
    ratios = []
    with contextlib.ExitStack() as stack:
        crowd = Crowd(stack, plane, far, path, 1)
        for outstanding in OUTSTANDING:
            report(f"{path}, {outstanding:,} outstanding")
            rows = crowd.rows(max(outstanding, 16_384), [0])
            few = rows[:16_384]
            mine, other = _result.interleaved(
                3 if quick else 7,
                partial(crowd.batches_ns, rows, outstanding),
                partial(crowd.batches_ns, few, OUTSTANDING_PEER),
            )
            row = _result.paired_row(
                f"{path}, {outstanding:,} outstanding", "ns", mine, f"{OUTSTANDING_PEER}", other
            )
            measured.add(row)
            ratios.append(row["ratio"] or 0.0)
        alone = crowd.rows(512, [0])
        measured.add(
            _result.single_row(
                f"{path}, 1 outstanding", "ns", [crowd.batches_ns(alone, 1) for _ in range(5)]
            )
        )
    return max(ratios)


def _measure_idle(
    measured: _result.Measured,
    plane: Plane,
    far: _link.FarSide,
    path: _link.Path,
    quick: bool,
    report: Callable[[str], None],
) -> float:
    """CPU time in percent of a core while IDLE_ENDPOINTS do nothing; of the costlier side."""
    seconds, samples = (1.0, 1) if quick else (5.0, 3)
    report(f"{path}, {IDLE_ENDPOINTS} idle endpoints")
    percent = []
    with contextlib.ExitStack() as stack:
        crowd = Crowd(stack, plane, far, path, 1, IDLE_WINDOW)
        for side, kib in zip(("here", "there"), crowd.grow(IDLE_ENDPOINTS - 2), strict=True):
            measured.add(
                _result.single_row(f"{path}, memory of an idle endpoint, {side}", "KiB", [kib])
            )
        time.sleep(0.2)
        for _ in range(samples):
            far.tell("idle", seconds=seconds)
            before, begin = time.process_time_ns(), time.monotonic_ns()
            there = far.hear()["cpu_ns"]
            here = time.process_time_ns() - before
            percent.append(100 * max(here, there) / (time.monotonic_ns() - begin))
    row = _result.single_row(f"{path}, {IDLE_ENDPOINTS} idle endpoints", "% of a core", percent)
    measured.add(row)
    return row["ours"] or 0.0


def measure(
    measured: _result.Measured, plane: Plane, quick: bool, report: Callable[[str], None]
) -> None:
    """Endpoints, submissions outstanding, and doing nothing, over each path."""
    endpoints, outstanding, idle = [], [], []
    with _link.FarSide(plane.name, "pages", MEMORY_BYTES) as far:
        for path in _link.PATHS:
            endpoints.append(_measure_endpoints(measured, plane, far, path, quick, report))
            outstanding.append(_measure_outstanding(measured, plane, far, path, quick, report))
            idle.append(_measure_idle(measured, plane, far, path, quick, report))
    measured.claim("endpoint/flat-endpoints", max(endpoints))
    measured.claim("endpoint/flat-outstanding", max(outstanding))
    measured.claim("endpoint/idle-core", max(idle))

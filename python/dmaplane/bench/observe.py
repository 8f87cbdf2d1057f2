# SPDX-License-Identifier: MIT
"""What counters and histograms cost: libdmaplane against a build without them.

Both builds are loaded in this process; each gets a channel over the same memory and
runs the same rows in turn. The claim is about throughput where bookkeeping weighs most
among operations that move bytes: 4 KiB copies, scattered, batches of 256. NOPs, which do
nothing but the bookkeeping, are shown next to it.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Final

from dmaplane._errors import UnsupportedError
from dmaplane.bench import _loops, _result
from dmaplane.bench.copy import rows_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

HALF_BYTES: Final = 128 << 20
SLOTS: Final = 1024


def _row(
    case: str,
    unit: str,
    scale: float,
    streams: tuple[_loops.RawChannel, _loops.RawChannel],
    rows: tuple[npt.NDArray, npt.NDArray],  # type: ignore[type-arg]
    pairs: int,
) -> _result.Row:
    """@scale / nanoseconds is the figure; throughput of the build with and without."""

    def figure(which: int) -> float:
        return scale / streams[which].stream(rows[which], batch=256, window=512)

    with_them, without = _result.interleaved(pairs, lambda: figure(0), lambda: figure(1), warm_up=2)
    return _result.paired_row(case, unit, with_them, "without", without)


def loss_percent(row: _result.Row) -> float:
    """How much slower ours is: 0 if it is not."""
    ratio = row["ratio"]
    assert ratio is not None
    return max(0.0, (1.0 - ratio) * 100.0)


def measure(plane_name: str, quick: bool, report: Callable[[str], None]) -> _result.Measured:
    """The bench. Takes about 6 s, with @quick 2 s. The embedded plane only."""
    if plane_name not in ("auto", "embedded"):
        raise UnsupportedError(
            f"bench observe on the {plane_name} plane",
            "the embedded plane: only that has a build without counters to compare with",
        )
    pairs = 21 if quick else 101
    memory = mmap.mmap(-1, 2 * HALF_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with (
        _loops.opened("embedded") as seen,
        _loops.opened("embedded", _loops.BLIND_NAME) as blind,
    ):
        measured = _result.Measured(seen.name)
        with (
            _loops.RawChannel(seen, SLOTS) as seen_channel,
            _loops.RawChannel(blind, SLOTS) as blind_channel,
            memoryview(memory) as whole,
        ):
            streams = (seen_channel, blind_channel)
            scattered = []
            for plane in (seen, blind):
                source = plane.buffer(user=whole[:HALF_BYTES])
                target = plane.buffer(user=whole[HALF_BYTES:])
                scattered.append(rows_of(source, target, 4096, 0))
            report("4 KiB scattered")
            row = _row(
                "4 KiB copies, scattered",
                "GB/s",
                float(HALF_BYTES),
                streams,
                (scattered[0], scattered[1]),
                pairs,
            )
            measured.add(row, "observe/loss-percent", loss_percent(row))
            nops = _loops.nop_rows(16384)
            report("NOPs")
            measured.add(_row("NOPs", "Mops/s", len(nops) * 1e3, streams, (nops, nops), pairs))
    return measured

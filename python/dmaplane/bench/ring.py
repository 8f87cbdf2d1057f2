# SPDX-License-Identifier: MIT
"""What one operation costs: NOPs through a channel, from C and from Python.

Batches: "waited for" pushes a batch, waits for all of it, takes it, and only then
pushes the next; "streamed" keeps two batches in flight. The claims are about batches
that are waited for, from C and from Python, where that is what ch.submit(rows) does; for
the kernel plane also about what a batch of 256, in turns with one entry a call, gains over
that. One entry a call is also shown with 256 in flight, where nobody waits for each: the
gain is over the better of the two. One NOP is ch.nop().wait() from Python: p50 of each
round trip, once with a channel that never spins (event-driven) and once with one that
always does. The peers of those are two C threads that do nothing but wake each other, by
eventfd or by spinning on a word: the floor under any hand-over between threads.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from dmaplane.bench import _loops, _result

if TYPE_CHECKING:
    from collections.abc import Callable

    from dmaplane._channel import Channel
    from dmaplane._plane import Plane

BATCHES: Final = (1, 16, 64, 256)
SLOTS: Final = 1024
SPIN_US: Final = 10_000


def _from_c(channel: _loops.RawChannel, batch: int, window: int, seconds: float) -> list[float]:
    """Million operations a second, sample by sample."""
    rows = _loops.nop_rows(batch * 64)
    channel.stream(rows, batch=batch, window=window)
    samples: list[float] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until or len(samples) < 5:
        samples.append(len(rows) / channel.stream(rows, batch=batch, window=window) * 1e3)
    return samples


def _from_python(channel: Channel, batch: int, seconds: float) -> list[float]:
    rows = _loops.nop_rows(batch)
    turns = max(1, 2048 // batch)
    samples: list[float] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until or len(samples) < 5:
        begin = time.perf_counter_ns()
        for _ in range(turns):
            channel.submit(rows)
        samples.append(batch * turns / (time.perf_counter_ns() - begin) * 1e3)
    return samples


def _one_us(plane: Plane, spin_us: int, count: int) -> list[float]:
    """Microseconds of each blocking NOP from Python."""
    with plane.channel(slots=SLOTS, spin_us=spin_us) as channel:
        for _ in range(200):
            channel.nop().wait()
        samples = []
        for _ in range(count):
            begin = time.perf_counter_ns()
            channel.nop().wait()
            samples.append((time.perf_counter_ns() - begin) / 1e3)
    return samples


def _one_from_c_us(plane: Plane, spin_us: int, count: int) -> list[float]:
    """Microseconds of a blocking NOP from C, over blocks of a hundred."""
    rows = _loops.nop_rows(100)
    with _loops.RawChannel(plane, SLOTS, spin_us=spin_us) as raw:
        raw.stream(rows, batch=1, window=1)
        return [raw.stream(rows, batch=1, window=1) / 1e5 for _ in range(count // 100)]


def _gain_row(channel: _loops.RawChannel, pairs: int) -> _result.Row:
    """Batches of 256 in turns with one entry a call, both waited for.

    Many short samples, so that most of them see no other user of the CPU.
    """
    rows = {256: _loops.nop_rows(256 * 8), 1: _loops.nop_rows(256)}

    def rate(batch: int) -> float:
        done = rows[batch]
        return len(done) / channel.stream(done, batch=batch, window=batch) * 1e3

    mine, other = _result.interleaved(pairs, lambda: rate(256), lambda: rate(1))
    return _result.paired_row("C, 256 a call", "Mops/s", mine, "1 a call", other)


def _one_row(case: str, plane: Plane, *, spin: bool, blocks: int, count: int) -> _result.Row:
    mine, other = _result.interleaved(
        blocks,
        lambda: _result.median(_one_us(plane, SPIN_US if spin else 0, count)),
        lambda: float(_result.median(_loops.wakeups(spin=spin, count=count).tolist())) / 1e3,
    )
    peer = "C threads spinning" if spin else "C eventfd round trip"
    return _result.paired_row(case, "us p50", mine, peer, other)


def measure(plane_name: str, quick: bool, report: Callable[[str], None]) -> _result.Measured:
    """The bench. Takes about 10 s, with @quick 3 s."""
    seconds = 0.15 if quick else 0.6
    with _loops.opened(plane_name) as plane:
        measured = _result.Measured(plane.name)
        with _loops.RawChannel(plane, SLOTS) as raw:
            for batch in BATCHES:
                report(f"C, batches of {batch}")
                waited = _from_c(raw, batch, batch, seconds)
                # The claim is on whole batches, as in Python below: sent, and waited for.
                measured.add(
                    _result.single_row(f"C, {batch} waited for", "Mops/s", waited),
                    "ring/c-256-Mops" if batch == 256 else None,
                    _result.median(waited),
                )
                streamed = _from_c(raw, batch, 2 * batch, seconds)
                measured.add(_result.single_row(f"C, {batch} streamed", "Mops/s", streamed))
            report("C, 256 a call against 1 a call")
            gain = _gain_row(raw, 101 if quick else 301)
            in_flight = _from_c(raw, 1, 256, seconds)
            alone = max(gain["peer"] or 0.0, _result.median(in_flight))
            measured.add(gain, "ring/kernel-batch-gain", (gain["ours"] or 0.0) / alone)
            measured.claim("ring/kernel-entries-per-s", (gain["ours"] or 0.0) * 1e6)
            measured.add(_result.single_row("C, 1 a call, 256 in flight", "Mops/s", in_flight))
        with plane.channel(slots=SLOTS) as channel:
            for batch in BATCHES:
                report(f"Python, batches of {batch}")
                samples = _from_python(channel, batch, seconds)
                measured.add(
                    _result.single_row(f"Python, {batch} waited for", "Mops/s", samples),
                    "ring/python-256-Mops" if batch == 256 else None,
                    _result.median(samples),
                )
        _measure_one(measured, plane, quick, report)
    return measured


def _measure_one(
    measured: _result.Measured, plane: Plane, quick: bool, report: Callable[[str], None]
) -> None:
    """One NOP at a time, asleep and spinning. Spinning on one CPU only measures its scheduler."""
    cores = len(os.sched_getaffinity(0))
    alone = f"two threads cannot spin for each other on {cores} CPU"
    blocks, count = (3, 500) if quick else (7, 2000)
    for how, spin, name in (
        ("event-driven", False, "ring/python-one-event-us"),
        ("spinning", True, "ring/python-one-spin-us"),
    ):
        report(f"one, {how}")
        if spin and cores < 2:
            measured.rows.append(_result.empty_row(f"C, one, {how}", "us"))
            measured.skip(_result.empty_row(f"Python, one, {how}", "us p50"), name, alone)
            continue
        samples = _one_from_c_us(plane, SPIN_US if spin else 0, 2000 if quick else 20_000)
        measured.add(_result.single_row(f"C, one, {how}", "us", samples))
        row = _one_row(f"Python, one, {how}", plane, spin=spin, blocks=blocks, count=count)
        measured.add(row, name, row["ours"])

# SPDX-License-Identifier: MIT
"""A stream of WRITE_IMMs under credits over an RDMA device: does it hold its rate, and how deep?

Windows. The other side grants credit for 4, 16, 64, 256 and 1024 immediates; as many writes of
64 KiB are kept in flight, and the other side takes every immediate, for --seconds at each size.
Ours is the median of the bytes per second of each second, and the spread is theirs.

Counters. What the device counts of receivers that were not ready (sent, received, given up) before
and after all of it, and what its driver says in the kernel's log of completion queues that
overflowed: both have to be none.

Depth. The same stream with credit for 1024 and 1, 2, 4, ... writes in flight. The knee is the
smallest depth that carries nine tenths of the best.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Final

import numpy as np

from dmaplane._errors import DmaplaneError
from dmaplane.bench import _device, _link, _loops, _result
from dmaplane.bench.rdma import skip_all, why_not

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dmaplane._buffer import Buffer
    from dmaplane._channel import Channel
    from dmaplane._plane import Plane

OPTIONS: Final = ("address", "seconds")
BLOCK_BYTES: Final = 64 << 10
LENGTH_BYTES: Final = 16 << 20
WINDOWS: Final = (4, 16, 64, 256, 1024)
DEPTHS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SLOTS: Final = 2048
KNEE: Final = 0.9
GIGA: Final = 1e9


def stream(channel: Channel, rows: np.ndarray, depth: int, window_s: float) -> list[float]:
    """All of @rows, @depth in flight; bytes per second of each whole @window_s.

    A window ends with the first completions after its time, and its rate is over the time it took.
    What took less than one window is one.
    """
    pushed = taken = counted = 0
    begin = time.monotonic()
    rates: list[float] = []
    while taken < len(rows):
        some = rows[pushed : min(pushed + depth - (pushed - taken), len(rows))]
        if len(some):
            channel.push(some)
            pushed += len(some)
        done = channel.completions(wait=max(1, (pushed - taken) // 2))
        taken += len(done)
        _link.succeeded(done)
        now = time.monotonic()
        if now - begin >= window_s or (taken == len(rows) and not rates):
            rates.append((taken - counted) * int(rows["length_bytes"][0]) / (now - begin))
            counted, begin = taken, now
    return rates


def knee(depths: Sequence[int], rates: Sequence[float]) -> int:
    """The smallest depth that carries KNEE of the best."""
    enough = KNEE * max(rates)
    return next(depth for depth, rate in zip(depths, rates, strict=True) if rate >= enough)


class Stream:
    """One connection with credit for @window immediates."""

    def __init__(
        self, plane: Plane, far: _link.FarSide, source: Buffer, address: str, window: int
    ) -> None:
        self._stack = contextlib.ExitStack()
        self._far = far
        self._source = source
        self._channel = self._stack.enter_context(plane.channel(slots=SLOTS))
        self._link = self._stack.enter_context(
            _link.Link(
                plane, far, "verbs", self._channel, window=window, slots=SLOTS, address=address
            )
        )
        self._link.connect()
        self._rate = 0.0

    def run(self, depth: int, seconds: float, window_s: float) -> list[float]:
        """Bytes per second of each @window_s of about @seconds, and a little more."""
        self._rate = self._windows(depth, 4 * depth, seconds)[0] / BLOCK_BYTES
        each: list[float] = []
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            # What is left at the rate so far, and at most what rows there is memory for.
            left = max(until - time.monotonic(), window_s) * 1.1
            count = int(left * self._rate)
            each += self._windows(depth, min(max(count, 2 * depth), 1 << 17), window_s)
            self._rate = each[-1] / BLOCK_BYTES
        return each

    def _windows(self, depth: int, count: int, window_s: float) -> list[float]:
        link = self._link
        blocks = np.arange(count) % (LENGTH_BYTES // BLOCK_BYTES)
        rows = _link.rows_over(
            link.endpoints[0], self._source.id, link.regions[0], BLOCK_BYTES, blocks, blocks
        )
        self._far.tell("drain", door=link.door, count=count, wait=max(1, depth // 2))
        self._far.hear()
        rates = stream(self._channel, rows, depth, window_s)
        said = self._far.hear()
        if said["immediates"] != count * (count - 1) // 2:
            raise DmaplaneError("immediates are missing, or came twice")
        return rates

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()


def _measure_windows(
    measured: _result.Measured,
    start: Callable[[int], Stream],
    seconds: float,
    window_s: float,
    report: Callable[[str], None],
) -> None:
    for window in WINDOWS:
        report(f"window {window}, {seconds:g} s")
        with start(window) as connection:
            rates = connection.run(window, seconds, window_s)
        case = f"window {window}, each {window_s:g} s"
        measured.add(_result.single_row(case, "GB/s", [rate / GIGA for rate in rates]))


def _measure_depths(
    measured: _result.Measured,
    start: Callable[[int], Stream],
    rounds: int,
    report: Callable[[str], None],
) -> None:
    samples: dict[int, list[float]] = {depth: [] for depth in DEPTHS}
    with start(WINDOWS[-1]) as connection:
        for _ in range(rounds):
            for depth in DEPTHS:
                report(f"depth {depth}")
                samples[depth] += connection.run(depth, 0.2, 0.2)
    for depth in DEPTHS:
        rates = [rate / GIGA for rate in samples[depth]]
        measured.add(_result.single_row(f"depth {depth}", "GB/s", rates))
    medians = [_result.median(samples[depth]) for depth in DEPTHS]
    found = float(knee(DEPTHS, medians))
    measured.add(_result.single_row(f"knee: depth for {KNEE:g} of the best", "writes", [found]))


def _tell_counters(
    measured: _result.Measured, device: _device.Device, before: dict[str, int], log: _device.Log
) -> None:
    after = _device.rnr_naks(device)
    case, name = "receiver not ready, by the device's counters", "stream/rnr-naks"
    if after:
        grown = float(sum(after.values()) - sum(before.values()))
        measured.add(_result.single_row(case, "times", [grown]), name, grown)
    else:
        measured.skip(_result.empty_row(case, "times"), name, f"{device.name} does not count it")
    case, name = "completion queue overflowed, by the kernel's log", "stream/cq-overflows"
    if log.readable:
        overflows = float(log.overflows())
        measured.add(_result.single_row(case, "times", [overflows]), name, overflows)
    else:
        reason = "the kernel's log is closed to this user (/dev/kmsg), and devices do not count it"
        measured.skip(_result.empty_row(case, "times"), name, reason)


def measure(
    plane_name: str,
    quick: bool,
    report: Callable[[str], None],
    address: str | None = None,
    seconds: float | None = None,
) -> _result.Measured:
    """The bench: five times @seconds (10; with @quick 1), then a few for the depths."""
    if seconds is None:
        seconds = 1.0 if quick else 10.0
    window_s = min(1.0, seconds / 5)
    with contextlib.ExitStack() as stack:
        plane = stack.enter_context(_loops.opened(plane_name))
        measured = _result.Measured(plane.name)
        try:
            device = _device.find(address)
        except _device.MissingDeviceError as missing:
            skip_all(measured, "stream", "times", str(missing))
            return measured
        reason = why_not(plane)
        if reason is not None:
            skip_all(measured, "stream", "times", reason)
            return measured
        log = _device.Log()
        stack.callback(log.close)
        before = _device.rnr_naks(device)
        source = stack.enter_context(plane.buffer(LENGTH_BYTES))
        far = stack.enter_context(_link.FarSide(plane.name, "pages", LENGTH_BYTES))

        def start(window: int) -> Stream:
            return Stream(plane, far, source, device.address, window)

        _measure_windows(measured, start, seconds, window_s, report)
        _measure_depths(measured, start, 1 if quick else 3, report)
        _tell_counters(measured, device, before, log)
    return measured

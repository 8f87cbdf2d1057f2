# SPDX-License-Identifier: MIT
"""Counters and latency histograms: frozen snapshots of what a plane counts (L11)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from dmaplane import _abi

if TYPE_CHECKING:
    from dmaplane._plane import Plane


@dataclasses.dataclass(frozen=True, slots=True)
class Statistics:
    """Counters of a plane or a channel. Each only grows, save those marked "now"."""

    submissions: int
    """Accepted."""
    completions: int
    """Posted; `in_flight` is the difference."""
    errors: int
    """Completions with a negative result, cancelled and timed out included."""
    cancelled: int
    timeouts: int
    bytes: int
    """Moved."""
    checksum_bytes: int
    """Of these, through a checksum."""
    batches: int
    """ENTER calls that accepted something."""
    wakeups: int
    """Times a sleeping worker or waiter had to be woken."""
    stalls: int
    """Times work waited for a slot or a credit."""
    stall_ns: int
    events: int
    """Unsolicited completions."""
    buffers: int
    """Now."""
    buffer_bytes: int
    """Now."""
    mappings: int
    """Now."""
    channels: int
    """Now."""
    endpoints: int
    """Now."""
    regions: int
    """Now."""

    @property
    def in_flight(self) -> int:
        """Accepted and not yet completed."""
        return self.submissions - self.completions


_COUNTERS = tuple(field.name for field in dataclasses.fields(Statistics))


def read_statistics(plane: Plane, scope: int, identity: int) -> Statistics:
    """One STATISTICS command."""
    request = _abi.Statistics(scope=scope, id=identity)
    plane.call("STATISTICS", _abi.STATISTICS, request)
    return Statistics(**{name: getattr(request, name) for name in _COUNTERS})


def bucket_of(value: int) -> int:
    """The bucket a value falls into."""
    steps = _abi.HISTOGRAM_STEPS
    if value < steps:
        return value
    shift = value.bit_length() - steps.bit_length()
    return min((shift + 1) * steps + (value >> shift) - steps, _abi.HISTOGRAM_BUCKETS - 1)


def bucket_bounds(bucket: int) -> tuple[int, int]:
    """Smallest value of a bucket, and the smallest of the next."""
    group, step = divmod(bucket, _abi.HISTOGRAM_STEPS)
    if group == 0:
        return bucket, bucket + 1
    low = (_abi.HISTOGRAM_STEPS + step) << (group - 1)
    return low, low + (1 << (group - 1))


@dataclasses.dataclass(frozen=True, slots=True)
class Histogram:
    """A log-linear histogram: no value is reported more than 1/32 off. `a + b` merges two."""

    samples: int
    sum: int
    maximum: int
    counts: tuple[int, ...] = dataclasses.field(repr=False)

    @property
    def mean(self) -> float:
        """0.0 if nothing was recorded."""
        return self.sum / self.samples if self.samples else 0.0

    def percentile(self, percent: float) -> float:
        """The value that @percent of the samples do not exceed; 0.0 if there are none."""
        total = sum(self.counts)
        if not total:
            return 0.0
        rank = max(1, -(-total * percent // 100))
        seen = 0
        for bucket, count in enumerate(self.counts):
            seen += count
            if seen >= rank:
                low, end = bucket_bounds(bucket)
                return min((low + end - 1) / 2, float(max(self.maximum, low)))
        return float(self.maximum)

    @property
    def p50(self) -> float:
        """Median."""
        return self.percentile(50)

    @property
    def p99(self) -> float:
        """99 of 100 are not above it."""
        return self.percentile(99)

    @property
    def p999(self) -> float:
        """999 of 1000 are not above it."""
        return self.percentile(99.9)

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram(
            samples=self.samples + other.samples,
            sum=self.sum + other.sum,
            maximum=max(self.maximum, other.maximum),
            counts=tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)),
        )


def read_histogram(plane: Plane, scope: int, identity: int, kind: int) -> Histogram:
    """Reads every window; costs HISTOGRAM_BUCKETS / HISTOGRAM_WINDOW = 18 commands."""
    counts: list[int] = []
    request = _abi.Histogram()
    for first in range(0, _abi.HISTOGRAM_BUCKETS, _abi.HISTOGRAM_WINDOW):
        request = _abi.Histogram(scope=scope, id=identity, kind=kind, bucket_first=first)
        plane.call("HISTOGRAM", _abi.HISTOGRAM, request)
        counts.extend(request.counts)
    return Histogram(request.samples, request.sum, request.maximum, tuple(counts))

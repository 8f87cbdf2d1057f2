# SPDX-License-Identifier: MIT
"""L11: counters and histograms are always on, and right. Their cost is for the benchmarks."""

from __future__ import annotations

import errno

from dmaplane import _abi
from dmaplane._statistics import bucket_bounds
from dmaplane.testing import _rig
from dmaplane.testing._case import MakePlane, case
from dmaplane.testing._rig import Rings, copy_of, create_buffer, rows_of


def _counters(rings: Rings, scope: int = _abi.SCOPE_CHANNEL) -> _abi.Statistics:
    answer = _abi.Statistics(scope=scope, id=rings.id if scope == _abi.SCOPE_CHANNEL else 0)
    _rig.expect(_rig.ask(rings.plane, _abi.STATISTICS, answer), 0)
    return answer


@case("L11")
def counters_count_exactly(make_plane: MakePlane) -> None:
    with make_plane() as plane, Rings(plane) as rings:
        a, b = create_buffer(plane, 8192).buffer_id, create_buffer(plane, 8192).buffer_id
        rings.run(rows_of(*([copy_of(a, b, 1000)] * 10)))
        rings.run(rows_of({}, {"operation": 999}, {"deadline_ns": 1}))
        rings.run(rows_of({"operation": 999, "flags": _abi.SUBMIT_LINK}, {}))
        for scope in (_abi.SCOPE_CHANNEL, _abi.SCOPE_PLANE):
            now = _counters(rings, scope)
            assert (now.submissions, now.completions) == (15, 15)
            assert (now.errors, now.cancelled, now.timeouts) == (4, 1, 1)
            assert now.bytes == 10_000
            assert now.batches == 3


@case("L11")
def histogram_holds_every_sample(make_plane: MakePlane) -> None:
    with make_plane() as plane, Rings(plane) as rings:
        for _ in range(40):
            rings.run(rows_of(*([{}] * 32)))
        counts: list[int] = []
        window = _abi.Histogram()
        for first in range(0, _abi.HISTOGRAM_BUCKETS, _abi.HISTOGRAM_WINDOW):
            window = _abi.Histogram(scope=_abi.SCOPE_CHANNEL, id=rings.id, bucket_first=first)
            _rig.expect(_rig.ask(plane, _abi.HISTOGRAM, window), 0)
            counts.extend(window.counts)
        assert window.samples == sum(counts) == 40 * 32
        highest = max(bucket for bucket, count in enumerate(counts) if count)
        low, end = bucket_bounds(highest)
        assert low <= window.maximum < end
        least = sum(bucket_bounds(bucket)[0] * count for bucket, count in enumerate(counts))
        most = sum(bucket_bounds(bucket)[1] * count for bucket, count in enumerate(counts))
        assert least <= window.sum <= most


@case("L11")
def histogram_window_must_be_aligned(make_plane: MakePlane) -> None:
    with make_plane() as plane, Rings(plane) as rings:
        for first in (1, 63, _abi.HISTOGRAM_BUCKETS, 1 << 31):
            window = _abi.Histogram(scope=_abi.SCOPE_CHANNEL, id=rings.id, bucket_first=first)
            _rig.expect(_rig.ask(plane, _abi.HISTOGRAM, window), errno.EINVAL)
        window = _abi.Histogram(scope=_abi.SCOPE_CHANNEL, id=rings.id, kind=9)
        _rig.expect(_rig.ask(plane, _abi.HISTOGRAM, window), errno.EINVAL)


@case("L11")
def channel_query_says_what_was_asked_for(make_plane: MakePlane) -> None:
    with make_plane() as plane, Rings(plane, slots=8, completion_slots=32, workers=2) as rings:
        rings.put(rows_of({}, {}, {}))
        rings.enter(3, 3)
        now = rings.query()
        assert (now.slots, now.completion_slots, now.workers) == (8, 32, 2)
        assert (now.unread, now.operations, now.mappings) == (3, 0, 1)
        assert (now.cpu, now.node, now.state) == (-1, -1, _abi.STATE_LIVE)
        rings.take()
        assert rings.query().unread == 0

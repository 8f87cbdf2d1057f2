# SPDX-License-Identifier: MIT
"""The benches' format and arithmetic, on made-up figures; timings are not tested here."""

from __future__ import annotations

import json
import math
import pathlib
import subprocess
import sys

import pytest

from dmaplane import bench
from dmaplane._errors import InvalidError, UnsupportedError
from dmaplane.bench import _result

ISSUE_CLAIMS = {
    "copy": {
        "copy/4KiB-batched": (">=", 0.90),
        "copy/64KiB": (">=", 0.95),
        "copy/1MiB": (">=", 0.95),
        "copy/64MiB": (">=", 0.95),
        "copy/1MiB-crc32c": (">=", 0.6),
    },
    "ring": {
        "ring/c-256-Mops": (">=", 10),
        "ring/python-256-Mops": (">=", 5),
        "ring/python-one-event-us": ("<=", 25),
        "ring/python-one-spin-us": ("<=", 5),
    },
    "alloc": {"alloc/pages": ("<=", 1.1), "alloc/huge": ("<=", 1.1), "alloc/user": ("<=", 1.1)},
    "observe": {"observe/loss-percent": ("<=", 3)},
    "scale": {"scale/buffers": ("<=", 1.3), "scale/channels": ("<=", 1.3)},
    "endpoint": {
        "endpoint/shm-4KiB": (">=", 0.8),
        "endpoint/shm-64KiB": (">=", 0.85),
        "endpoint/shm-1MiB": (">=", 0.9),
        "endpoint/shm-4KiB-nixl": (">=", 4),
        "endpoint/tcp-4KiB": (">=", 2),
        "endpoint/tcp-64KiB": (">=", 1),
        "endpoint/tcp-1MiB": (">=", 1),
        "endpoint/tcp-1MiB-mooncake": (">=", 2),
        "endpoint/shm-rtt-wait-us": ("<=", 35),
        "endpoint/tcp-rtt-wait-us": ("<=", 60),
        "endpoint/shm-rtt-spin-us": ("<=", 8),
        "endpoint/shm-rtt-c-spin-us": ("<=", 1),
        "endpoint/idle-core": ("<=", 0.5),
        "endpoint/flat-endpoints": ("<=", 1.5),
        "endpoint/flat-outstanding": ("<=", 1.5),
        "endpoint/dead-shm-ms": ("<=", 50),
        "endpoint/dead-tcp-ms": ("<=", 100),
    },
    "kv": {
        "kv/shm-128MiB": (">=", 0.85),
        "kv/shm-128MiB-checksum": (">=", 0.60),
        "kv/tcp-128MiB": (">=", 0.9),
        "kv/first-layer": ("<=", 1.5),
        "kv/post-100k-ms": ("<=", 10),
    },
    "stream-tiers": {
        "stream/submit-10000": ("<=", 1),
        "stream/choice": ("<=", 1.05),
        "stream/4KiB-h2d": (">=", 1),
        "stream/4KiB-d2h": (">=", 1),
        "stream/kernel-1KiB-h2d": (">=", 0.75),
        "stream/kernel-1KiB-d2h": (">=", 0.85),
        "stream/kernel-4KiB-h2d": (">=", 0.88),
        "stream/kernel-4KiB-d2h": (">=", 0.9),
        "stream/kernel-16KiB-h2d": (">=", 0.95),
        "stream/kernel-16KiB-d2h": (">=", 0.95),
        "stream/kernel-64KiB-h2d": (">=", 0.97),
        "stream/kernel-64KiB-d2h": (">=", 0.97),
        "stream/staged-4KiB-h2d": (">=", 0.94),
        "stream/staged-4KiB-d2h": (">=", 0.94),
        "stream/staged-16KiB-h2d": (">=", 0.95),
        "stream/staged-16KiB-d2h": (">=", 0.95),
        "stream/batch-64KiB-h2d": (">=", 0.94),
        "stream/batch-64KiB-d2h": (">=", 0.94),
        "stream/batch-1MiB-h2d": (">=", 0.98),
        "stream/batch-1MiB-d2h": (">=", 0.98),
        "stream/kernel-1x4KiB-us": ("<=", 6),
        "stream/kernel-64x4KiB-us": ("<=", 15),
        "stream/bar-1x4KiB-us": ("<=", 1),
        "stream/processors": ("<=", 8),
        "stream/busy-loss-percent": ("<=", 5),
    },
}
EVERY_PLANE_CLAIMS = {
    "rdma": {
        "rdma/1MiB": (">=", 0.95),
        "rdma/4KiB": (">=", 1.0),
        "rdma/latency": ("<=", 1.3),
        "rdma/kv-128MiB": (">=", 0.9),
    },
    "registration": {"registration/flat": ("<=", 1.5)},
    "stream": {"stream/rnr-naks": ("<=", 0), "stream/cq-overflows": ("<=", 0)},
}
KERNEL_CLAIMS = {
    "ring": {"ring/kernel-batch-gain": (">=", 10), "ring/kernel-entries-per-s": (">=", 850_000)},
}
KEYS = {
    "bench",
    "version",
    "commit",
    "measured_at",
    "quick",
    "machine",
    "rows",
    "claims",
    "skipped",
}
ROW_KEYS = {"case", "unit", "ours", "peer_name", "peer", "ratio", "spread", "samples"}


def result_with(*claims: _result.Claim) -> bench.Result:
    return bench.Result(
        bench="copy",
        version="0",
        commit=None,
        measured_at=_result.now(),
        quick=True,
        machine=_result.machine("embedded"),
        rows=[],
        claims=list(claims),
        skipped=[],
    )


def check_format(result: bench.Result) -> None:
    again = json.loads(json.dumps(result, allow_nan=False))
    assert set(again) == (KEYS | {"notes"} if again["bench"] == "stream-tiers" else KEYS)
    assert set(again["machine"]) == {
        *("cpu", "cores", "memory_bytes", "kernel", "plane", "virtual", "load"),
    }
    assert again["rows"]
    for row in again["rows"]:
        assert set(row) == ROW_KEYS
        assert row["samples"] > 0 or row["ours"] is None
        assert (row["peer_name"] is None) == (row["peer"] is None) == (row["ratio"] is None)
    of_plane = {"embedded": ISSUE_CLAIMS, "kernel": KERNEL_CLAIMS}[again["machine"]["plane"]]
    expected = {**of_plane, **EVERY_PLANE_CLAIMS}.get(again["bench"], {})
    shown = {claim["name"]: (claim["relation"], claim["target"]) for claim in again["claims"]}
    skipped = {entry["name"]: entry["reason"] for entry in again["skipped"]}
    assert not shown.keys() & skipped.keys()
    assert shown.keys() | skipped.keys() == expected.keys()
    assert all(shown[name] == expected[name] for name in shown)
    assert all(skipped.values())


def test_claims_are_those_of_the_issue_by_name_relation_and_target() -> None:
    merged = {
        name: (*claim, plane)
        for plane, benches in (
            ("embedded", ISSUE_CLAIMS),
            ("kernel", KERNEL_CLAIMS),
            (None, EVERY_PLANE_CLAIMS),
        )
        for claims in benches.values()
        for name, claim in claims.items()
    }
    assert merged == bench.CLAIMS
    assert set(bench.NAMES) == ISSUE_CLAIMS.keys() | EVERY_PLANE_CLAIMS.keys()


@pytest.mark.parametrize(
    ("name", "measured", "holds"),
    [
        ("copy/64KiB", 0.95, True),
        ("copy/64KiB", 0.9499, False),
        ("ring/python-one-event-us", 25.0, True),
        ("ring/python-one-event-us", 25.1, False),
        ("observe/loss-percent", 0.0, True),
        ("copy/64KiB", math.nan, False),
        ("alloc/pages", math.nan, False),
    ],
)
def test_a_claim_holds_up_to_its_target_and_not_beyond(
    name: str, measured: float, holds: bool
) -> None:
    assert _result.claim(name, measured)["holds"] is holds


def test_one_failed_claim_fails_the_check_and_a_skipped_one_does_not() -> None:
    good, bad = _result.claim("copy/1MiB", 1.0), _result.claim("copy/64KiB", 0.1)
    assert bench.all_hold(result_with())
    assert bench.all_hold(result_with(good))
    assert not bench.all_hold(result_with(good, bad))
    with_skip = result_with(good)
    with_skip["skipped"].append(_result.Skipped(name="copy/64KiB", reason="no such thing"))
    assert bench.all_hold(with_skip)


def test_a_claim_is_made_on_its_plane_only() -> None:
    for plane, made in (("kernel", ["ring/kernel-batch-gain"]), ("embedded", ["copy/64KiB"])):
        measured = _result.Measured(plane)
        row = _result.paired_row("case", "x", [12.0], "peer", [1.0])
        measured.add(row, "ring/kernel-batch-gain")
        measured.add(row, "copy/64KiB")
        assert [claim["name"] for claim in measured.claims] == made
        measured.skip(row, "ring/kernel-entries-per-s", "no such thing")
        assert len(measured.skipped) == (plane == "kernel")


def test_a_bench_of_one_plane_says_so_on_another() -> None:
    with pytest.raises(UnsupportedError, match="only that has a build without counters"):
        bench.run("observe", plane="kernel")


def test_ratio_is_the_median_of_pairwise_ratios_not_the_ratio_of_medians() -> None:
    # The machine gets slower by the sample; each pair still says 2.
    row = _result.paired_row("case", "GB/s", [20.0, 10.0, 2.0], "peer", [10.0, 5.0, 1.0])
    assert row["ratio"] == 2.0
    assert row["spread"] == 0.0
    assert (row["ours"], row["peer"], row["samples"]) == (10.0, 5.0, 3)
    # Medians are 3 and 3; pairwise ratios are 1/3, 3, 5/1.
    row = _result.paired_row("case", "s", [1.0, 3.0, 5.0], "peer", [3.0, 1.0, 1.0])
    assert row["ratio"] == 3.0


def test_spread_is_the_p10_to_p90_distance_over_the_median() -> None:
    samples = [float(value) for value in range(1, 102)]
    assert _result.spread_of(samples) == pytest.approx(80 / 51)
    assert _result.spread_of([5.0]) == 0.0


def test_interleaving_alternates_which_side_comes_first() -> None:
    order: list[str] = []

    def side(name: str) -> float:
        order.append(name)
        return float(len(order))

    mine, other = _result.interleaved(4, lambda: side("a"), lambda: side("b"), warm_up=1)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab" + "ba"
    assert (len(mine), len(other)) == (4, 4)
    assert (mine, other) == ([3.0, 6.0, 7.0, 10.0], [4.0, 5.0, 8.0, 9.0])


def test_an_unknown_name_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(InvalidError, match="copy, ring"):
        bench.run("speed")


def test_a_quick_run_of_the_cheapest_bench_has_the_format(
    tmp_path: pathlib.Path,
) -> None:
    out = tmp_path / "ring.json"
    command = [sys.executable, "-m", "dmaplane.bench", "ring", "--quick", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    result = json.loads(out.read_text(encoding="utf-8"))
    check_format(result)
    assert result["quick"] is True


def test_results_that_are_kept_have_the_format() -> None:
    kept = sorted((pathlib.Path(__file__).resolve().parents[2] / "bench/results").glob("*.json"))
    embedded = {path.stem for path in kept if path.stem in bench.NAMES}
    assert embedded | {"endpoint", "kv", "stream-tiers"} | EVERY_PLANE_CLAIMS.keys() == set(
        bench.NAMES
    )
    for path in kept:
        result = json.loads(path.read_text(encoding="utf-8"))
        name, which = path.stem, ""
        if name not in bench.NAMES:
            name, _, which = path.stem.rpartition("-")  # another plane, or another machine
        assert result["bench"] == name
        assert result["machine"]["plane"] == ("kernel" if which == "kernel" else "embedded")
        check_format(result)

# SPDX-License-Identifier: MIT
"""The goal table of `bench stream-tiers`: what each tier has to reach, and whether it did.

A goal is a share of what this very machine's link was measured to carry, so that it means the
same on another one; but 4 KiB blocks also have goals in plain GB/s. A goal of a tier that is
not there, or of a cell that was not measured, is skipped with the reason; so are all of them on
a simulated device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from dmaplane.bench import _result
from dmaplane.bench._tiers_bed import DIRECTIONS, KIB, MIB, Cell, whole

if TYPE_CHECKING:
    from dmaplane.bench._tiers_findings import Findings
    from dmaplane.stream import Direction, TierName

SIMULATED: Final = "the device is simulated: its times are its model's"
ZERO_COPY_GB: Final = 45.0
STAGED_GB: Final = 52.0


class Goal(NamedTuple):
    """What a tier's rate at a block size is divided by; the claim's target is the share."""

    claim: str
    tier: TierName
    direction: Direction
    block_bytes: int
    ceiling: str


def _goals() -> tuple[Goal, ...]:
    kernel = [
        Goal(
            f"stream/kernel-{size}KiB-{direction}",
            "kernel",
            direction,
            size * KIB,
            "read" if direction == "h2d" else "write",
        )
        for size in (1, 4, 16, 64)
        for direction in DIRECTIONS
    ]
    sizes: tuple[tuple[TierName, str, int], ...] = (
        ("staged", "4KiB", 4 * KIB),
        ("staged", "16KiB", 16 * KIB),
        ("batch", "64KiB", 64 * KIB),
        ("batch", "1MiB", MIB),
    )
    engine = [
        Goal(f"stream/{tier}-{name}-{direction}", tier, direction, size, f"engine {direction}")
        for tier, name, size in sizes
        for direction in DIRECTIONS
    ]
    return (*kernel, *engine)


GOALS: Final = _goals()
LATENCIES: Final[tuple[tuple[str, TierName, int], ...]] = (
    ("stream/kernel-1x4KiB-us", "kernel", 1),
    ("stream/kernel-64x4KiB-us", "kernel", 64),
    ("stream/bar-1x4KiB-us", "bar", 1),
)


def _rate(
    findings: Findings, tier: TierName, direction: Direction, block_bytes: int
) -> float | None:
    """GB/s of the cell of the sweep, if it was measured."""
    cell = whole(
        direction,
        block_bytes=block_bytes,
        total_bytes=findings.total_bytes,
        spread="extent" if tier == "staged" else "scattered",
    )
    seconds = findings.cells.get((tier, cell))
    return None if seconds is None else cell.bytes / seconds / 1e9


def _skip(findings: Findings, claim: str, reason: str) -> None:
    findings.measured.skip(_result.empty_row(claim.partition("/")[2], "-"), claim, reason)


def _why_not(findings: Findings, tier: TierName) -> str:
    if tier in findings.reasons:
        return f"tier {tier} is not available: {findings.reasons[tier]}"
    return f"tier {tier} was not measured there, or the ceiling was not; see notes.experiments"


def judge(findings: Findings) -> None:
    """Every claim of the bench that no experiment makes by itself."""
    simulated = findings.modelled
    for goal in GOALS:
        rate = _rate(findings, goal.tier, goal.direction, goal.block_bytes)
        ceiling = findings.ceilings.get(goal.ceiling)
        if simulated or rate is None or not ceiling:
            _skip(findings, goal.claim, SIMULATED if simulated else _why_not(findings, goal.tier))
            continue
        findings.measured.claim(goal.claim, rate / ceiling)
    for direction in DIRECTIONS:
        claim = f"stream/4KiB-{direction}"
        kernel, staged = (
            _rate(findings, tier, direction, 4 * KIB) or 0.0 for tier in ("kernel", "staged")
        )
        if simulated or not (kernel or staged):
            _skip(findings, claim, SIMULATED if simulated else _why_not(findings, "kernel"))
            continue
        findings.measured.claim(claim, max(kernel / ZERO_COPY_GB, staged / STAGED_GB))
    for claim, tier, count in LATENCIES:
        microseconds = findings.latencies.get((tier, Cell("h2d", block_bytes=4 * KIB, count=count)))
        if simulated or microseconds is None:
            _skip(findings, claim, SIMULATED if simulated else _why_not(findings, tier))
            continue
        findings.measured.claim(claim, microseconds)
    made = {claim["name"] for claim in findings.measured.claims}
    made |= {skipped["name"] for skipped in findings.measured.skipped}
    for claim in sorted(name for name in _result.CLAIMS if is_ours(name)):
        if claim not in made:
            reason = SIMULATED if simulated else "its experiment has no figure; see notes"
            _skip(findings, claim, reason)


def is_ours(claim: str) -> bool:
    """Is that claim of this bench, and not of the RDMA bench that is called stream?"""
    return claim.startswith("stream/") and claim not in ("stream/rnr-naks", "stream/cq-overflows")

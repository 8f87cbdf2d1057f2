# SPDX-License-Identifier: MIT
"""How fast thousands of blocks cross between host memory and a device, by each tier.

Thirteen experiments, and the stream itself, on one device in one run of less than nine minutes,
each in a time box: 0 the machine; 1 the copy engine, alone, both ways, by node and page size; 2 the
device's own processors over mapped memory; 3 every block size by every tier, at random on both
sides (staged: the host's side in one piece); 4 access orders of the batched copy; 5 variants of
the kernels, and the bulk copy unit; 6 few blocks, p50 and p99, and what a launch costs; 7 a busy
device; 8 two ways at once; 9 pinning; 10 what others do; 11 dma-bufs; 12 the BAR.

Groups of them run in processes of their own (_tiers_plan.py, _tiers_groups.py), each with a
deadline: what hangs, crashes or loses the device costs a cell, and the rest goes on. Whatever
happens to judging or drawing, what was measured is answered.

A call's time is from before it is submitted until the last byte is there; bytes of each cell are
compared once. GB/s are 1e9 bytes. On the simulated device times are its model's: such a run shows
that the bench runs, never how fast anything is, and only what Python does is claimed.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Final

from dmaplane._errors import InvalidError, UnsupportedError
from dmaplane.bench import _result, _tiers_claims, _tiers_plan
from dmaplane.bench._tiers_bed import FULL, QUICK
from dmaplane.bench._tiers_findings import Findings
from dmaplane.bench._tiers_groups import Groups

if TYPE_CHECKING:
    from collections.abc import Callable

OPTIONS: Final = ("device", "plot", "saved")
SECONDS: Final = 480.0
QUICK_SECONDS: Final = 16.0


def measure(
    plane_name: str,
    quick: bool,
    report: Callable[[str], None],
    device: str = "auto",
    plot: str | None = None,
    saved: Callable[[_result.Measured], None] | None = None,
) -> _result.Measured:
    """The bench. @device: "cuda", "cuda:1", "sim"; @plot: a PNG of the block sizes; @saved: given
    what there is so far, after each group of experiments."""
    if plane_name == "kernel":
        raise InvalidError("plane", "host pools are the embedded plane's", fix="--plane embedded")
    if plot is not None and importlib.util.find_spec("PIL") is None:
        raise UnsupportedError("a plot", "the package Pillow: pip install pillow")
    effort = QUICK if quick else FULL
    findings = Findings(
        measured=_result.Measured("embedded"),
        device=device,
        modelled=device == "sim",
        total_bytes=effort.total_bytes,
    )
    measured = findings.measured

    def keep() -> None:
        if saved is not None:
            saved(measured)

    groups = Groups(
        findings,
        device=device,
        effort=effort,
        seconds=QUICK_SECONDS if quick else SECONDS,
        report=report,
        saved=keep,
    )
    groups.perform(_tiers_plan.GROUPS)
    _attempted(measured, "judging", lambda: _tiers_claims.judge(findings))
    if plot is not None:
        keep()
        _attempted(measured, "drawing", lambda: _drawn(findings, plot))
    return measured


def _drawn(findings: Findings, file: str) -> None:
    from dmaplane.bench import _tiers_picture

    _tiers_picture.draw(findings, file)


def _attempted(measured: _result.Measured, what: str, attempt: Callable[[], None]) -> None:
    """What fails after minutes of measuring is noted: the figures are what was asked for."""
    try:
        attempt()
    except Exception as error:  # of a font, a file, a logarithm: see above
        measured.notes[what] = f"failed: {type(error).__name__}: {error}"

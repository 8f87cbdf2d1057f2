# SPDX-License-Identifier: MIT
"""What `bench stream-tiers` found out, wherever it was found: a process of each group of
experiments writes its own as JSON, and the bench puts them together, judges and draws.

Rows and claims are the format of all benches. Beside them: seconds and latencies by tier and
cell, ceilings, and in `notes` the device, the machine, each cell's times and each experiment.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from typing import TYPE_CHECKING, Any

from dmaplane.bench import _result
from dmaplane.bench._tiers_bed import Cell

if TYPE_CHECKING:
    from dmaplane.stream import Direction, TierName

Figures = dict[tuple["TierName", Cell], float]


@dataclasses.dataclass(kw_only=True)
class Findings:
    """All that was found out."""

    measured: _result.Measured
    device: str
    modelled: bool
    """Is the device simulated?"""
    total_bytes: int
    """Of a call."""
    reasons: dict[str, str] = dataclasses.field(default_factory=dict)
    """Why a tier is not there."""
    cells: Figures = dataclasses.field(default_factory=dict)
    """Seconds of a call, the median."""
    latencies: Figures = dataclasses.field(default_factory=dict)
    """us of a small call, the median."""
    ceilings: dict[str, float] = dataclasses.field(default_factory=dict)
    """GB/s: "engine h2d", "engine d2h", "read", "write"."""

    def ceiling(self, direction: Direction) -> float | None:
        """What the copy engine reached that way."""
        return self.ceilings.get(f"engine {direction}")

    def told(self) -> dict[str, Any]:
        """As JSON has it."""
        measured = self.measured
        return {
            "device": self.device,
            "rows": measured.rows,
            "claims": measured.claims,
            "skipped": measured.skipped,
            "notes": measured.notes,
            "reasons": self.reasons,
            "cells": _listed(self.cells),
            "latencies": _listed(self.latencies),
            "ceilings": self.ceilings,
        }

    def absorb(self, told: dict[str, Any]) -> None:
        """Takes what another one told(). A row that is there already stays as it is."""
        measured = self.measured
        self.device = told["device"]
        known = {row["case"] for row in measured.rows}
        measured.rows += [row for row in told["rows"] if row["case"] not in known]
        measured.claims += told["claims"]
        measured.skipped += told["skipped"]
        for name, note in told["notes"].items():
            before = measured.notes.get(name)
            if isinstance(before, dict) and isinstance(note, dict):
                before.update(note)
            elif isinstance(before, list) and isinstance(note, list):
                before.extend(note)
            else:
                measured.notes[name] = note
        self.reasons.update(told["reasons"])
        self.cells.update(_figures(told["cells"]))
        self.latencies.update(_figures(told["latencies"]))
        for name, rate in told["ceilings"].items():
            self.ceilings[name] = max(rate, self.ceilings.get(name, 0.0))


def _listed(figures: Figures) -> list[list[Any]]:
    return [[tier, dataclasses.asdict(cell), value] for (tier, cell), value in figures.items()]


def _figures(listed: list[list[Any]]) -> Figures:
    return {(tier, Cell(**cell)): value for tier, cell, value in listed}


def written(path: pathlib.Path, what: Any) -> None:
    """JSON in one step: who reads it, or comes after a crash, finds the last whole one."""
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(what), encoding="utf-8")
    os.replace(new, path)


def read(path: pathlib.Path) -> dict[str, Any]:
    """What was written there; empty if nothing was."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return found

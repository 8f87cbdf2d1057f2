# SPDX-License-Identifier: MIT
"""The processes of `bench stream-tiers`: whatever ends one, the rest is measured and answered."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dmaplane import bench
from dmaplane.bench import _result, _tiers_claims, _tiers_groups, _tiers_plan
from dmaplane.bench._tiers_bed import KIB, MIB, Effort
from dmaplane.bench._tiers_findings import Findings
from dmaplane.bench._tiers_groups import Groups

SMALL = Effort(1 * MIB, 2 * MIB, 3, (4 * KIB,), 0.01, patience_s=0.5, cell_s=3.0)
FAULTS = Path(__file__).with_name("tiers_faults.py")


def faults() -> ModuleType:
    """tiers_faults.py, for its plan."""
    found = importlib.util.spec_from_file_location("tiers_faults", FAULTS)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def performed(monkeypatch: pytest.MonkeyPatch, fault: str, groups: int = 1) -> Findings:
    """What comes of the plan of tiers_faults.py when that goes wrong."""
    monkeypatch.setattr(_tiers_groups, "COMMAND", (sys.executable, str(FAULTS), fault))
    found = Findings(
        measured=_result.Measured("embedded"), device="sim", modelled=True, total_bytes=MIB
    )
    made = Groups(
        found,
        device="sim",
        effort=SMALL,
        seconds=60,
        report=lambda what: None,
        saved=lambda: None,
    )
    made.perform(faults().GROUPS[:groups])
    return found


def measured_cases(found: Findings) -> list[str]:
    return [row["case"] for row in found.measured.rows if row["ours"] is not None]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("stall", "a copy of the bench did not end in 0.5 s"),
        ("lose", "as ordered"),
        ("crash", "SIGSEGV"),
        ("hang", "it hung"),
    ],
)
def test_what_ends_a_process_costs_one_cell(
    monkeypatch: pytest.MonkeyPatch, fault: str, words: str
) -> None:
    found = performed(monkeypatch, fault)
    assert measured_cases(found) == ["batch, 1", "batch, 2", "2 after"]
    first, second = found.measured.notes["experiments"]
    assert (first["state"], second["state"]) == ("in part", "measured")
    (left_out,) = first["left_out"]
    assert left_out.startswith("kernel, 1: ")
    assert words in left_out
    died, ended = found.measured.notes["groups"]["first"]
    assert "tiers_faults.py" in died["log"]  # where it was
    assert (ended["exit"], "log" in ended) == (0, False)


def test_cells_of_a_kind_that_ends_processes_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    found = performed(monkeypatch, "kill")
    assert measured_cases(found) == ["batch, 1", "batch, 2", "2 after"]
    left_out = found.measured.notes["experiments"][0]["left_out"]
    assert [line.partition(":")[0] for line in left_out] == ["kernel, 1", "kernel, 2", "kernel, 3"]
    assert "SIGKILL" in left_out[1]
    assert "processes died" in left_out[2]
    assert [one["exit"] for one in found.measured.notes["groups"]["first"]] == [-9, -9, 0]


def test_an_experiment_that_ends_its_process_costs_no_other_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = performed(monkeypatch, "die", groups=2)
    seen = found.measured.notes["experiments"]
    assert [one["state"] for one in seen] == ["measured", "failed", "measured"]
    assert seen[1]["reason"] == "its process ended with 3"
    assert measured_cases(found) == ["batch, 1", "kernel, 1", "batch, 2", "3 second"]


def test_a_group_without_room_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    found = performed(monkeypatch, "room")
    for one in found.measured.notes["experiments"]:
        assert one["state"] == "failed"
        assert "NoMemoryError: as ordered" in one["reason"]


def test_what_does_not_fit_into_the_time_of_the_run_is_noted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_tiers_groups, "LEAST_S", 1000.0)
    found = performed(monkeypatch, "none")
    assert [one["state"] for one in found.measured.notes["experiments"]] == ["not run"] * 2
    assert measured_cases(found) == []


def test_what_was_measured_is_answered_whatever_judging_and_drawing_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("PIL", reason="missing-package: pillow")

    def fails(*arguments: Any) -> None:
        raise ValueError("a logarithm")

    monkeypatch.setattr(_tiers_plan, "GROUPS", faults().GROUPS[1:])
    monkeypatch.setattr(_tiers_groups, "COMMAND", (sys.executable, str(FAULTS), "none"))
    monkeypatch.setattr(_tiers_claims, "judge", fails)
    saved: list[list[str]] = []
    result = bench.run(
        "stream-tiers",
        quick=True,
        progress=False,
        saved=lambda so_far: saved.append([row["case"] for row in so_far["rows"]]),
        device="sim",
        plot=str(tmp_path / "no" / "such.png"),
    )
    assert "a logarithm" in result["notes"]["judging"]
    assert "such.png" in result["notes"]["drawing"]
    assert saved[0] == ["3 second"]
    assert [row["case"] for row in result["rows"]] == ["3 second"]

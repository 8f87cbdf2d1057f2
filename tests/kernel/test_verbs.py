# SPDX-License-Identifier: MIT
"""The embedded plane's fabric verbs, over Soft-RoCE: both planes on this machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import attack
import pytest
from soft_roce import ADDRESS

from dmaplane.testing import _rig

TREE = Path(__file__).resolve().parents[2]


def test_own_program_over_a_device(clean: None, program: Callable[[str], Path]) -> None:
    done = subprocess.run(
        [program("verbs"), "--require", ADDRESS],
        capture_output=True,
        text=True,
        timeout=attack.CHILD_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"^test_\w+: ok$", done.stdout, re.MULTILINE)) >= 7, done.stdout


@pytest.mark.parametrize(
    "groups",
    [
        ("connecting", "messages", "spinning"),
        ("remote",),
        ("regions", "strangers", "credits"),
        ("revoking",),
        ("interrupting", "loss-b", "loss-c", "loss-d", "loss-e", "loss-n"),
        # A fork of a process that has used RDMA cannot: this one begins with the fork.
        ("loss-stopped",),
    ],
    ids="+".join,
)
def test_conformance_over_a_device(clean: None, groups: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, TREE / "tests/kernel/verbs_conformance.py", *groups],
        env={
            **os.environ,
            "DMAPLANE_CONFORMANCE_ADDRESS": f"{ADDRESS}:0",
            _rig.SLOWNESS_VARIABLE: str(max(2.0, _rig.SLOWNESS, attack.SLOWNESS)),
        },
        capture_output=True,
        text=True,
        timeout=attack.CHILD_S,
        check=False,
    )
    said = done.stdout[-8000:] + done.stderr[-2000:]
    assert done.returncode == 0, said
    assert re.search(r"^[1-9]\d* passed, 0 failed$", done.stdout, re.MULTILINE), said


@pytest.mark.parametrize("name", ["rdma", "stream", "registration"])
def test_bench_over_a_device(clean: None, name: str) -> None:
    """That it measures what it says; how fast an emulated machine is shows nothing."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "dmaplane.bench", name, "--plane", "embedded"),
            *("--quick", "--json", "--address", ADDRESS),
        ],
        capture_output=True,
        text=True,
        timeout=attack.CHILD_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    names = {claim["name"] for claim in result["claims"]}
    skipped = {entry["name"]: entry["reason"] for entry in result["skipped"]}
    if name == "rdma":
        # Without perftest there is nothing to compare with; ours is measured all the same.
        assert names == set() if skipped else len(names) == 4
        assert all("perftest" in reason for reason in skipped.values()), skipped
    elif name == "stream":
        assert {claim["name"]: claim["holds"] for claim in result["claims"]} == {
            "stream/rnr-naks": True,
            "stream/cq-overflows": True,
        }
        assert sum(row["case"].startswith("window") for row in result["rows"]) == 5
    else:
        assert names == {"registration/flat"}
        verbs = {row["case"]: row for row in result["rows"] if row["case"].startswith("verbs")}
        assert {row["peer_name"] for row in verbs.values()} >= {"ibv_reg_mr", "1 region"}
        for case in ("pages, 64 MiB at once", "user, 64 MiB at once", "register and end, 1,000"):
            assert any(case in name and row["ours"] for name, row in verbs.items()), case
        return
    assert all(row["ours"] is not None or "ib_write" in row["case"] for row in result["rows"])

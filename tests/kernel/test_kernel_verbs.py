# SPDX-License-Identifier: MIT
"""Endpoints of the kernel plane over Soft-RoCE: with each other, and with embedded planes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import soft_roce

TREE = Path(__file__).resolve().parents[2]
GROUPS = (
    ("connecting", "messages", "strangers"),
    ("remote", "regions"),
    ("credits", "revoking"),
    ("interrupting", "loss"),
)


@pytest.fixture(scope="module")
def rxe() -> Iterator[None]:
    yield from soft_roce.device()


@pytest.fixture
def clean(rxe: None) -> Iterator[None]:
    """Afterwards nothing of the device is held, and never was a receiver not ready."""
    before = soft_roce.resources()
    yield
    assert soft_roce.resources() == before
    assert soft_roce.naks() == 0


@pytest.mark.parametrize("planes", ["kernel", "kernel,embedded", "embedded,kernel"])
@pytest.mark.parametrize("groups", GROUPS, ids="+".join)
def test_conformance(clean: None, planes: str, groups: tuple[str, ...]) -> None:
    program = TREE / "tests/kernel/verbs_conformance.py"
    done = subprocess.run(
        [sys.executable, program, "--planes", planes, *groups],
        env={**os.environ, "DMAPLANE_CONFORMANCE_ADDRESS": f"{soft_roce.ADDRESS}:0"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    said = done.stdout[-8000:] + done.stderr[-2000:]
    assert done.returncode == 0, said
    assert re.search(r"^[1-9]\d* passed, 0 failed$", done.stdout, re.MULTILINE), said

# SPDX-License-Identifier: MIT
"""Endpoints of the kernel plane over Soft-RoCE: with each other, and with embedded planes.

Both planes of a pair are on this machine, on the device of test_verbs.py.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from test_verbs import ADDRESS, TREE, clean, rxe  # noqa: F401 (clean is what every test here uses)

GROUPS = (
    ("connecting", "messages", "strangers"),
    ("remote", "regions"),
    ("credits", "revoking"),
    ("interrupting", "loss"),
)


@pytest.mark.parametrize("planes", ["kernel", "kernel,embedded", "embedded,kernel"])
@pytest.mark.parametrize("groups", GROUPS, ids="+".join)
@pytest.mark.usefixtures("clean")
def test_conformance(planes: str, groups: tuple[str, ...]) -> None:
    done = subprocess.run(
        [
            sys.executable,
            TREE / "tests/kernel/verbs_conformance.py",
            "--planes",
            planes,
            *groups,
        ],
        env={**os.environ, "DMAPLANE_CONFORMANCE_ADDRESS": f"{ADDRESS}:0"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    said = done.stdout[-8000:] + done.stderr[-2000:]
    assert done.returncode == 0, said
    assert re.search(r"^[1-9]\d* passed, 0 failed$", done.stdout, re.MULTILINE), said

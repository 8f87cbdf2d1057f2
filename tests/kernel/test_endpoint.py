# SPDX-License-Identifier: MIT
"""Connections of the embedded plane on this kernel: what tests/endpoint needs of a kernel.

A bad line (netem), pulled cables, TLS. On a host that lacks one of them those tests are
skipped; here a skip is a failure.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import attack
import pytest

from dmaplane.testing import _rig

TREE = Path(__file__).resolve().parents[2]
NOT_HERE = "tests/endpoint/test_encryption.py::test_encryption_that_is_not_there_is_said_so"
MODULES = ("veth", "sch_netem", "tls")


@pytest.fixture(autouse=True)
def modules() -> None:
    for tool in ("ip", "tc", "modprobe"):
        if not shutil.which(tool):
            pytest.skip(f"missing-tool: {tool}")
    for name in MODULES:
        done = subprocess.run(["modprobe", name], capture_output=True, text=True, check=False)
        if done.returncode and not Path(f"/sys/module/{name}").exists():
            pytest.skip(f"missing-kernel-feature: {name}: {done.stderr.strip()}")


@pytest.mark.parametrize("name", ["netem", "namespaces", "encryption"])
def test_connections_on_this_kernel(name: str) -> None:
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp=/run/{name}"]
    done = subprocess.run(
        [sys.executable, *words, "--deselect", NOT_HERE, f"tests/endpoint/test_{name}.py"],
        cwd=TREE,
        env={**os.environ, _rig.SLOWNESS_VARIABLE: str(max(2.0, _rig.SLOWNESS))},
        capture_output=True,
        text=True,
        timeout=attack.CHILD_S,
        check=False,
    )
    said = done.stdout[-6000:] + done.stderr[-2000:]
    assert done.returncode == 0, said
    assert re.search(r"\d+ passed", said), said
    assert "skipped" not in said, said

# SPDX-License-Identifier: MIT
"""The embedded plane's fabric verbs, over Soft-RoCE in this machine.

A veth pair, rdma_rxe on one end of it, both planes on this machine. RDMA has no loopback, so
addresses are the veth's.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parents[2]
ADDRESS = "10.77.0.1"
DEVICE = Path("/sys/class/infiniband/rxe0")
MODULES = ("ib_uverbs", "rdma_ucm", "rdma_rxe", "veth")
COMMANDS = (
    "ip link add dmpv0 type veth peer name dmpv1",
    "ip link set dmpv0 mtu 4200",
    "ip link set dmpv1 mtu 4200",
    f"ip addr add {ADDRESS}/24 dev dmpv0",
    "ip link set dmpv0 up",
    "ip link set dmpv1 up",
    "rdma link add rxe0 type rxe netdev dmpv0",
)


def run(words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words.split(), capture_output=True, text=True, timeout=60, check=False)


def resources() -> dict[str, int]:
    """What of rxe0 is in use: queue pairs, registrations, ..."""
    listed = json.loads(run("rdma -j resource show").stdout)
    return {name: count for name, count in listed[0].items() if isinstance(count, int)}


def naks() -> int:
    """Receiver-not-ready: sent, received and given up, as the device counts them."""
    names = ("rcvd_rnr_err", "send_rnr_err", "retry_rnr_exceeded_err")
    return sum(int((DEVICE / "ports/1/hw_counters" / name).read_text()) for name in names)


@pytest.fixture(scope="module")
def rxe() -> Iterator[None]:
    for tool in ("ip", "rdma", "modprobe"):
        if not shutil.which(tool):
            pytest.skip(f"missing-tool: {tool}")
    for name in MODULES:
        if run(f"modprobe {name}").returncode and not Path(f"/sys/module/{name}").exists():
            pytest.skip(f"missing-kernel-feature: {name}")
    for command in COMMANDS:
        done = run(command)
        assert done.returncode == 0, f"{command}: {done.stderr}"
    yield
    run("rdma link delete rxe0")
    run("ip link delete dmpv0")
    run("modprobe -r rdma_rxe")


@pytest.fixture
def clean(rxe: None) -> Iterator[None]:
    """Afterwards nothing of the device is held, and never was a receiver not ready."""
    before = resources()
    yield
    assert resources() == before
    assert naks() == 0


def test_own_program_over_a_device(clean: None, program: Callable[[str], Path]) -> None:
    done = subprocess.run(
        [program("verbs"), "--require", ADDRESS],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"^test_\w+: ok$", done.stdout, re.MULTILINE)) >= 7, done.stdout


@pytest.mark.parametrize(
    "groups",
    [
        ("connecting", "messages"),
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
        env={**os.environ, "DMAPLANE_CONFORMANCE_ADDRESS": f"{ADDRESS}:0"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    said = done.stdout[-8000:] + done.stderr[-2000:]
    assert done.returncode == 0, said
    assert re.search(r"^[1-9]\d* passed, 0 failed$", done.stdout, re.MULTILINE), said


@pytest.mark.parametrize("name", ["rdma", "stream"])
def test_bench_over_a_device(clean: None, name: str) -> None:
    """That it measures what it says; how fast an emulated machine is shows nothing."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "dmaplane.bench", name, "--plane", "embedded"),
            *("--quick", "--json", "--address", ADDRESS),
        ],
        capture_output=True,
        text=True,
        timeout=280,
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
    else:
        assert {claim["name"]: claim["holds"] for claim in result["claims"]} == {
            "stream/rnr-naks": True,
            "stream/cq-overflows": True,
        }
        assert sum(row["case"].startswith("window") for row in result["rows"]) == 5
    assert all(row["ours"] is not None or "ib_write" in row["case"] for row in result["rows"])

# SPDX-License-Identifier: MIT
"""Soft-RoCE in this machine: a veth pair, rdma_rxe on one end of it, both peers on this machine.

RDMA has no loopback, so addresses are the veth's.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ADDRESS = "10.77.0.1"
DEVICE = Path("/sys/class/infiniband/rxe0")
MODULES = ("ib_uverbs", "rdma_ucm", "rdma_rxe", "veth")
LINK = "rdma link add rxe0 type rxe netdev dmpv0"
COMMANDS = (
    "ip link add dmpv0 type veth peer name dmpv1",
    "ip link set dmpv0 mtu 4200",
    "ip link set dmpv1 mtu 4200",
    f"ip addr add {ADDRESS}/24 dev dmpv0",
    "ip link set dmpv0 up",
    "ip link set dmpv1 up",
    LINK,
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


def add_link() -> None:
    done = run(LINK)
    assert done.returncode == 0, done.stderr


def device() -> Iterator[None]:
    """The device as a fixture's body: there while it is suspended."""
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

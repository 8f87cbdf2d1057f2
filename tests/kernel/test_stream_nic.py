# SPDX-License-Identifier: MIT
"""The tier "nic" over Soft-RoCE: two cards, and each copy through the one that was asked for."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soft_roce

TREE = Path(__file__).resolve().parents[2]
SECOND = "10.78.0.1"
PACKETS_MIN = 256
"""A block of 4 KiB is one packet at least."""


@pytest.fixture
def second(clean: None) -> Iterator[None]:
    """Another card, on the other end of the wire."""
    for command in (
        f"ip addr add {SECOND}/24 dev dmpv1",
        "rdma link add rxe1 type rxe netdev dmpv1",
    ):
        done = soft_roce.run(command)
        assert done.returncode == 0, done.stderr
    gids = Path("/sys/class/infiniband/rxe1/ports/1/gids")
    deadline = time.monotonic() + 10
    while not any("0a4e:0001" in gid.read_text() for gid in gids.iterdir()):
        assert time.monotonic() < deadline, "rxe1 never had its address"
        time.sleep(0.1)
    yield
    soft_roce.run("rdma link delete rxe1")
    soft_roce.run(f"ip addr del {SECOND}/24 dev dmpv1")


@pytest.mark.parametrize("plane", ["embedded", "kernel"])
def test_copies_go_through_the_card_that_was_named(second: None, plane: str) -> None:
    done = subprocess.run(
        [sys.executable, TREE / "tests/kernel/stream_nic.py", plane],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert told["cards"] == ["rxe0", "rxe1"]
    assert "rxe0, rxe1" in told["refused"]
    for name, other in (("rxe0", "rxe1"), ("rxe1", "rxe0"), ("auto", "rxe1")):
        seen = told[name]
        card = "rxe0" if name == "auto" else name
        assert seen["card"] == card
        assert (seen["there"], seen["back"], seen["edges"]) == (True, True, True), seen
        assert seen["packets"][card] >= 2 * PACKETS_MIN, seen
        assert seen["packets"][other] == 0, seen

# SPDX-License-Identifier: MIT
"""What tests/pair/test_conformance.py stands on, without machines: an outpost beside this process.

Its clock is hours ahead where the kernel lets a process have another clock.
"""

from __future__ import annotations

import errno
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests/pair"), str(ROOT / "tests/kernel")]

import conformance  # noqa: E402 (these are of tests/pair)
from far_plane import FarPlane  # noqa: E402

from dmaplane import testing  # noqa: E402
from dmaplane.testing import _pair, _rig  # noqa: E402

AHEAD_S = 10000
CLOCK = ("unshare", "--time", "--monotonic", str(AHEAD_S), "--fork", "--kill-child")
CASES = (
    "connecting-listener_says",
    "connecting-connect_ends",
    "messages-message_arrives",
    "remote-read_brings",
    "revoking-keys_of",
    "credits-deadline_runs",
    "interrupting-recv_ends",
    "interrupting-passed_deadline",
    "spinning",
    "loss-endpoint_in_use",
)


@pytest.fixture(scope="module")
def outpost() -> Iterator[tuple[str, int]]:
    """Where one listens, in a process of its own."""
    allowed = subprocess.run([*CLOCK, "true"], capture_output=True, check=False).returncode == 0
    words = [*(CLOCK if allowed else ()), sys.executable, str(ROOT / "tests/pair/outpost.py")]
    with subprocess.Popen([*words, "127.0.0.1"], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout
        yield "127.0.0.1", int(program.stdout.readline())
        program.kill()


@pytest.fixture
def far(outpost: tuple[str, int]) -> Iterator[FarPlane]:
    with FarPlane(outpost, "embedded") as made:
        yield made


@pytest.mark.parametrize("case", [*conformance.chosen("tcp", list(CASES), long=None)], ids=str)
def test_case_with_its_planes_in_two_processes(
    outpost: tuple[str, int], case: testing.Case
) -> None:
    case.run(conformance.Planes("embedded", "embedded", outpost))


def test_every_case_is_run_or_there_is_a_reason() -> None:
    """Names in the lists are names of cases, and no group is left out altogether."""
    every = {f"{case.group}-{case.name}" for case in testing.cases()}
    for fabric, far in (("tcp", "embedded"), ("verbs", "kernel")):
        reasons = conformance.reasons(fabric, far)
        assert set(reasons) <= every
        run = [
            name
            for case in conformance.chosen(fabric, [""], long=None)
            if (name := f"{case.group}-{case.name}") not in reasons
        ]
        assert len(run) > 55
    assert all(any(name.startswith(word) for name in every) for word in conformance.LONG)


def test_bytes_are_those_of_the_other_process(far: FarPlane) -> None:
    """Two mappings of one buffer: what is written through one is seen through the other."""
    made = _rig.create_buffer(far, 8192)
    one, other = _rig.Mapped(far, made).bytes, _rig.Mapped(far, made).bytes
    wanted = np.zeros(8192, np.uint8)
    assert (other == wanted).all()
    for key, value in (
        (slice(None), 7),
        (slice(3, 4000, 64), 9),
        (slice(-64, None), np.arange(64)),
        (slice(100, 200), other[4:104]),
        (slice(5, 5), 1),
    ):
        wanted[key] = value
        one[key] = value
        assert (other == wanted).all()
        assert (wanted == other).all()
        assert not (other != wanted).any()
        assert bytes(other[key]) == wanted[key].tobytes()
    late = other[64:128]
    one[64:128] = 77
    assert (late == 77).all(), "a range is looked at when it was taken"
    assert late[1] == 77
    assert (other[10:110][5:50:5] == wanted[15:60:5]).all()
    assert len(other) == 8192


def test_deadline_is_one_of_this_machine(far: FarPlane) -> None:
    with _rig.Rings(far) as rings:
        soon = _rig.later(0.05)
        request, answer = rings.try_enter(0, 1, soon)
        late = time.monotonic_ns() - soon
        assert (answer, request.deadline_ns) == (-errno.ETIMEDOUT, soon)
        assert 0 <= late < _rig.SECOND * 1e9


def test_a_plane_ends_with_its_connection(outpost: tuple[str, int]) -> None:
    """Of who went without a word nothing is left: his listener's port is free."""
    plane = FarPlane(outpost, "embedded")
    rings = _rig.Rings(plane)
    _, bound = _pair.listen(plane, rings.id)
    for line in plane._lines:
        line.close()
    with FarPlane(outpost, "embedded") as second, _rig.Rings(second) as again:

        def is_free() -> bool:
            return _pair.try_listen(second, again.id, bound)[0] == 0

        _rig.wait_until(is_free, _rig.SECOND, "its port is free")
    plane.close()

# SPDX-License-Identifier: MIT
"""The module under random commands, ring contents and system calls, from one thread and many.

DMAPLANE_RANDOM_SECONDS says how long the unprivileged attack lasts, DMAPLANE_SEED replays
what the programs ask for.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import attack
import pytest

SECONDS = int(os.environ.get("DMAPLANE_RANDOM_SECONDS", "20"))
MIB = 1 << 20

Program = Callable[[str], Path]


@pytest.mark.timeout(1200)
def test_the_embedded_planes_fuzzer_finds_the_same_contract(program: Program) -> None:
    commands, writes = 60000 // attack.SLOWNESS, 10000 // attack.SLOWNESS
    said = attack.run(
        program("fuzz"),
        *("--seed", attack.seed(), "--commands", commands, "--ring-writes", writes),
    )
    assert "nothing is left" in said


@pytest.mark.timeout(1200)
def test_threads_that_destroy_what_others_use(program: Program) -> None:
    said = attack.run(program("storm"), "--seed", attack.seed(), "--seconds", 20)
    assert "storm: over" in said
    turns = re.findall(r"storm: .* (\d+) times", said)
    assert len(turns) == 10
    assert all(int(count) for count in turns)


@pytest.mark.timeout(SECONDS + 1200)
def test_a_user_without_rights_attacks(program: Program) -> None:
    attack.modprobe("udmabuf")
    with attack.open_to_group(attack.NOBODY):
        said = attack.run(
            program("random"),
            *("--seed", attack.seed(), "--seconds", SECONDS, "--group", attack.NOBODY),
            *("--within-ms", 5000 * attack.SLOWNESS),
            timeout_s=SECONDS + 1100,
        )
    counts = re.search(r"(\d+) attackers, (\d+) calls: (\d+) commands served", said)
    assert counts
    assert all(int(count) for count in counts.groups())
    # It still serves, and says what it should.
    attack.run(program("fuzz"), "--seed", 1, "--commands", 500, "--ring-writes", 100)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("bytes_max", [128 * MIB, 1 << 40], ids=["limit", "whole-machine"])
def test_a_hog_gets_no_more_than_there_is_for_him(program: Program, bytes_max: int) -> None:
    if attack.IS_DEBUG and bytes_max > 128 * MIB:
        pytest.skip("filling the machine under KASAN in emulation takes minutes")
    with (
        attack.open_to_group(attack.NOBODY),
        attack.parameter("bytes_max", bytes_max),
        attack.parameter("channels_max", 64),
    ):
        said = attack.run(program("hog"), "--group", attack.NOBODY, "--processes", 2)
    assert "all of it came back" in said


@pytest.mark.timeout(600)
def test_an_absurd_request_does_not_make_a_small_one_fail(program: Program) -> None:
    """Two at once: one asks for 2^44 bytes over and over, the other for a page."""
    absurd = subprocess.Popen([str(program("crowd")), "--absurd"])
    try:
        said = attack.run(program("crowd"), "--pages", 20000 // attack.SLOWNESS)
    finally:
        absurd.kill()
        absurd.wait()
    assert "none was refused" in said

# SPDX-License-Identifier: MIT
"""The conformance suite between two kernels: who connects on one machine, who listens on the other.

The cases are those that ship, unchanged; conformance.py says how, and which of them cannot be
about two machines. Those that take long are shared out among the carriers, so that each runs
over one; with DMAPLANE_PAIR_EVERYTHING=1 each runs over each.
"""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from meeting import CARRIERS, Carrier
from node import Program
from puppet import Puppet

EVERYTHING = os.environ.get("DMAPLANE_PAIR_EVERYTHING") == "1"
SHORT = (
    ("connecting", "strangers", "messages", "remote"),
    ("regions", "revoking", "credits", "interrupting", "spinning", "loss"),
)
LONG = (
    ("interrupting-c", "interrupting-d"),
    ("remote-e", "remote-s"),
    ("revoking-b", "revoking-r"),
    ("loss-c", "loss-d", "loss-e"),
)
LONG_BY_DEFAULT = {
    "tcp": LONG[0],
    "verbs": LONG[2],
    "verbs-kernel": LONG[3],
    "verbs-embedded-kernel": LONG[1],
}


def _lines(program: Program) -> list[dict[str, Any]]:
    """What conformance.py says of each case, to its last line.

    A case that hangs is ended before we give up waiting, and says where it was.
    """
    found: list[dict[str, Any]] = []
    other: list[str] = []
    while not found or "ran" not in found[-1]:
        try:
            line = program.line(2 * program.node.patience_s)
        except AssertionError as reason:
            raise AssertionError("\n".join([str(found[-1:]), *other])) from reason
        if line.startswith("{"):
            found.append(json.loads(line))
        else:
            other.append(line)
    return found


def _run(near: Puppet, far: Puppet, words: tuple[str, ...], *, long: bool) -> None:
    outpost = far.node.fork("outpost", "serve", address=far.node.address.ip)
    port = int(outpost.line(far.node.patience_s))
    program = near.node.fork(
        "conformance",
        "run",
        fabric=near.fabric,
        near=near.plane,
        far=far.plane,
        outpost=[far.node.address.ip, port],
        words=words,
        long=long,
    )
    found = _lines(program)
    failed = [f"{line['case']}:\n{line['failed']}" for line in found if line.get("failed")]
    assert not failed, "\n".join(failed)
    ran = {line["case"].partition("-")[0] for line in found if "seconds" in line}
    assert ran == {word.partition("-")[0] for word in words}, "a group without a case"


@pytest.mark.parametrize("words", SHORT, ids=lambda words: f"{words[0]}-to-{words[-1]}")
def test_cases(near: Puppet, far: Puppet, words: tuple[str, ...]) -> None:
    _run(near, far, words, long=False)


@pytest.mark.parametrize(
    ("carrier", "words"),
    [
        pytest.param(carrier, words, id=f"{carrier}-{words[0].partition('-')[0]}")
        for carrier in CARRIERS
        for words in LONG
        if EVERYTHING or LONG_BY_DEFAULT.get(str(carrier)) == words
    ],
    indirect=["carrier"],
)
def test_long_cases(carrier: Carrier, near: Puppet, far: Puppet, words: tuple[str, ...]) -> None:
    _run(near, far, words, long=True)

# SPDX-License-Identifier: MIT
"""A bad line between two hosts: what is late or lost on the wire is neither for a plane's user.

Needs the kernel's scheduler netem; where there is none, tests/kernel/test_endpoint.py runs
this in a machine that has it.
"""

from __future__ import annotations

import subprocess

import pytest
from cable import SECRET, SERVER, Cable, inside
from nursery import Nursery, Peer
from peers import bytes_of
from reach import ask, grant, reach
from test_encryption import needs_tls

from dmaplane import _abi
from dmaplane._library import crc32c
from dmaplane.testing import _pair, _rig
from dmaplane.testing._pair import Side, read, send, write, write_imm
from dmaplane.testing._rig import MIB, Rings

PATIENT = {**_pair.WINDOW, "detect_ms": int(15_000 * _rig.SLOWNESS)}
MESSAGES, SIZE = 64, 3000


@pytest.fixture
def bad_line(cable: Cable) -> Cable:
    subprocess.run(["modprobe", "-a", "sch_netem"], capture_output=True, check=False)
    try:
        cable.disturb("delay", "20ms", "loss", "2%")
    except AssertionError as reason:
        pytest.skip(f"missing-kernel-feature: netem: {reason}")
    return cable


def _carries_everything(side: Side, remote: int, peer: Peer) -> None:
    """Operations of each kind, in both directions, every byte right."""
    length = 2 * MIB
    memory = side.memory(length)
    memory.bytes[:] = bytes_of(1, length)
    assert side.result(write(memory, remote, length)) == 0
    assert ask(peer, "checksum", size=length) == crc32c(bytes(memory.bytes))
    ask(peer, "scramble", seed=2)
    assert side.result(read(memory, remote, length)) == 0
    assert (memory.bytes == bytes_of(2, len(memory.bytes))).all()
    small = side.memory(MESSAGES * SIZE)
    small.bytes[:] = bytes_of(3, len(small.bytes))
    ask(peer, "post", size=SIZE, at=0, count=MESSAGES)
    entries = [send(small, SIZE, n * SIZE, user_data=n) for n in range(MESSAGES)]
    side.submit(*entries)
    assert ask(peer, "wait", count=MESSAGES) == [0] * MESSAGES
    assert _rig.results(side.wait(MESSAGES)) == dict.fromkeys(range(MESSAGES), 0)
    assert ask(peer, "checksum", size=MESSAGES * SIZE) == crc32c(
        bytes(small.bytes[: MESSAGES * SIZE])
    )
    for number in range(5):
        assert side.result(write_imm(small, remote, SIZE, number)) == 0
        assert ask(peer, "immediate") == number


@pytest.mark.parametrize("encrypted", [False, True], ids=["clear", "encrypted"])
def test_bytes_are_exact_over_a_bad_line(
    nursery: Nursery, bad_line: Cable, encrypted: bool
) -> None:
    """20 ms and 2 % loss each way."""
    if encrypted:
        needs_tls()
    flags = {"flags": _abi.ENCRYPT} if encrypted else {}
    settings = {**SERVER, "length_bytes": 2 * MIB, "fields": PATIENT, "listen": flags}
    with (
        nursery.peer("serve", namespace=bad_line.names[1], **settings) as peer,
        inside(bad_line.names[0]) as plane,
    ):
        rings = Rings(plane, slots=128)
        bound = peer.hear()["bound"]
        side = reach(plane, rings, bound, None, secret=SECRET, **PATIENT, **flags)
        assert side.path == _abi.PATH_TCP
        _carries_everything(side, grant(side, peer.hear()), peer)
        assert side.query().state == _abi.STATE_LIVE
        assert not side.events

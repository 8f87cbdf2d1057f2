# SPDX-License-Identifier: MIT
"""The embedded plane over RDMA, from one kernel to another: every byte, the choice, the losses."""

from __future__ import annotations

import errno
import shutil
import time

import pytest
from meeting import DETECT_MS, LENGTH, meet, reach
from puppet import Puppet
from twins import Pair

from dmaplane import _abi

MODULES = ("rdma_rxe", "ib_uverbs", "rdma_ucm")
MIB = 1 << 20
LONG = 8 * MIB
COUNT = 6
SMALL, MESSAGES = 3000, 20
ENDS = {0, -errno.ECONNRESET, -errno.ETIMEDOUT}
LOST = {-errno.ECONNRESET, -errno.ETIMEDOUT}
DETECTED_S = 4 * DETECT_MS / 1000
NAKS = "cd /sys/class/infiniband/rxe0/ports/1/hw_counters; cat rcvd_rnr_err send_rnr_err"


@pytest.fixture(autouse=True)
def rdma(pair: Pair) -> Pair:
    """rxe0 on the wire of both; it stays."""
    for tool in ("rdma", "modprobe"):
        if not shutil.which(tool):
            pytest.skip(f"missing-tool: {tool}")
    for node in pair.nodes:
        for module in MODULES:
            status, said = node.run("modprobe", module)
            if status:
                pytest.skip(f"missing-kernel-feature: {module}: {said}")
        if "rxe0" not in node.shell("rdma link show"):
            node.shell("rdma link add rxe0 type rxe netdev wire")
    return pair


@pytest.fixture
def near(pair: Pair) -> Puppet:
    return Puppet(pair.nodes[0])


@pytest.fixture
def far(pair: Pair) -> Puppet:
    return Puppet(pair.nodes[1])


def test_every_kind_of_operation_is_exact(way: tuple[Puppet, Puppet]) -> None:
    near, far = way
    made = meet(near, far, path="verbs")
    assert made["path"] == _abi.PATH_VERBS
    near.do("scramble", seed=1)
    assert near.do("run", kind="write_imm", size=LENGTH, number=41) == [0]
    assert far.do("immediate") == 41
    assert far.do("checksum", size=LENGTH) == near.do("checksum", size=LENGTH)
    far.do("scramble", seed=2)
    assert near.do("run", kind="read", size=LENGTH) == [0]
    assert near.do("checksum", size=LENGTH) == far.do("checksum", size=LENGTH)
    for sender, receiver, seed in ((near, far, 3), (far, near, 4)):
        sender.do("scramble", seed=seed)
        receiver.do("fill", value=0)
        receiver.do("post", size=SMALL, count=MESSAGES)
        for n in range(MESSAGES):
            sender.do("send", size=SMALL, at=n * SMALL)
        assert receiver.do("wait", count=MESSAGES) == [0] * MESSAGES
        assert sender.do("wait", count=MESSAGES) == [0] * MESSAGES
        size = SMALL * MESSAGES
        assert receiver.do("checksum", size=size) == sender.do("checksum", size=size)
    for side in way:
        assert set(side.node.shell(NAKS).split()) == {"0"}


def test_without_being_asked_verbs_is_taken_where_both_have_it(near: Puppet, far: Puppet) -> None:
    """And tcp where the other one has no device; what is written arrives by either."""
    assert meet(near, far, path=None)["path"] == _abi.PATH_VERBS
    near.do("scramble", seed=6)
    assert near.do("run", kind="write", size=4096) == [0]
    assert far.do("checksum", size=4096) == near.do("checksum", size=4096)
    assert near.do("close") == [0, 0]
    near.kill()
    far.kill()
    far.node.shell("rdma link delete rxe0")
    assert meet(near, far, path=None)["path"] == _abi.PATH_TCP
    assert near.do("run", kind="write", size=4096) == [0]


def ends_lost(near: Puppet, since: float, within_s: float) -> None:
    """What @near has submitted ends, some of it with the loss; then nothing of it is left."""
    results = near.do("wait", count=COUNT)
    assert set(results) <= ENDS, results
    assert set(results) & LOST, "all of it was done before anything went"
    assert near.do("lost") in LOST
    assert time.monotonic() - since < within_s
    assert near.do("state") == _abi.STATE_DEAD
    assert near.do("close") == [0, 0]


@pytest.mark.parametrize("kind", ["write_imm", "read"])
def test_killed_process_in_mid_transfer(near: Puppet, far: Puppet, kind: str) -> None:
    """kill -9 of who listens; its machine goes on."""
    meet(near, far, length_bytes=LONG, path="verbs")
    near.do("submit", kind=kind, size=LONG, count=COUNT)
    far.kill()
    ends_lost(near, time.monotonic(), DETECTED_S)


def test_cable_out_for_too_long(pair: Pair, near: Puppet, far: Puppet) -> None:
    """Both ends find out; when it is in again a new connection has a new epoch."""
    made = meet(near, far, length_bytes=LONG, path="verbs")
    near.do("fill", value=9)
    near.do("submit", kind="write_imm", size=LONG, count=COUNT)
    pair.pull()
    pulled = time.monotonic()
    far.say(do="lost")
    ends_lost(near, pulled, DETECTED_S)
    assert far.hear() in LOST
    assert time.monotonic() - pulled < DETECTED_S
    near.do("fill", value=0xAA)
    pair.plug()
    far.say(do="again")
    again = reach(near, far, made["bound"], path="verbs")
    assert far.hear() is None
    assert again["epoch"] != made["epoch"]
    assert 0xAA not in far.do("values"), "what was in flight came in afterwards"
    assert near.do("run", kind="write", size=4096) == [0]
    assert 0xAA in far.do("values")


def test_machine_goes_out_in_mid_transfer(near: Puppet, far: Puppet) -> None:
    """Nobody is left who could say anything."""
    meet(near, far, length_bytes=LONG, path="verbs")
    near.do("submit", kind="write_imm", size=LONG, count=COUNT)
    far.node.kill()
    ends_lost(near, time.monotonic(), DETECTED_S)

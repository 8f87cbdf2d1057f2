# SPDX-License-Identifier: MIT
"""What happens to a connection when a process, a cable or a whole machine goes.

Each time: one completion for each submission with the right error, one event, within the
detection time; and a new connection works as soon as there is somebody to connect to.
"""

from __future__ import annotations

import errno
import os
import time

import pytest
from meeting import (
    DETECT_MS,
    MODULE_USERS,
    RDMA_DEVICE,
    SECRET,
    VERBS,
    WINDOW,
    Carrier,
    call,
    listen,
    meet,
    reach,
    sends_refused,
)
from puppet import Puppet
from twins import Pair

from dmaplane import _abi

MIB = 1 << 20
DEATHS = int(os.environ.get("DMAPLANE_PAIR_DEATHS", "5"))
LONG = 8 * MIB
COUNT = 6
"""So many of LONG take these machines a second or two."""

ENDS = {0, -errno.ECONNRESET, -errno.ETIMEDOUT}
LOST = {-errno.ECONNRESET, -errno.ETIMEDOUT}
DEAF_S = 6.0
"""Longer than all the probes for a neighbour that an address is asked for with."""

DETECTED_S = 4 * DETECT_MS / 1000
"""A silent peer counts as never found out after this: four times what was asked for."""

DEATH_S = 2.0
"""A dead process is told by its kernel. On a real machine that takes a millisecond."""


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
    """kill -9 of who listens; its machine goes on, and a successor serves at the same address."""
    made = meet(near, far, length_bytes=LONG)
    near.do("submit", kind=kind, size=LONG, count=COUNT)
    far.kill()
    ends_lost(near, time.monotonic(), DEATH_S)
    port = int(made["bound"].rpartition(":")[2])
    said = listen(far, port=port, length_bytes=LONG)
    again = reach(near, far, said["bound"])
    assert again["incarnation"] == said["incarnation"] != made["incarnation"]
    assert near.do("run", kind="write", size=4096) == [0]


def test_many_deaths(near: Puppet, far: Puppet) -> None:
    """Who listens is killed in mid-transfer, again and again; nothing is left of any of them."""
    said = listen(far, length_bytes=LONG)
    call(near, length_bytes=LONG)
    port, descriptors = int(said["bound"].rpartition(":")[2]), 0
    for death in range(DEATHS):
        made = reach(near, far, said["bound"])
        assert made["incarnation"] == said["incarnation"]
        near.do("submit", kind="write" if death % 2 else "read", size=LONG, count=COUNT)
        far.kill()
        ends_lost(near, time.monotonic(), DEATH_S)
        if death == 0:
            descriptors = near.do("descriptors")
        said = listen(far, port=port, length_bytes=LONG)
    assert near.do("descriptors") == descriptors


def test_killed_caller_in_mid_transfer(near: Puppet, far: Puppet) -> None:
    """kill -9 of who connected; the other hears of it and serves the next."""
    made = meet(near, far, length_bytes=LONG)
    near.do("fill", value=9)
    near.do("submit", kind="write_imm", size=LONG, count=COUNT)
    near.kill()
    killed = time.monotonic()
    assert far.do("lost") in LOST
    assert time.monotonic() - killed < DEATH_S
    assert set(far.do("values")) <= {3, 9}
    far.say(do="again")
    call(near, length_bytes=LONG)
    reach(near, far, made["bound"])
    assert far.hear() is None
    assert near.do("run", kind="write", size=4096) == [0]


def test_cable_out_and_in_again_in_time(
    pair: Pair, carrier: Carrier, near: Puppet, far: Puppet
) -> None:
    """Shorter than the detection time: late is all it is, unless the device itself gives up."""
    made = meet(near, far, length_bytes=LONG)
    refused = sends_refused(near.node)
    near.do("scramble", seed=8)
    near.do("submit", kind="write_imm", size=LONG, count=COUNT)
    pair.pull()
    time.sleep(DETECT_MS / 4000)
    pair.plug()
    results = near.do("wait", count=COUNT)
    if sends_refused(near.node) != refused:
        assert set(results) <= ENDS
        assert near.do("lost") in LOST
        pytest.skip(
            "not-applicable: the device gave up a packet that its card refused, and said so"
        )
    assert results == [0] * COUNT
    assert [far.do("immediate") for _ in range(COUNT)] == [*range(1, COUNT + 1)]
    assert far.do("checksum", size=LONG) == near.do("checksum", size=LONG)
    assert near.do("state") == _abi.STATE_LIVE
    assert made["path"] == carrier.path


@pytest.mark.parametrize("busy", [True, False], ids=["busy", "idle"])
def test_cable_out_for_too_long(pair: Pair, near: Puppet, far: Puppet, busy: bool) -> None:
    """Both ends find out; when it is in again a new connection has a new epoch."""
    made = meet(near, far, length_bytes=LONG)
    near.do("fill", value=9)
    near.do("submit", kind="write_imm" if busy else "recv", size=LONG if busy else 64, count=COUNT)
    pair.pull()
    pulled = time.monotonic()
    far.say(do="lost")
    ends_lost(near, pulled, DETECTED_S)
    assert far.hear() in LOST
    assert time.monotonic() - pulled < DETECTED_S
    near.do("fill", value=0xAA)
    pair.plug()
    far.say(do="again")
    again = reach(near, far, made["bound"], patience_s=45.0)
    assert far.hear() is None
    assert again["epoch"] != made["epoch"]
    assert again["incarnation"] == made["incarnation"]
    assert 0xAA not in far.do("values"), "what was in flight came in afterwards"
    assert near.do("run", kind="write", size=4096) == [0]
    assert 0xAA in far.do("values")


@pytest.mark.parametrize("carrier", VERBS, ids=str, indirect=True)
def test_machine_that_hears_nothing_at_first_is_asked_again(near: Puppet, far: Puppet) -> None:
    """Every probe for its address is lost. One CONNECT lasts, and is through soon after."""
    said = listen(far)
    call(near)
    far.node.shell("ip link set wire arp off")
    try:
        near.node.shell("ip neigh flush dev wire")
        words = {"address": said["bound"], "secret": SECRET, "path": near.fabric}
        near.say(do="connect", deadline_s=DEAF_S * 8, **words, **WINDOW)
        time.sleep(DEAF_S)
    finally:
        far.node.shell("ip link set wire arp on")
    heard = time.monotonic()
    assert near.hear()["answer"] == 0
    assert time.monotonic() - heard < DEAF_S * 2
    far.hear()


@pytest.mark.parametrize("kind", ["write_imm", "read"])
def test_machine_goes_out_in_mid_transfer(
    pair: Pair, carrier: Carrier, near: Puppet, far: Puppet, kind: str
) -> None:
    """Nobody is left who could say anything. Booted again, it is somebody else."""
    made = meet(near, far, length_bytes=LONG)
    near.do("submit", kind=kind, size=LONG, count=COUNT)
    far.node.kill()
    ends_lost(near, time.monotonic(), DETECTED_S)
    if kind == "read":
        return
    port = int(made["bound"].rpartition(":")[2])
    words = {"address": made["bound"], "secret": SECRET, "path": near.fabric}
    refused = near.do("connect", deadline_s=2.0, **words, **WINDOW)
    assert refused["answer"] in (-errno.ETIMEDOUT, -errno.EHOSTUNREACH)
    carrier.ready(pair)
    said = listen(far, port=port, length_bytes=LONG)
    again = reach(near, far, said["bound"])
    assert again["incarnation"] == said["incarnation"] != made["incarnation"]
    assert near.do("run", kind="write", size=4096) == [0]


@pytest.mark.parametrize("where", ["near", "far"])
@pytest.mark.parametrize("carrier", VERBS, ids=str, indirect=True)
def test_device_goes_in_mid_transfer(near: Puppet, far: Puppet, where: str) -> None:
    """The link of Soft-RoCE is deleted under a transfer; made again, a new connection works."""
    meet(near, far, length_bytes=LONG)
    near.do("submit", kind="write_imm", size=LONG, count=COUNT)
    node = {"near": near, "far": far}[where].node
    remover = node.start("rdma", "link", "delete", RDMA_DEVICE)
    gone = time.monotonic()
    far.say(do="lost")
    ends_lost(near, gone, DETECTED_S)
    assert far.hear() in LOST
    assert time.monotonic() - gone < DETECTED_S
    if {"near": near, "far": far}[where].plane == "kernel":
        # The module lets go of it by itself; rdma-core has it open until its process ends.
        assert remover.wait(node.patience_s) == 0
    near.kill()
    far.kill()
    assert remover.wait(node.patience_s) == 0
    node.shell(f"rdma link add {RDMA_DEVICE} type rxe netdev wire")
    meet(near, far)
    assert near.do("run", kind="write", size=4096) == [0]


@pytest.mark.parametrize("carrier", VERBS[1:], ids=str, indirect=True)
def test_module_asked_to_unload_stays_until_nobody_uses_it(
    pair: Pair, carrier: Carrier, near: Puppet, far: Puppet
) -> None:
    """What is under way never notices; unloaded and loaded again, a new connection works."""
    meet(near, far, length_bytes=LONG)
    near.do("submit", kind="write_imm", size=LONG, count=COUNT)
    users = [puppet for puppet in (near, far) if puppet.plane == "kernel"]
    for puppet in users:
        status, said = puppet.node.run("rmmod", "dmaplane")
        assert status != 0
        assert "in use" in said
    assert near.do("wait", count=COUNT) == [0] * COUNT
    assert [far.do("immediate") for _ in range(COUNT)] == [*range(1, COUNT + 1)]
    near.kill()
    far.kill()
    for puppet in users:
        puppet.node.shell(f"until grep -qx 0 {MODULE_USERS}; do sleep 0.1; done; rmmod dmaplane")
    carrier.ready(pair)
    meet(near, far)
    assert near.do("run", kind="write", size=4096) == [0]

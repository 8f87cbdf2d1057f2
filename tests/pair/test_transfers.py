# SPDX-License-Identifier: MIT
"""The embedded plane over each fabric, from one kernel to another: every byte, each way."""

from __future__ import annotations

import errno

import pytest
from meeting import LENGTH, SECRET, Carrier, call, listen, meet
from puppet import Puppet

SMALL, MESSAGES = 3000, 40


def test_every_kind_of_operation_is_exact(carrier: Carrier, way: tuple[Puppet, Puppet]) -> None:
    near, far = way
    made = meet(near, far)
    assert made["path"] == carrier.path
    near.do("scramble", seed=1)
    assert near.do("run", kind="write_imm", size=LENGTH, number=41) == [0]
    assert far.do("immediate") == 41
    sent = near.do("checksum", size=LENGTH)
    assert far.do("checksum", size=LENGTH) == sent
    far.do("scramble", seed=2)
    assert near.do("run", kind="read", size=LENGTH) == [0]
    read = near.do("checksum", size=LENGTH)
    assert read == far.do("checksum", size=LENGTH)
    assert read != sent


def test_messages_are_exact_both_ways(way: tuple[Puppet, Puppet]) -> None:
    near, far = way
    meet(near, far)
    for sender, receiver, seed in ((near, far, 3), (far, near, 4)):
        sender.do("scramble", seed=seed)
        receiver.do("fill", value=0)
        receiver.do("post", size=SMALL, count=MESSAGES)
        for n in range(MESSAGES):
            sender.do("send", size=SMALL, at=n * SMALL)
        assert receiver.do("wait", count=MESSAGES) == [0] * MESSAGES
        assert sender.do("wait", count=MESSAGES) == [0] * MESSAGES
        received = receiver.do("checksum", size=SMALL * MESSAGES)
        assert received == sender.do("checksum", size=SMALL * MESSAGES)


def test_who_has_no_secret_is_refused(near: Puppet, far: Puppet) -> None:
    bound = listen(far)["bound"]
    call(near, length_bytes=4096)
    whom = {"address": bound, "path": near.fabric}
    for secret, wrong in (("", errno.EPERM), ("another", errno.EACCES)):
        assert near.do("connect", secret=secret, **whom)["answer"] == -wrong
    assert near.do("connect", address=bound, secret=SECRET, path="shm")["answer"] == -errno.ENODEV
    assert near.do("connect", secret=SECRET, **whom)["answer"] == 0


@pytest.mark.parametrize("kind", ["write_imm", "send"])
def test_many_small_ones_come_in_order(near: Puppet, far: Puppet, kind: str) -> None:
    meet(near, far)
    near.do("scramble", seed=5)
    if kind == "send":
        far.do("post", size=64, count=MESSAGES)
    assert near.do("run", kind=kind, size=64, count=MESSAGES, number=100) == [0] * MESSAGES
    if kind == "send":
        assert far.do("wait", count=MESSAGES) == [0] * MESSAGES
        size = 64 * MESSAGES
        assert far.do("checksum", size=size) == near.do("checksum", size=size)
    else:
        assert [far.do("immediate") for _ in range(MESSAGES)] == [*range(100, 100 + MESSAGES)]

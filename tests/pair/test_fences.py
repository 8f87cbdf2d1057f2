# SPDX-License-Identifier: MIT
"""L5 and L7 between two machines: once it is said that nothing more comes, nothing does.

The proof is the same each time: the memory is poisoned as soon as the fence has answered, and
watched while the other machine goes on trying.
"""

from __future__ import annotations

import errno

import pytest
from meeting import WINDOW, meet
from puppet import Puppet

MIB = 1 << 20
LONG = 8 * MIB
POISON = 0xEE
WATCH_S = 5.0
ATTEMPTS = 12
REVOCATIONS = 4
SLOTS = WINDOW["window_slots"]


def test_cancelled_read_writes_no_late_byte(near: Puppet, far: Puppet) -> None:
    """The answers to it are on their way when it is cancelled."""
    count = 3
    meet(near, far, length_bytes=LONG)
    for _ in range(ATTEMPTS):
        near.do("fill", value=1)
        near.do("submit", kind="read", size=LONG, count=count)
        results = near.do("interrupt", value=1, count=count)
        assert set(results) <= {0, -errno.ECANCELED}, results
        near.do("fill", value=POISON)
        if -errno.ECANCELED in results:
            break
    else:
        pytest.fail("no read was cancelled half-way")
    assert near.do("watch", value=POISON, seconds=WATCH_S), "a late byte came in"
    far.do("fill", value=5)
    assert near.do("run", kind="read", size=4096) == [0]


def test_revoked_region_gets_no_late_byte(near: Puppet, far: Puppet) -> None:
    """The other side writes into it before, while and after it is taken back.

    It is told, and lets go within half a second, or it loses the connection: that is what an
    overloaded machine may do once or twice, and no reason for a byte to come late.
    """
    for _ in range(REVOCATIONS):
        made = meet(near, far, length_bytes=LONG)
        near.do("fill", value=9)
        assert near.do("run", kind="write", size=LONG) == [0]
        near.say(do="hammer", size=LONG, seconds=WATCH_S)
        assert far.do("revoke", region=made["region"]) == 0
        far.do("fill", value=POISON)
        assert far.do("watch", value=POISON, seconds=WATCH_S), "a late byte came in"
        found = near.hear()
        if -errno.ECONNRESET not in found:
            break
        near.kill()
        far.kill()
    assert -errno.ESTALE in found, found
    assert set(found) <= {0, -errno.ESTALE}, found


def test_receiver_that_never_posts_stalls_the_sender_and_no_more(near: Puppet, far: Puppet) -> None:
    """What fits the window is staged there; the rest waits for credit until its deadline."""
    meet(near, far)
    count = SLOTS + 8
    near.do("submit", kind="send", size=64, count=count, deadline_s=1.0)
    results = near.do("wait", count=count)
    assert results.count(0) == SLOTS
    assert results.count(-errno.ETIMEDOUT) == count - SLOTS
    assert near.do("run", kind="write", size=4096) == [0]
    far.do("post", size=64, count=SLOTS)
    assert far.do("wait", count=SLOTS) == [0] * SLOTS
    assert near.do("run", kind="write_imm", size=64) == [0]

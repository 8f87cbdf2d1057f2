# SPDX-License-Identifier: MIT
"""Channels told to spin: whoever waits may do the executor's work, and nobody else suffers."""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING

from dmaplane import _abi
from dmaplane.testing import _pair, _rig
from dmaplane.testing._case import MakePlane, case_over_fabrics
from dmaplane.testing._pair import recv, send

if TYPE_CHECKING:
    from dmaplane._plane import Path
    from dmaplane.testing._pair import Memory, Side

SPIN_S = 1.0
SPINS = {"flags": _abi.CHANNEL_SPIN, "spin_us": int(SPIN_S * 1e6)}
QUIET = {"detect_ms": 120_000}
"""No PING comes in time to do what was forgotten."""
TRIPS = 60
LENGTH = 300


def _answer(side: Side, memory: Memory) -> None:
    """Sends back what comes, one more than it was."""
    for trip in range(TRIPS):
        side.submit(recv(memory, LENGTH, user_data=1))
        side.wait_for(1)
        assert (memory.bytes[:LENGTH] == trip).all(), trip
        memory.bytes[:LENGTH] = trip + 1
        side.submit(send(memory, LENGTH, user_data=2))
    for _ in range(TRIPS):
        side.wait_for(2)


@case_over_fabrics("L1")
def message_and_answer_pass_between_two_who_spin(make_plane: MakePlane, path: Path) -> None:
    with _pair.connected(make_plane, path, channel_fields=SPINS) as (near, far):
        source, target = near.memory(LENGTH), near.memory(LENGTH)
        with _pair.Meanwhile(lambda: _answer(far, far.memory(LENGTH))) as answering:
            for trip in range(TRIPS):
                source.bytes[:LENGTH] = trip
                near.submit(recv(target, LENGTH, user_data=3), send(source, LENGTH, user_data=4))
                near.wait_for(3)
                assert (target.bytes[:LENGTH] == trip + 1).all(), trip
            for _ in range(TRIPS):
                near.wait_for(4)
            answering.answer()


@case_over_fabrics("L1")
def who_leaves_does_not_keep_the_peer_waiting(make_plane: MakePlane, path: Path) -> None:
    """He took a message as the executor, and calls no more: somebody else says that it came."""
    with _pair.connected(
        make_plane, path, channel_fields=SPINS, near_fields=QUIET, far_fields=QUIET
    ) as (near, far):
        source, target = near.memory(LENGTH), far.memory(LENGTH)
        for _ in range(5):
            far.submit(recv(target, LENGTH))
            near.submit(send(source, LENGTH))
            assert int(far.wait()["result"][0]) == 0
            assert int(near.wait()["result"][0]) == 0


@case_over_fabrics("L1")
def what_comes_to_one_who_left_is_taken(make_plane: MakePlane, path: Path) -> None:
    """As above, and the next message comes while he is away; its sender waits for nobody else."""
    with _pair.connected(
        make_plane, path, channel_fields=SPINS, near_fields=QUIET, far_fields=QUIET
    ) as (near, far):
        source, target = near.memory(LENGTH), far.memory(LENGTH)
        for _ in range(5):
            far.submit(recv(target, LENGTH), recv(target, LENGTH))
            near.submit(send(source, LENGTH))
            assert int(far.wait()["result"][0]) == 0
            near.submit(send(source, LENGTH, user_data=9))
            assert int(near.wait_for(9)["result"]) == 0
            assert int(near.wait_for(1)["result"]) == 0
            assert int(far.wait()["result"][0]) == 0


def _waiting(side: Side, count: int) -> _pair.Meanwhile:
    return _pair.Meanwhile(lambda: side.rings.enter(0, count))


@case_over_fabrics("L1")
def two_who_wait_on_one_channel_are_both_served(make_plane: MakePlane, path: Path) -> None:
    """One of them does the executor's work; he has what he wants first, or last."""
    with _pair.connected(make_plane, path, channel_fields=SPINS) as (near, far):
        source, target = near.memory(LENGTH), far.memory(LENGTH)
        for first in (1, 2, 1, 2):
            far.submit(recv(target, LENGTH), recv(target, LENGTH))
            with (
                _waiting(far, first) as one,
                _waiting(far, 3 - first) as other,
            ):
                time.sleep(0.02)
                for _ in range(2):
                    assert near.result(send(source, LENGTH)) == 0
                one.answer()
                other.answer()
            assert {int(entry["result"]) for entry in far.wait(2)} == {0}


@case_over_fabrics("L1")
def deadline_does_not_wait_for_the_end_of_the_spinning(make_plane: MakePlane, path: Path) -> None:
    with _pair.connected(
        make_plane, path, channel_fields=SPINS, near_fields=QUIET, far_fields=QUIET
    ) as (near, _):
        memory = near.memory(LENGTH)
        began = time.monotonic()
        for _ in range(3):
            late = recv(memory, LENGTH, deadline_ns=_rig.later(0.02))
            assert near.result(late) == -errno.ETIMEDOUT
        assert time.monotonic() - began < 3 * SPIN_S, "it spun to its end each time"


@case_over_fabrics("L4")
def who_spins_goes_home_with_the_channel(make_plane: MakePlane, path: Path) -> None:
    with _pair.connected(make_plane, path, channel_fields=SPINS) as (near, far):
        # Two, so that the event of the endpoint's end does not send him home.
        with _pair.Meanwhile(lambda: far.rings.try_enter(0, 2)[1]) as waiting:
            time.sleep(0.05)
            began = time.monotonic()
            far.rings.close()
            assert waiting.answer() == -errno.ESTALE
            assert time.monotonic() - began < 0.8 * SPIN_S, "it was spun to the end"
        assert int(near.event(_abi.EVENT_ENDPOINT_LOST)["result"]) == -errno.ECONNRESET

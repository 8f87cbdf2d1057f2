# SPDX-License-Identifier: MIT
"""Events: completions that nobody submitted anything for, among those that somebody did.

The embedded plane has none to tell, so a completion in its ring is made into one before
anybody takes it.
"""

from __future__ import annotations

import ctypes
import errno
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import dmaplane
from dmaplane import abi
from dmaplane._embedded import EmbeddedPlane


class Revokes(EmbeddedPlane):
    """Claims that it could revoke buffers."""

    def _command(self, number: int, struct: Any) -> int:
        answer = super()._command(number, struct)
        if number == abi.QUERY and answer == 0:
            struct.capabilities |= abi.CAP_REVOKE
        return answer


@pytest.fixture
def channel() -> Iterator[dmaplane.Channel]:
    with Revokes("a test") as plane, plane.channel(slots=16) as opened:
        yield opened


def _quiet(channel: dmaplane.Channel) -> None:
    """Waits until nothing is in flight, without taking a completion."""
    limit = time.monotonic() + 20
    query = abi.ChannelQuery(channel_id=channel.id, operations=1)
    while query.operations:
        assert time.monotonic() < limit
        query.operations = 0
        channel.plane.call("CHANNEL_QUERY", abi.CHANNEL_QUERY, query)


def _tell(channel: dmaplane.Channel, identity: int, operation: int = 3) -> None:
    """Has the plane complete a NOP nobody counts, and makes an event of it."""
    rings = channel._rings
    _quiet(channel)
    at = rings.control.complete_tail
    rings.push(np.zeros(1, dmaplane.SUBMISSION))
    _quiet(channel)
    slot = at & (rings.completion_slots - 1)
    memory = rings._client.completions + slot * abi.COMPLETION.itemsize
    raw = (ctypes.c_ubyte * abi.COMPLETION.itemsize).from_address(memory)
    entry = np.frombuffer(raw, dtype=abi.COMPLETION)
    entry["user_data"], entry["operation"] = identity, operation
    entry["flags"], entry["result"] = abi.COMPLETE_EVENT, -errno.ESTALE


def test_event_is_given_once(channel: dmaplane.Channel) -> None:
    assert channel.events() == ()
    _tell(channel, 77)
    assert channel.plane.wait(timeout=5)
    assert channel.events() == (dmaplane.Event("buffer_revoked", 77, -errno.ESTALE),)
    assert channel.events() == ()
    assert channel.in_flight == 0


def test_event_of_a_later_contract_is_told_as_such(channel: dmaplane.Channel) -> None:
    _tell(channel, 5, operation=200)
    assert [event.name for event in channel.events()] == ["unknown"]


def test_event_among_operations_disturbs_none(channel: dmaplane.Channel) -> None:
    first = channel.nop()
    first.wait(timeout=5)
    _tell(channel, 1)
    second = channel.nop()
    _tell(channel, 2)
    assert second.wait(timeout=5).ok
    assert [event.id for event in channel.events()] == [1, 2]
    assert channel.in_flight == 0


def test_event_among_rows_is_no_row(channel: dmaplane.Channel) -> None:
    rows = np.zeros(4, dmaplane.SUBMISSION)
    rows["user_data"] = [10, 11, 12, 13]
    channel.push(rows)
    _tell(channel, 3)
    operation = channel.nop()
    channel.push(rows)
    _tell(channel, 4)
    done = channel.completions(wait=8, timeout=5)
    assert sorted(done["user_data"].tolist()) == [10, 10, 11, 11, 12, 12, 13, 13]
    assert operation.wait(timeout=5).ok
    assert [event.id for event in channel.events()] == [3, 4]
    assert channel.in_flight == 0
    assert len(channel.submit(rows, timeout=5)) == 4


def test_events_of_a_closed_channel_are_refused(channel: dmaplane.Channel) -> None:
    channel.close()
    with pytest.raises(dmaplane.ClosedError):
        channel.events()

# SPDX-License-Identifier: MIT
"""Room: blocks of a lease that a peer may write to from when it was asked, without a word more.

So the first layer does not wait for an announcement to come, be accepted, and go back. Where who
asks knows how much will come, he leases before he asks, and says with ASK where it goes.

What becomes of a room, by what is said last:

    ANNOUNCE to it   it is the Incoming's, which ends as any other does
    GONE             the sender has no use for it: called off, or too small for what came

A room that is called off stays the peer's until one of the two comes, or the connection is dead
and fenced: what the peer has begun by then still lands in it. Until then its blocks are lent to
it, and a lease that has ended waits in quarantine.

Who owns what. The Receiver owns its rooms; the lease is the caller's, lent to the room, which is
who may touch its blocks also once they are an Incoming's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dmaplane.kv._lease import Lease


class Room:
    """One; made by Receiver.ask()."""

    __slots__ = ("_told", "called_off", "count", "lease", "number", "publish", "request")

    def __init__(
        self, number: int, request: str, lease: Lease, count: int, *, publish: bool, peer: str
    ) -> None:
        self.number = number
        self.request = request
        self.lease = lease
        self.count = count
        """Of the first blocks of its lease."""
        self.publish = publish
        self.called_off = False
        self._told = f"room for {request}, asked of {peer}"

    def __str__(self) -> str:
        return self._told

    def __repr__(self) -> str:
        return f"<{self}, {self.count} blocks>"

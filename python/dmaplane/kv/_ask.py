# SPDX-License-Identifier: MIT
"""Asks: what a receiver wants computed, from when it comes until the sender's program has done it.

The bytes are opaque here. An ask is the program's as soon as it was given; it is known by its
request as long as somebody holds it, so that it can still be called off.

An ask may come with a room: blocks of the receiver that what is asked for goes to as soon as it is
announced. A room is kept here until it is taken, once: for the transfer of that request, or
because the ask was called off.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, NamedTuple

from dmaplane._errors import ProtocolError
from dmaplane.kv._conversation import Waiting
from dmaplane.kv._wire import ROOMS_BLOCKS_MAX, ROOMS_MAX

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Ask:
    """What the peer asked for: "compute this"."""

    __slots__ = ("__weakref__", "cancelled", "payload", "request")

    def __init__(self, request: str, payload: bytes) -> None:
        self.request = request
        self.payload = payload
        self.cancelled = False
        """The peer does not want it any more; it will refuse what is sent for it."""

    def __repr__(self) -> str:
        return f"<ask {self.request}, {len(self.payload)} bytes>"


class Offer(NamedTuple):
    """A room, as the side that may write to it knows it."""

    number: int
    blocks: npt.NDArray[np.uint32]
    """Rising."""


class Asks:
    """Those that wait for the program, and those that it has."""

    def __init__(self) -> None:
        self.waiting: Waiting[Ask] = Waiting()
        self._known: weakref.WeakValueDictionary[str, Ask] = weakref.WeakValueDictionary()
        self._offers: dict[str, Offer] = {}
        self._offered_blocks = 0
        self._newest = 0

    def put(self, ask: Ask) -> None:
        """Behind all others."""
        self._known[ask.request] = ask
        self.waiting.put(ask)

    def withdraw(self, request: str) -> bool:
        """It is not wanted; True if nobody was given it, and nobody will be."""
        known = self._known.pop(request, None)
        if known is None:
            return False
        known.cancelled = True
        return self.waiting.drop(known)

    def offer(self, request: str, offer: Offer, *, blocks_max: int) -> None:
        """A room for @request. The peer has @blocks_max blocks, as it says, in one room each."""
        self._offered_blocks += len(offer.blocks)
        if (
            offer.number != self._newest + 1
            or request in self._offers
            or len(self._offers) >= ROOMS_MAX
            or not len(offer.blocks)
            or int(offer.blocks[-1]) >= blocks_max
            or self._offered_blocks > min(blocks_max, ROOMS_BLOCKS_MAX)
        ):
            raise ProtocolError("ASK with a room that cannot be")
        self._newest = offer.number
        self._offers[request] = offer

    def take(self, request: str) -> Offer | None:
        """The room for @request, if there is one; it is kept no longer."""
        offer = self._offers.pop(request, None)
        if offer is not None:
            self._offered_blocks -= len(offer.blocks)
        return offer

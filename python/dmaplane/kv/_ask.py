# SPDX-License-Identifier: MIT
"""Asks: what a receiver wants computed, from when it comes until the sender's program has done it.

The bytes are opaque here. An ask is the program's as soon as it was given; it is known by its
request as long as somebody holds it, so that it can still be called off.
"""

from __future__ import annotations

import weakref

from dmaplane.kv._conversation import Waiting


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


class Asks:
    """Those that wait for the program, and those that it has."""

    def __init__(self) -> None:
        self.waiting: Waiting[Ask] = Waiting()
        self._known: weakref.WeakValueDictionary[str, Ask] = weakref.WeakValueDictionary()

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

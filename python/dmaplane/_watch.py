# SPDX-License-Identifier: MIT
"""Watch: who wants to hear of everything that comes by a channel, in an event loop.

Operations and immediates wake who awaits them. Rows have nobody: what drives rows, messages and
immediates of one channel at once (a KV transfer) makes a Watch of a function, its turn. When it is
called, what there was has been taken from the channel; it looks at all of it, and says
how many completions or immediates are worth the next turn.

Invariant: what comes after a turn has begun rings, and who rings is followed by a turn. So one that
looks at everything misses nothing.

Who owns what. The taker of the channel knows its watches and rings them; Loops, when the eventfd
is signalled, gives them their turn at once, without another round of the loop. A watch owns its
place among the loop's readers (_loops.py), until close().
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from dmaplane._errors import DmaplaneError
from dmaplane._scope import Scope

if TYPE_CHECKING:
    from collections.abc import Callable

    from dmaplane._channel import Channel


class Watch(Scope):
    """Calls @turn when anything came by @channel, or somebody rang. Made in a running loop."""

    __slots__ = ("_channel", "_open", "_rung", "_turn", "loop", "patience")

    def __init__(self, channel: Channel, turn: Callable[[], int]) -> None:
        self.loop = asyncio.get_running_loop()
        self.patience = 1
        """So many rows or immediates at once are soon enough; see Loops."""
        self._channel = channel
        self._turn = turn
        self._rung = False
        self._open = True
        channel._taker.watches.append(self)
        channel._loops.watch(self.loop)

    def _check(self) -> None:
        self._channel._check()

    def ring(self) -> None:
        """A turn follows, from any thread and any number of times."""
        if self._rung:
            return
        self._rung = True
        if asyncio._get_running_loop() is self.loop:
            self.loop.call_soon(self._called)
            return
        try:
            self.loop.call_soon_threadsafe(self._called)
        except RuntimeError:
            pass  # the loop is closed, and nobody has a turn in it

    def run(self) -> None:
        """Its turn, whether or not somebody has rung."""
        if not self._open:
            return
        self._rung = True  # what is taken here need not ring
        try:
            with contextlib.suppress(DmaplaneError):  # the turn will see why
                self._channel._taker.take_now()
        finally:
            self._rung = False
        self.patience = self._turn()

    def _called(self) -> None:
        if self._rung:
            try:
                self.run()
            finally:
                self._channel._loops.arm()

    def close(self) -> None:
        """Hears nothing any more; idempotent."""
        if self._open:
            self._open = False
            self._channel._taker.watches.remove(self)
            self._channel._loops.unwatch(self.loop)

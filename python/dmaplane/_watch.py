# SPDX-License-Identifier: MIT
"""Watch: one asyncio task that wants to hear of everything that comes by a channel.

Operations and immediates wake who awaits them. Rows have nobody: a task that drives rows,
messages and immediates of one channel at once (a KV transfer) makes a Watch, looks at all of
them, and waits for the watch to ring.

Invariant: what comes after clear() rings. So clear, look, wait: nothing is missed between.

Who owns what. The taker of the channel knows its watches and rings them; a watch owns its
place among the loop's readers (_loops.py), until close().
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from dmaplane._scope import Scope

if TYPE_CHECKING:
    from dmaplane._channel import Channel


class Watch(Scope):
    """Rings when anything came by @channel, or somebody called ring(). Made in a running loop."""

    __slots__ = ("_channel", "_event", "_loop", "_open", "_rung")

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._rung = False
        self._open = True
        channel._taker.watches.append(self)
        channel._loops.watch(self._loop)

    def _check(self) -> None:
        self._channel._check()

    def ring(self) -> None:
        """Wakes the task, from any thread and any number of times."""
        if self._rung:
            return
        self._rung = True
        if asyncio._get_running_loop() is self._loop:
            self._event.set()
            return
        try:
            self._loop.call_soon_threadsafe(self._event.set)
        except RuntimeError:
            pass  # the loop is closed, and nobody waits in it

    def clear(self) -> None:
        """From here on anything rings again."""
        self._event.clear()
        self._rung = False

    async def wait(self, count: int = 1) -> None:
        """Until it rings, or has rung since clear().

        @count: so many rows or immediates at once are soon enough; see Loops.expect().
        """
        if not self._rung:
            self._channel._loops.expect(count)
        await self._event.wait()

    def close(self) -> None:
        """Hears nothing any more; idempotent."""
        if self._open:
            self._open = False
            self._channel._taker.watches.remove(self)
            self._channel._loops.unwatch(self._loop)

# SPDX-License-Identifier: MIT
"""The asyncio side of a channel: event loops that watch its eventfd.

A loop watches while one of its tasks awaits an operation, or something of it is a Watch, and takes
completions when the eventfd is signalled; taking wakes the futures, whatever loop they are
of, and watches have their turn (_watch.py). One that is alone and handles many at a time
is signalled once for several. The Loops of a channel own the readers they add; the eventfd
is the plane's, since a loop of another thread may know its number longer than the channel
lives.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dmaplane._rings import Rings
    from dmaplane._taking import Taker


class Loops:
    """Event loops with a reader on one channel's eventfd."""

    def __init__(self, rings: Rings, taker: Taker, eventfd: int) -> None:
        self._rings = rings
        self._taker = taker
        self._eventfd = eventfd
        self._watchers: dict[asyncio.AbstractEventLoop, int] = {}

    def __len__(self) -> int:
        return len(self._watchers)

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """One more of @loop wants to hear; unwatch() when it does not any more."""
        watchers = self._watchers.get(loop, 0)
        self._watchers[loop] = watchers + 1
        if not watchers:
            loop.add_reader(self._eventfd, self._on_event)
        self.arm()

    def unwatch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Undoes one watch()."""
        if loop not in self._watchers:
            return  # the channel was closed meanwhile
        self._watchers[loop] -= 1
        if not self._watchers[loop]:
            del self._watchers[loop]
            loop.remove_reader(self._eventfd)

    def _on_event(self) -> None:
        try:
            os.read(self._eventfd, 8)
        except BlockingIOError:
            pass  # another loop, or an earlier turn of this one, has read it
        here = asyncio._get_running_loop()
        try:
            for watch in [each for each in self._taker.watches if each.loop is here]:
                watch.run()
        finally:
            self.arm()

    def arm(self) -> None:
        """Takes what is there; armed for what comes next when it returns, if anybody watches."""
        while self._watchers and not self._rings.arm(self._patience()):
            if not self._taker.take_now():
                return  # another thread is taking: it wakes the futures

    def _patience(self) -> int:
        """So many completions are worth a signal: what a watch says, where it is alone.

        Fewer are signalled after some milliseconds; what failed, or is a message, at once.
        """
        watches = list(self._taker.watches)  # a loop of another thread may take its own away
        if len(watches) == 1 and sum(self._watchers.values()) == 1:
            return watches[0].patience
        return 1

    def end(self) -> bool:
        """Removes every reader; False if a loop of another thread has yet to do so."""
        here = asyncio._get_running_loop()
        abroad = [loop for loop in self._watchers if loop is not here]
        if here in self._watchers:
            here.remove_reader(self._eventfd)
        for loop in abroad:
            try:
                loop.call_soon_threadsafe(loop.remove_reader, self._eventfd)
            except RuntimeError:
                pass  # that loop is closed, and its readers with it
        self._watchers = {}
        return not abroad

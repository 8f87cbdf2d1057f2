# SPDX-License-Identifier: MIT
"""The next immediate of an endpoint, to be waited for by a thread or by a task.

It holds its endpoint and nothing else: which immediate it is, is settled when it is taken.
"""

from __future__ import annotations

import asyncio
import errno
import time
from typing import TYPE_CHECKING, Any

from dmaplane._errors import TimedOutError
from dmaplane._plane import deadline_of

if TYPE_CHECKING:
    from collections.abc import Generator

    from dmaplane._completion import Completion
    from dmaplane._endpoint import Endpoint


class Immediate:
    """The next WRITE_IMM of a peer that nobody was given yet: wait() for it, or `await` it."""

    __slots__ = ("_endpoint",)

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def wait(self, timeout: float | None = None) -> Completion:
        """Blocks until it has landed; its number is Completion.immediate.

        PeerLostError once the connection has ended and all that had landed was given.
        """
        arrived = self._endpoint._inbox.take_one()
        if arrived is not None:
            return arrived
        deadline = 0 if timeout is None else deadline_of(timeout)
        while (arrived := self._endpoint._inbox.take_one()) is None:
            self._endpoint._wait(1, deadline)
            if deadline and not self._endpoint._inbox.parts and time.monotonic_ns() >= deadline:
                raise TimedOutError("no immediate landed in time", errno=errno.ETIMEDOUT)
        return arrived

    def __await__(self) -> Generator[Any, None, Completion]:
        """Waits in asyncio."""
        endpoint, inbox = self._endpoint, self._endpoint._inbox
        loops = endpoint.channel._loops
        while (arrived := inbox.take_one()) is None:
            endpoint._check_alive()
            loop = asyncio.get_running_loop()
            future: asyncio.Future[None] = loop.create_future()
            inbox.futures.append(future)
            try:
                loops.watch(loop)
                if not inbox.settled():
                    yield from future
            finally:
                inbox.futures.remove(future)
                loops.unwatch(loop)
        return arrived

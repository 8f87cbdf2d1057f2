# SPDX-License-Identifier: MIT
"""The steps of a stream: copies, events, waits for events, callbacks.

A step is `queued` until the scheduler takes it up, then `begun`, then `done`. Only a queued
one can be taken back. It is settled once: done, with an error or without.

Who owns what. A step belongs to its schedule (_schedule.py), whose lock guards `state`,
`_error` and `_futures`. Dropping an Operation does not stop it.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from dmaplane.stream._copies import Copies, Direction
    from dmaplane.stream._device import Marker, TierName
    from dmaplane.stream._registry import Hold
    from dmaplane.stream._schedule import Schedule

State = Literal["queued", "begun", "done"]


class Step:
    """One thing a stream does, in its order."""

    __slots__ = ("__weakref__", "_error", "_futures", "_marker", "_schedule", "number", "state")

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._error: Exception | None = None
        self._futures: list[asyncio.Future[None]] | None = None
        self._marker: Marker | None = None
        self.number = 0
        self.state: State = "queued"

    @property
    def done(self) -> bool:
        """True once it has ended, with success or without."""
        return self.state == "done"

    def wake(self) -> None:
        """It is done: who awaits it goes on. Under the schedule's lock, from any thread."""
        futures, self._futures = self._futures, None
        for future in futures or ():
            try:
                future.get_loop().call_soon_threadsafe(_set, future)
            except RuntimeError:
                pass  # the loop is closed, and nobody waits in it

    def release(self) -> None:
        """It has ended, and holds nothing any more."""

    def _until_done(self) -> Generator[Any, None, None]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        if not self._schedule.watch(self, future):
            return
        try:
            yield from future
        except asyncio.CancelledError:
            self._schedule.unwatch(self, future)
            raise


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Operation(Step):
    """One call's copies. wait() for it, or await it; made by CopyStream.copy()."""

    __slots__ = (
        "_copies",
        "_first",
        "_hold",
        "_require",
        "_told",
        "bytes",
        "count",
        "direction",
        "seconds",
        "tier",
    )

    def __init__(
        self, schedule: Schedule, copies: Copies, hold: Hold, require: TierName | None
    ) -> None:
        super().__init__(schedule)
        self._copies: Copies | None = copies
        self._hold: Hold | None = hold
        self._require = require
        self._first: Marker | None = None
        self._told = False
        self.count = copies.count
        self.bytes = copies.bytes
        self.direction: Direction = hold.direction
        self.tier: TierName | None = None
        """What carried it, once that is chosen."""
        self.seconds: float | None = None
        """How long it took by the device's clock, once it is done; None if it failed."""

    @property
    def error(self) -> Exception | None:
        """Why it failed, once it has: its own error, or the end of the stream."""
        if self._error is not None and not self._told:
            self._schedule.told(self)
        return self._error

    def wait(self, timeout: float | None = None) -> None:
        """Blocks until it is done, and raises what it failed of.

        TimedOutError after @timeout seconds leaves it going.
        """
        self._schedule.wait_for(self, timeout)
        self._raise()

    def _raise(self) -> None:
        error = self.error
        if error is not None:
            raise error.with_traceback(None)

    def __await__(self) -> Generator[Any, None, None]:
        """Waits in asyncio and raises what it failed of.

        If its task is cancelled and nobody else awaits it, it is taken back unless it has begun.
        """
        try:
            yield from self._until_done()
        except asyncio.CancelledError:
            if not self._futures:
                self._schedule.take_back(self)
            raise
        self._raise()

    def release(self) -> None:
        """Its ranges may be released; its arrays and marks go."""
        self._copies = self._first = self._marker = None
        hold, self._hold = self._hold, None
        if hold is not None:
            hold.release()

    def keep(self) -> None:
        """Its ranges are never released: nobody knows whether it still touches them."""
        self._hold = None

    def __repr__(self) -> str:
        how = f", {self._error!r}" if self._error is not None else ""
        return f"<copy {self.number}, {self.count} blocks {self.direction}, {self.state}{how}>"


class StreamEvent(Step):
    """A place in a stream. Made by CopyStream.record(); other streams can wait for it.

    It is about order: it comes when all before it has ended, whether or not that succeeded.
    """

    __slots__ = ("_placed",)

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(schedule)
        self._placed = threading.Event()

    def wait(self, timeout: float | None = None) -> None:
        """Blocks until all before it has ended. Raises if it never comes: the stream has ended.

        TimedOutError after @timeout seconds.
        """
        self._schedule.wait_for(self, timeout)
        if self._error is not None:
            raise self._error.with_traceback(None)

    def before(self, foreign: Any) -> None:
        """What the caller puts in his own stream @foreign from now on begins after this.

        @foreign: what the device knows, for CUDA any object with `__cuda_stream__` or a torch
        stream. Waits until the scheduler has come by here, not until the copies are done.
        """
        self._schedule.order(self, foreign)

    def __await__(self) -> Generator[Any, None, None]:
        """wait() in asyncio."""
        yield from self._until_done()
        if self._error is not None:
            raise self._error.with_traceback(None)

    def placed(self, timeout: float) -> bool:
        """True once it is in a lane, or never will be."""
        return self._placed.wait(timeout)

    def release(self) -> None:
        """It has come, or never will."""
        self._placed.set()

    def __repr__(self) -> str:
        return f"<event {self.number} of a stream, {self.state}>"


class Join(Step):
    """From here on nothing begins before an event of another stream, or a caller's mark."""

    __slots__ = ("what",)

    def __init__(self, schedule: Schedule, what: StreamEvent | Marker) -> None:
        super().__init__(schedule)
        self.what = what


class Call(Step):
    """A function of the caller, called when all before it has ended."""

    __slots__ = ("function",)

    def __init__(self, schedule: Schedule, function: Callable[[], object]) -> None:
        super().__init__(schedule)
        self.function = function

# SPDX-License-Identifier: MIT
"""Work on a thread, awaited: what a task may not leave behind when it is cancelled.

A thread cannot be cancelled. So whoever gave it memory waits until it has put it down, also when
the waiter itself was cancelled meanwhile: only then may the memory be given to somebody else.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

from dmaplane._errors import DmaplaneError

T = TypeVar("T")


class StoppedError(Exception):
    """Nobody wants what a thread computes any more."""


def without_frames(work: Callable[..., T], *arguments: object) -> T:
    """Runs @work on a thread. What it raises does not keep its frames, nor views in these.

    An error that waits in a future would hold the pool for as long. A bug keeps its traceback.
    """
    try:
        return work(*arguments)
    except (DmaplaneError, StoppedError) as error:
        error.__context__ = None
        raise error.with_traceback(None) from error.__cause__


async def to_the_end(work: asyncio.Future[T]) -> None:
    """Returns when @work is over, however it ended; a cancellation is delivered after that."""
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.wait({work})
        except asyncio.CancelledError as error:
            cancelled = error
    if not work.cancelled():
        work.exception()  # whoever cares for it has asked for the result
    if cancelled is not None:
        raise cancelled


async def result_of(work: asyncio.Future[T]) -> T:
    """What @work gives; if this task is cancelled, it ends after the thread has."""
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await to_the_end(work)
        raise


class Gate:
    """Layers of a transfer: a thread waits for each, an event loop lets it through."""

    def __init__(self) -> None:
        self._ready = 0
        self._error: DmaplaneError | None = None
        self._changed = threading.Condition()
        self.waited_seconds = 0.0

    def let_through(self, layers: int) -> None:
        """The first @layers of them are there."""
        with self._changed:
            self._ready = max(self._ready, layers)
            self._changed.notify_all()

    def fail(self, error: DmaplaneError) -> None:
        """There will be no more; who waits gets @error."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def wait(self, layer: int) -> None:
        """Returns when @layer is there."""
        with self._changed:
            while self._ready <= layer:
                if self._error is not None:
                    raise self._error
                self._changed.wait()

# SPDX-License-Identifier: MIT
"""One operation on a channel, from its submission to its completion.

The channel sets `_completion` exactly once, and wakes every future in `_futures`.
The operation holds nothing of the plane: dropping it does not stop it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, cast

from dmaplane._errors import NotFoundError
from dmaplane._plane import deadline_of

if TYPE_CHECKING:
    from collections.abc import Generator

    from dmaplane._channel import Channel
    from dmaplane._completion import Completion
    from dmaplane._endpoint import Endpoint
    from dmaplane._errors import DmaplaneError

OPERATION_BIT: Final = 1 << 63
"""Of user_data: set for operations, clear for rows."""


class Operation:
    """One accepted submission. wait() for it, `await` it, or cancel() it."""

    __slots__ = ("__weakref__", "_channel", "_completion", "_endpoint", "_futures", "user_data")

    def __init__(self, channel: Channel, user_data: int, endpoint: Endpoint | None = None) -> None:
        self._channel = channel
        self._endpoint = endpoint
        self._completion: Completion | None = None
        self._futures: list[asyncio.Future[None]] | None = None
        self.user_data = user_data

    @property
    def done(self) -> bool:
        """True once its completion was taken; never blocks, takes what there is."""
        if self._completion is None:
            self._channel._taker.take_now()
        return self._completion is not None

    @property
    def completion(self) -> Completion | None:
        """Its completion, if there is one yet; does not look for it."""
        return self._completion

    def wait(self, timeout: float | None = None, *, check: bool = True) -> Completion:
        """Blocks until it has completed, and raises its failure unless @check is False.

        TimedOutError after @timeout seconds leaves it in flight; a limit for the
        operation itself is given where it is made.
        """
        completion = self._completion
        if completion is None:
            deadline = 0 if timeout is None else deadline_of(timeout)
            completion = self._channel._taker.wait_for(self, deadline)
        if completion[1] and check:
            raise self._failure(completion)
        return completion

    def settled(self) -> bool:
        """True once its completion was taken; does not look for it."""
        return self._completion is not None

    def _failure(self, completion: Completion) -> DmaplaneError:
        failure = cast("DmaplaneError", completion.error)
        return failure if self._endpoint is None else self._endpoint._explained(failure, completion)

    def cancel(self, timeout: float | None = None) -> bool:
        """A fence: when it returns, nothing touches the buffers any more (L5).

        True if this stopped it, False if it had finished by itself.
        """
        if self._completion is not None:
            return False
        try:
            stopped = self._channel._cancel(0, self.user_data, timeout)
        except NotFoundError:
            stopped = 0
        self._channel._taker.take_now()
        return stopped > 0

    def __await__(self) -> Generator[Any, None, Completion]:
        """Waits in asyncio; raises its failure. Cancelling the only waiter cancels it."""
        if self._completion is None:
            loop = asyncio.get_running_loop()
            future: asyncio.Future[None] = loop.create_future()
            if self._futures is None:
                self._futures = []
            self._futures.append(future)
            try:
                self._channel._loops.watch(loop)
                while self._completion is None:
                    yield from future
            except BaseException:
                self._futures.remove(future)
                if not self._futures and self._completion is None:
                    self.cancel()
                raise
            finally:
                self._channel._loops.unwatch(loop)
        completion = self._completion
        if completion.result:
            raise self._failure(completion)
        return completion

    def __repr__(self) -> str:
        if self._completion is None:
            return f"<operation {self.user_data & ~OPERATION_BIT}, in flight>"
        return f"<operation {self.user_data & ~OPERATION_BIT}, result {self._completion.result}>"


def wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)

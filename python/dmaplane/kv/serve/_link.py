# SPDX-License-Identifier: MIT
"""A decode server's connection to its prefill server, made again when it ends.

Invariants: who waits for an answer gets it, or the reason why there will be none, within the time
given. An announcement that nobody waits for is refused. A connection that has ended takes all that
was asked on it along; the next one begins empty.

Who owns what: Link owns the endpoint, its receiver and the task that keeps them. It borrows plane
and pool.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from typing import TYPE_CHECKING, Any, Final

from dmaplane._errors import (
    DmaplaneError,
    PeerLostError,
    ProtocolError,
    TransferError,
    UnreachableError,
)
from dmaplane.kv._receiver import Receiver
from dmaplane.kv.serve._order import Report, encode_order

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from typing_extensions import Self

    from dmaplane import Plane
    from dmaplane._address import Require
    from dmaplane.kv._incoming import Incoming
    from dmaplane.kv._lease import Lease
    from dmaplane.kv._pool import Pool

_LOG: Final = logging.getLogger("dmaplane.kv.serve")


@dataclasses.dataclass(frozen=True, slots=True)
class LinkSettings:
    """Where the prefill server is, and how to get there."""

    address: str
    secret: str | None = dataclasses.field(default=None, repr=False)
    require: Require | None = None
    window: int = 64
    window_bytes: int = 64 << 20
    connect_seconds: float = 10.0
    retry_seconds: float = 0.5


class Order:
    """One prompt that was asked for: what comes of it, in two parts."""

    def __init__(self, request: str) -> None:
        loop = asyncio.get_running_loop()
        self.request = request
        self.announced: Incoming | None = None
        """What `incoming` gives, also when nobody has taken it from there."""
        self.incoming: asyncio.Future[Incoming] = loop.create_future()
        self.report: asyncio.Future[Report] = loop.create_future()
        self.incoming.add_done_callback(_seen)
        self.report.add_done_callback(_seen)

    def fail(self, error: DmaplaneError) -> None:
        """Neither part will come any more."""
        if not self.incoming.done():
            self.incoming.set_exception(error)
        if not self.report.done():
            self.report.set_exception(error)


def _seen(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()  # whoever waits raises it; if nobody does, that is no error


class Link:
    """Keeps a receiver. `async with await Link.open(plane, pool, settings) as link`."""

    def __init__(self, plane: Plane, pool: Pool, settings: LinkSettings) -> None:
        self.plane = plane
        self.pool = pool
        self.settings = settings
        self.path = "none"
        """What carries the bytes."""
        self.connections = 0
        """Made since the start."""
        self.down: str = "not connected yet"
        """Why there is no connection now; empty if there is one."""
        self._receiver: Receiver | None = None
        self._orders: dict[str, Order] = {}
        self._keeper: asyncio.Task[None] | None = None
        self._first: asyncio.Future[None] | None = None

    @classmethod
    async def open(cls, plane: Plane, pool: Pool, settings: LinkSettings) -> Self:
        """Connects; raises if that is not possible now."""
        self = cls(plane, pool, settings)
        self._first = asyncio.get_running_loop().create_future()
        self._keeper = asyncio.get_running_loop().create_task(self._keep())
        try:
            await asyncio.shield(self._first)
        except BaseException:
            await self.close()
            raise
        return self

    async def order(self, request: str, tokens: npt.NDArray[np.int64], lease: Lease) -> Order:
        """Asks for the cache of @tokens, which goes to the first blocks of @lease.

        withdraw() it when it is over, however it ended.
        """
        receiver = self._receiver
        if receiver is None:
            raise UnreachableError(
                f"no connection to the prefill server at {self.settings.address}: {self.down}"
            )
        order = self._orders[request] = Order(request)
        try:
            await receiver.ask(request, encode_order(tokens), lease=lease)
        except BaseException:
            del self._orders[request]
            raise
        return order

    async def withdraw(self, order: Order) -> None:
        """Nobody waits for it any more, at whatever stage it is.

        Also one whose announcement came while who waited for it was being cancelled.
        """
        known = self._orders.pop(order.request, None)
        if order.announced is not None:
            await order.announced.abort("nobody waits for it any more")
        elif known is not None and self._receiver is not None:
            try:
                await self._receiver.withdraw(order.request)
            except DmaplaneError as error:
                _LOG.info("order %s cannot be called off: %s", order.request, error)

    async def _keep(self) -> None:
        """Connections one after the other, until it is closed."""
        while True:
            error: DmaplaneError
            try:
                error = await self._once()
            except DmaplaneError as refusal:
                error = refusal
            self.down = str(error)
            if self._first is not None and not self._first.done():
                self._first.set_exception(error)
                return
            _LOG.warning("prefill server %s: %s", self.settings.address, error)
            await asyncio.sleep(self.settings.retry_seconds)

    async def _once(self) -> DmaplaneError:
        """One connection, from its beginning to the reason of its end."""
        settings = self.settings
        endpoint = await self.plane.connect_async(
            settings.address,
            secret=settings.secret,
            require=settings.require,
            window=settings.window,
            window_bytes=settings.window_bytes,
            timeout=settings.connect_seconds,
        )
        with endpoint:
            async with await Receiver.open(
                endpoint, self.pool, timeout=settings.connect_seconds
            ) as receiver:
                self.path, self.down = endpoint.path, ""
                self.connections += 1
                self._receiver = receiver
                if self._first is not None and not self._first.done():
                    self._first.set_result(None)
                readers = [
                    asyncio.get_running_loop().create_task(self._announcements(receiver)),
                    asyncio.get_running_loop().create_task(self._reports(receiver)),
                ]
                try:
                    await asyncio.wait(readers, return_when=asyncio.FIRST_COMPLETED)
                    return self._reason(receiver, readers)
                finally:
                    self._receiver = None
                    for reader in readers:
                        reader.cancel()
                    await asyncio.gather(*readers, return_exceptions=True)
                    self._lose(self._reason(receiver, readers))

    def _reason(self, receiver: Receiver, readers: list[asyncio.Task[None]]) -> DmaplaneError:
        for reader in readers:
            if reader.done() and not reader.cancelled():
                error = reader.exception()
                if isinstance(error, DmaplaneError):
                    return error
                if error is not None:
                    raise error
        return receiver.lost or PeerLostError("the prefill server has closed the connection")

    def _lose(self, reason: DmaplaneError) -> None:
        orders, self._orders = self._orders, {}
        for order in orders.values():
            order.fail(TransferError(order.request, f"the prefill server is lost: {reason}"))

    async def _announcements(self, receiver: Receiver) -> None:
        async for incoming in receiver:
            order = self._orders.get(incoming.request)
            if order is None or order.incoming.done():
                incoming.refuse("nobody waits for this request")
            else:
                order.announced = incoming
                order.incoming.set_result(incoming)

    async def _reports(self, receiver: Receiver) -> None:
        async for said in receiver.says():
            try:
                report = Report.decode(said)
            except ProtocolError as error:
                _LOG.warning("prefill server %s: %s", self.settings.address, error)
                continue
            order = self._orders.get(report.request)
            if order is None or order.report.done():
                continue
            order.report.set_result(report)
            if report.error and not order.incoming.done():
                order.incoming.set_exception(TransferError(report.request, report.error))

    async def close(self) -> None:
        """Ends the connection and whatever waits for it; idempotent."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        self.down = "closed"
        self._lose(PeerLostError("this side was closed"))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

# SPDX-License-Identifier: MIT
"""The prefill server: computes the caches that decode servers ask for, and sends them.

Invariants: one prompt is computed at a time, in the order they came; its layers go out while the
next ones are computed. A lease is released only when no thread computes into it and no transfer
reads it. What one peer or one order does ends that peer's connection or that order, nothing else.

Who owns what: PrefillServer owns its listener, a task per peer and the thread that computes. It
borrows engine and pool, which are closed by who made them.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import logging
import time
from typing import TYPE_CHECKING, Any, Final

from dmaplane._errors import DmaplaneError, PeerLostError, ProtocolError, TransferError
from dmaplane.kv._sender import Sender
from dmaplane.kv.engine import Cache
from dmaplane.kv.serve._blocks import BlockQueue
from dmaplane.kv.serve._order import Report, clock_name, decode_order
from dmaplane.kv.serve._thread import StoppedError, to_the_end, without_frames

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from typing_extensions import Self

    from dmaplane import Endpoint, Listener
    from dmaplane.kv._ask import Ask
    from dmaplane.kv._lease import Lease
    from dmaplane.kv._outgoing import Outgoing
    from dmaplane.kv._pool import Pool
    from dmaplane.kv.engine import Engine

_LOG: Final = logging.getLogger("dmaplane.kv.serve")


@dataclasses.dataclass(frozen=True, slots=True)
class PrefillSettings:
    """What peers may ask of a prefill server."""

    orders_max: int = 128
    """Of one peer, not yet done."""
    order_seconds: float = 120.0
    """Blocks of an order are given back after this, whatever became of it."""
    hello_seconds: float = 10.0
    window: int = 64


class _Job:
    """One prompt: computed on the thread, sent layer by layer meanwhile."""

    def __init__(self, outgoing: Outgoing) -> None:
        self.outgoing = outgoing
        self.started = time.monotonic()
        self.computed_seconds = 0.0
        self.layers: list[float] = []
        self._stopped = False
        self._sent = asyncio.get_running_loop().create_task(outgoing.done())

    def on_layer(self, layer: int) -> None:
        """Called by the engine, on its thread."""
        if self._stopped:
            raise StoppedError
        self.layers.append(time.monotonic() - self.started)
        self.outgoing.ready(layer)

    async def compute(self, work: asyncio.Future[Any]) -> None:
        """Until @work is over; raises what ended it, or the transfer, too early."""
        try:
            await asyncio.wait({work, self._sent}, return_when=asyncio.FIRST_COMPLETED)
            if self._sent.done() and not work.done():
                self._sent.result()
            await asyncio.shield(work)
        except BaseException as error:
            self._stopped = True
            await self.stop(f"prefill ended early: {error or type(error).__name__}")
            await to_the_end(work)
            raise
        self.computed_seconds = time.monotonic() - self.started

    async def sent(self) -> None:
        """Until the peer has all of it."""
        await asyncio.shield(self._sent)

    async def stop(self, reason: str) -> None:
        """When this returns nothing reads the blocks any more."""
        if not self._sent.done():
            await self.outgoing.abort(reason)
        await asyncio.gather(self._sent, return_exceptions=True)


class PrefillServer:
    """Serves decode servers that connect. `async with PrefillServer(...) as server`."""

    def __init__(
        self,
        engine: Engine,
        pool: Pool,
        listener: Listener,
        *,
        settings: PrefillSettings = PrefillSettings(),
    ) -> None:
        self.engine = engine
        self.pool = pool
        self.listener = listener
        self.settings = settings
        self.orders = 0
        self.failures = 0
        self._blocks = BlockQueue(pool, waiting_max=settings.orders_max * 8)
        self._turn = asyncio.Lock()
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "dmaplane-prefill")
        self._peers: set[asyncio.Task[None]] = set()
        self._door: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Lets peers in until it is closed."""
        async for endpoint in self.listener:
            task = asyncio.get_running_loop().create_task(self._peer(endpoint))
            self._peers.add(task)
            task.add_done_callback(self._peers.discard)

    async def _peer(self, endpoint: Endpoint) -> None:
        """One decode server, until it leaves."""
        orders: set[asyncio.Task[None]] = set()
        with endpoint:
            try:
                async with await Sender.open(
                    endpoint, self.pool, timeout=self.settings.hello_seconds
                ) as sender:
                    try:
                        async for ask in sender.asks():
                            task = asyncio.get_running_loop().create_task(
                                self._order(sender, ask, crowded=len(orders))
                            )
                            orders.add(task)
                            task.add_done_callback(orders.discard)
                    finally:
                        for task in orders:
                            task.cancel()
                        await asyncio.gather(*orders, return_exceptions=True)
            except PeerLostError as lost:
                _LOG.info("%s left: %s", endpoint.peer_address, lost.cause)
            except DmaplaneError as error:
                _LOG.warning("%s: %s", endpoint.peer_address, error)

    async def _order(self, sender: Sender, ask: Ask, *, crowded: int) -> None:
        """One prompt, from the order to the report."""
        self.orders += 1
        try:
            if crowded >= self.settings.orders_max:
                raise TransferError(ask.request, f"{crowded} orders of yours are not done yet")
            report = await self._compute(sender, ask)
        except (DmaplaneError, StoppedError) as error:
            self.failures += 1
            report = Report(request=ask.request, error=str(error) or "nobody wants it any more")
        try:
            await sender.say(report.encode())
        except DmaplaneError as error:
            _LOG.info("order %s: nobody to report to: %s", ask.request, error)

    async def _compute(self, sender: Sender, ask: Ask) -> Report:
        tokens = decode_order(ask.payload, vocabulary=self.engine.vocabulary)
        came = time.monotonic()
        needed = self.pool.layout.blocks_for(len(tokens))
        if needed > self.pool.blocks:
            raise ProtocolError(
                f"a prompt of {len(tokens)} tokens needs {needed} blocks; the prefill server's "
                f"pool has {self.pool.blocks}: start it with more --blocks"
            )
        lease = await self._blocks.lease(
            needed, holder="prefill", trace=ask.request, seconds=self.settings.order_seconds
        )
        with lease:
            async with self._turn:
                if ask.cancelled:
                    raise TransferError(ask.request, "called off before it was computed")
                queued = time.monotonic() - came
                lease.fill()
                job = _Job(
                    sender.send(ask.request, lease, len(tokens), trace=ask.request, ready=False)
                )
                await job.compute(self._started(tokens, lease, job))
            lease.publish()
            try:
                await job.sent()
            except BaseException as error:
                await job.stop(f"sending ended early: {error or type(error).__name__}")
                raise
            return Report(
                request=ask.request,
                clock=clock_name(),
                began=job.started,
                queued_seconds=queued,
                prefill_seconds=job.computed_seconds,
                sent_seconds=time.monotonic() - job.started,
                stalls=job.outgoing.statistics.stalls,
                layers=tuple(job.layers),
            )

    def _started(
        self, tokens: npt.NDArray[np.int64], lease: Lease, job: _Job
    ) -> asyncio.Future[Any]:
        return asyncio.get_running_loop().run_in_executor(
            self._thread,
            without_frames,
            self.engine.prefill,
            tokens,
            Cache(self.pool, lease),
            job.on_layer,
        )

    async def close(self) -> None:
        """Lets nobody in any more, ends what is going on, and waits for it; idempotent."""
        self.listener.close()
        if self._door is not None:
            self._door.cancel()
            await asyncio.gather(self._door, return_exceptions=True)
        peers = list(self._peers)
        for task in peers:
            task.cancel()
        await asyncio.gather(*peers, return_exceptions=True)
        self._thread.shutdown()

    async def __aenter__(self) -> Self:
        self._door = asyncio.get_running_loop().create_task(self.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

# SPDX-License-Identifier: MIT
"""The decode server without its HTTP: prompts in, tokens out, caches from a prefill server.

The prefill server computes all of a prompt but its last token; that one is decoded here, layer by
layer as the layers come, and gives the first token of the answer. A prompt of one token needs no
transfer.

Invariants: whatever becomes of a request, its lease ends when nothing uses the blocks any more:
no thread decodes from them and no transfer writes into them. A token is given out only after the
whole transfer was complete and checked. Requests that decode take turns, a token each.

Who owns what: Decoder owns two thread pools (first tokens wait for layers, so they have their own)
and the lease of each request. It borrows engine, pool and link.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from dmaplane._errors import (
    ClosedError,
    DmaplaneError,
    LimitError,
    TimedOutError,
    TransferError,
)
from dmaplane.kv.engine import Cache
from dmaplane.kv.serve._blocks import BlockQueue
from dmaplane.kv.serve._metrics import Meter
from dmaplane.kv.serve._order import TOKENS_MAX, clock_name
from dmaplane.kv.serve._thread import Gate, result_of, to_the_end, without_frames

if TYPE_CHECKING:
    import numpy.typing as npt

    from dmaplane.kv._incoming import Incoming
    from dmaplane.kv._lease import Lease
    from dmaplane.kv._pool import Pool
    from dmaplane.kv.engine import Engine
    from dmaplane.kv.serve._link import Link, Order

_REPORT_S: Final = 1.0
"""The tokens are there: nobody waits longer for figures."""


class Listener(Protocol):
    """Who is told how a request gets on."""

    async def layer(self, layer: int, layers: int) -> None:
        """So many of @layers have come, @layer being the last one."""

    async def token(self, token: int) -> None:
        """The next token of the answer."""


@dataclasses.dataclass(frozen=True, slots=True)
class DecodeSettings:
    """What one server does at once, and for how long."""

    running_max: int = 16
    waiting_max: int = 128
    request_seconds: float = 120.0


@dataclasses.dataclass(frozen=True, slots=True)
class Figures:
    """One request in numbers. Moments are seconds since it came to this server."""

    prompt_tokens: int = 0
    tokens: int = 0
    path: str = "none"
    bytes: int = 0
    chunks: int = 0
    stalls: int = 0
    checksum_seconds: float = 0.0
    transfer_seconds: float = 0.0
    """From the first layer's being computed to the publication of the last one here."""
    prefill_seconds: float = 0.0
    admitted: float = 0.0
    announced: float = 0.0
    began: float = 0.0
    """When prefill began: by its own clock where both have the same one, else `announced`."""
    computed: tuple[float, ...] = ()
    """When the prefill server had each layer, from `began` on."""
    layers: tuple[float, ...] = ()
    """When each layer was here and checked."""
    complete: float = 0.0
    decoded: tuple[float, ...] = ()
    """When each token was there."""

    def as_json(self) -> dict[str, Any]:
        """For an answer; microseconds are enough."""
        return {
            name: round(value, 6)
            if isinstance(value, float)
            else [round(one, 6) for one in value]
            if isinstance(value, tuple)
            else value
            for name, value in dataclasses.asdict(self).items()
        }


class _Notes:
    """What becomes Figures; filled in while a request runs."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._start = clock()
        self.known: dict[str, Any] = {}
        self.layers: list[float] = []
        self.decoded: list[float] = []

    def now(self) -> float:
        return self._clock() - self._start

    def since(self, moment: float) -> float:
        """A moment of the clock as one of this request; never before it."""
        return max(0.0, moment - self._start)

    def figures(self, **more: Any) -> Figures:
        return Figures(layers=tuple(self.layers), decoded=tuple(self.decoded), **self.known, **more)


class Decoder:
    """Completes prompts. `async with Decoder(...) as decoder`."""

    def __init__(
        self,
        engine: Engine,
        pool: Pool,
        link: Link,
        *,
        settings: DecodeSettings = DecodeSettings(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine = engine
        self.pool = pool
        self.link = link
        self.settings = settings
        self.meter = Meter()
        self.running = 0
        self.waiting = 0
        """Requests that wait for their turn, or for blocks."""
        self._clock = clock
        self._blocks = BlockQueue(pool, waiting_max=settings.waiting_max)
        self._slots = asyncio.Semaphore(settings.running_max)
        self._first = concurrent.futures.ThreadPoolExecutor(
            settings.running_max, "dmaplane-first-token"
        )
        self._next = concurrent.futures.ThreadPoolExecutor(1, "dmaplane-decode")
        self._closed = False

    @property
    def context_tokens(self) -> int:
        """The most that prompt and answer of one request may have together."""
        return min(TOKENS_MAX, self.pool.blocks * self.pool.layout.block_tokens)

    async def complete(
        self, request: str, prompt: npt.NDArray[np.int64], max_tokens: int, on: Listener
    ) -> Figures:
        """Decodes @max_tokens tokens greedily and tells @on of each as it is there.

        LimitError: too many wait already. TimedOutError: not done within request_seconds.
        TransferError, UnreachableError: the prefill server's side of it failed.
        """
        if self._closed:
            raise ClosedError("this decode server is closed")
        notes = _Notes(self._clock)
        work = asyncio.get_running_loop().create_task(
            self._complete(request, prompt, max_tokens, on, notes)
        )
        try:
            await asyncio.wait({work}, timeout=self.settings.request_seconds)
            if not work.done():
                raise TimedOutError(
                    f"request {request} was not done in {self.settings.request_seconds:.0f} s"
                )
            return work.result()
        finally:
            work.cancel()
            await to_the_end(work)

    async def _complete(
        self,
        request: str,
        prompt: npt.NDArray[np.int64],
        max_tokens: int,
        on: Listener,
        notes: _Notes,
    ) -> Figures:
        needed = self.pool.layout.blocks_for(len(prompt) - 1 + max_tokens)
        if self.waiting >= self.settings.waiting_max:
            raise LimitError(f"{self.waiting} requests wait already; try again")
        self.waiting += 1
        is_waiting = True
        try:
            async with self._slots:
                lease = await self._blocks.lease(
                    needed,
                    holder="decode",
                    trace=request,
                    seconds=2 * self.settings.request_seconds,
                )
                self.waiting -= 1
                is_waiting = False
                self.running += 1
                try:
                    with lease:
                        await self._run(request, prompt, max_tokens, lease, on, notes)
                finally:
                    self.running -= 1
        finally:
            self.waiting -= is_waiting
        figures = notes.figures(prompt_tokens=len(prompt), tokens=max_tokens)
        self._count(figures)
        return figures

    async def _run(
        self,
        request: str,
        prompt: npt.NDArray[np.int64],
        max_tokens: int,
        lease: Lease,
        on: Listener,
        notes: _Notes,
    ) -> None:
        """A request that has its blocks."""
        notes.known["admitted"] = notes.now()
        order = await self.link.order(request, prompt[:-1], lease) if len(prompt) > 1 else None
        try:
            if order is None:
                lease.fill()
                token = await self._token(int(prompt[0]), 0, lease, notes)
                lease.publish()
            else:
                token = await self._first_token(order, prompt, lease, on, notes)
            await on.token(token)
            for position in range(len(prompt), len(prompt) + max_tokens - 1):
                token = await self._token(token, position, lease, notes)
                await on.token(token)
            if order is not None:
                await self._note_report(order, notes)
        finally:
            if order is not None:
                await self.link.withdraw(order)

    async def _token(self, token: int, position: int, lease: Lease, notes: _Notes) -> int:
        """The token after @token, which stands at @position."""
        work = asyncio.get_running_loop().run_in_executor(
            self._next,
            without_frames,
            self.engine.decode,
            token,
            position,
            Cache(self.pool, lease),
            None,
        )
        logits = await result_of(work)
        following = int(np.argmax(logits))
        notes.decoded.append(notes.now())
        return following

    async def _first_token(
        self,
        order: Order,
        prompt: npt.NDArray[np.int64],
        lease: Lease,
        on: Listener,
        notes: _Notes,
    ) -> int:
        incoming = await order.incoming
        notes.known["announced"] = notes.now()
        if incoming.tokens != len(prompt) - 1:
            reason = f"{incoming.tokens} tokens announced, {len(prompt) - 1} asked for"
            incoming.refuse(reason)
            raise TransferError(order.request, reason)
        await incoming.accept(lease)
        return await self._arrive(incoming, prompt, lease, on, notes)

    async def _arrive(
        self,
        incoming: Incoming,
        prompt: npt.NDArray[np.int64],
        lease: Lease,
        on: Listener,
        notes: _Notes,
    ) -> int:
        """Decodes the last token of the prompt behind the layers as they come."""
        gate = Gate()
        loop = asyncio.get_running_loop()
        work: asyncio.Future[Any] | None = None
        try:
            async for layer in incoming.layers():
                notes.layers.append(notes.now())
                gate.let_through(layer + 1)
                if work is None:  # a thread of ours waits from the first layer on, not longer
                    work = loop.run_in_executor(
                        self._first,
                        without_frames,
                        self.engine.decode,
                        int(prompt[-1]),
                        len(prompt) - 1,
                        Cache(self.pool, lease),
                        gate.wait,
                    )
                await on.layer(layer, self.pool.layout.layers)
            await incoming.complete()
            notes.known["complete"] = notes.now()
            if work is None:
                raise TransferError(incoming.request, "it is complete and has no layers")
            token = int(np.argmax(await result_of(work)))
        except BaseException as error:
            known = isinstance(error, DmaplaneError)
            gate.fail(
                error if known else TransferError(incoming.request, "it was called off")  # type: ignore[arg-type]
            )
            if work is not None:
                await to_the_end(work)
            await incoming.abort(str(error) or "the request was called off")
            raise
        notes.decoded.append(notes.now())
        return token

    async def _note_report(self, order: Order, notes: _Notes) -> None:
        """Figures of both sides. A report that never comes leaves the other side's at 0."""
        assert order.announced is not None
        counted, known = order.announced.statistics, notes.known
        known["bytes"] = counted.bytes
        known["chunks"] = counted.chunks
        known["checksum_seconds"] = counted.checksum_seconds
        known["path"] = counted.path
        known["began"] = known["announced"]
        await asyncio.wait({order.report}, timeout=_REPORT_S)
        if not order.report.done() or order.report.exception() is not None:
            return
        report = order.report.result()
        if report.clock and report.clock == clock_name() and self._clock is time.monotonic:
            known["began"] = notes.since(report.began)
        known["computed"] = report.layers
        known["prefill_seconds"] = report.prefill_seconds
        known["stalls"] = report.stalls
        first = known["began"] + (report.layers[0] if report.layers else 0.0)
        known["transfer_seconds"] = max(0.0, known["complete"] - first)

    def _count(self, figures: Figures) -> None:
        meter = self.meter
        meter.completed += 1
        meter.prompt_tokens += figures.prompt_tokens
        meter.tokens += figures.tokens
        meter.transfers += figures.bytes > 0
        meter.transfer_bytes += figures.bytes
        meter.transfer_chunks += figures.chunks
        meter.transfer_stalls += figures.stalls
        meter.transfer_seconds += figures.transfer_seconds
        meter.checksum_seconds += figures.checksum_seconds
        meter.prefill_seconds += figures.prefill_seconds
        meter.first_token_seconds += figures.decoded[0]

    def close(self) -> None:
        """Takes no more requests; idempotent. End those that run first: cancel their tasks."""
        self._closed = True
        self._first.shutdown()
        self._next.shutdown()

    async def __aenter__(self) -> Decoder:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

# SPDX-License-Identifier: MIT
"""Who acts in the failure drill: a prefill side and a decode side, here or in a process that dies.

Both ends know from a seed what every element of a cache has to be, so each can tell for itself
whether what arrived is right. prefill() and decode() are programs for a Nursery: they do what they
are told by messages, one at a time, and answer each.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import struct
from collections.abc import AsyncIterator
from typing import Any

import numpy as np

import dmaplane
from dmaplane.kv import Incoming, Layout, Lease, Outgoing, Pool, Receiver, Sender
from dmaplane.testing._rig import PATIENCE_S

BLOCKS = 160
CHUNK_BYTES = 16 << 10
_SEED = struct.Struct("<Q")


# ---- what a cache has to be


def elements(layout: Layout, *, seed: int, layer: int, tokens: int) -> np.ndarray:
    """[2, tokens, heads, size]: bits, so that no value is equal to another by accident."""
    shape = (2, tokens, layout.heads, layout.head_size)
    return np.random.default_rng([seed, layer]).integers(0, 1 << 16, shape, np.uint16)


def _halves(pool: Pool, layer: int) -> tuple[np.ndarray, np.ndarray]:
    return pool.keys(layer), pool.values(layer)


def put(pool: Pool, lease: Lease, *, seed: int, layer: int, tokens: int) -> None:
    """Writes a layer of the cache of @seed into the blocks of @lease."""
    layout = pool.layout
    whole = np.zeros(
        (2, len(lease) * layout.block_tokens, layout.heads, layout.head_size), np.uint16
    )
    whole[:, :tokens] = elements(layout, seed=seed, layer=layer, tokens=tokens)
    for half, view in zip(whole, _halves(pool, layer), strict=True):
        view[lease.blocks] = half.reshape(len(lease), -1, *half.shape[1:])


def is_right(pool: Pool, lease: Lease, *, seed: int, layer: int, tokens: int) -> bool:
    """Whether the blocks of @lease hold that layer."""
    expected = elements(pool.layout, seed=seed, layer=layer, tokens=tokens)
    found = [view[lease.blocks] for view in _halves(pool, layer)]
    return all(
        np.array_equal(half.reshape(-1, *half.shape[2:])[:tokens], one)
        for half, one in zip(found, expected, strict=True)
    )


def _told(failure: dmaplane.TransferError, request: str) -> str:
    """The text of a failure, which has to be that request's."""
    assert failure.transfer == request, "an error of another request"
    return str(failure)


# ---- the two sides


@dataclasses.dataclass
class Sent:
    """A transfer and what it is from."""

    lease: Lease
    outgoing: Outgoing


class Prefill:
    """A side that has caches."""

    def __init__(self, pool: Pool, sender: Sender) -> None:
        self.pool = pool
        self.sender = sender
        self.sent: dict[str, Sent] = {}

    @classmethod
    async def open(cls, pool: Pool, endpoint: dmaplane.Endpoint, **options: Any) -> Prefill:
        options.setdefault("chunk_bytes", CHUNK_BYTES)
        return cls(pool, await Sender.open(endpoint, pool, timeout=PATIENCE_S, **options))

    def send(
        self, request: str, *, seed: int, tokens: int, layers: int, seconds: float | None = None
    ) -> Outgoing:
        """Announces a cache; its first @layers layers go, the others when ready() says so."""
        pool = self.pool
        count = pool.layout.blocks_for(tokens)
        lease = pool.lease(count, holder=f"prefill {request}", trace=request, seconds=seconds)
        for layer in range(pool.layout.layers):
            put(pool, lease, seed=seed, layer=layer, tokens=tokens)
        lease.publish()
        outgoing = self.sender.send(
            request, lease, tokens, metadata=_SEED.pack(seed), trace=request, ready=False
        )
        self.sent[request] = Sent(lease, outgoing)
        self.ready(request, first=0, end=layers)
        return outgoing

    def ready(self, request: str, *, first: int, end: int) -> None:
        """These layers go."""
        for layer in range(first, end):
            self.sent[request].outgoing.ready(layer)

    async def result(self, request: str) -> str:
        """Empty if it arrived, else what it failed with."""
        sent = self.sent[request]
        try:
            await asyncio.wait_for(sent.outgoing.done(), PATIENCE_S)
        except dmaplane.TransferError as failure:
            return _told(failure, request)
        finally:
            sent.lease.release()
        return ""

    async def close(self) -> None:
        await self.sender.__aexit__(None, None, None)


class Decode:
    """A side that caches come to. What is announced is taken, unless it is to be held."""

    def __init__(self, pool: Pool, receiver: Receiver, *, hold: bool = False) -> None:
        self.pool = pool
        self.receiver = receiver
        self.hold = hold
        self.here: dict[str, Incoming] = {}
        self.leases: dict[str, Lease] = {}
        self._results: dict[str, asyncio.Task[str]] = {}
        self._came = asyncio.Condition()
        self._ended = False
        self._listening = asyncio.get_running_loop().create_task(self._listen())

    @classmethod
    async def open(
        cls, pool: Pool, endpoint: dmaplane.Endpoint, *, hold: bool = False, **options: Any
    ) -> Decode:
        return cls(
            pool, await Receiver.open(endpoint, pool, timeout=PATIENCE_S, **options), hold=hold
        )

    async def _listen(self) -> None:
        with contextlib.suppress(dmaplane.PeerLostError, dmaplane.ClosedError):
            async for incoming in self.receiver:
                async with self._came:
                    self.here[incoming.request] = incoming
                    if not self.hold:
                        self.take(incoming)
                    self._came.notify_all()
        async with self._came:
            self._ended = True
            self._came.notify_all()

    def take(self, incoming: Incoming, *, seconds: float | None = None) -> None:
        """Accepts it, and looks at all of it when it is here."""
        loop = asyncio.get_running_loop()
        self._results[incoming.request] = loop.create_task(self._taken(incoming, seconds))

    async def announced(self, request: str) -> Incoming:
        """Once it is."""
        async with self._came:
            waiting = self._came.wait_for(lambda: request in self.here or self._ended)
            await asyncio.wait_for(waiting, PATIENCE_S)
        assert request in self.here, f"{request} was never announced: {self.receiver.lost}"
        return self.here[request]

    async def _taken(self, incoming: Incoming, seconds: float | None) -> str:
        pool, request = self.pool, incoming.request
        holder = f"decode {request}"
        with pool.lease(
            incoming.blocks, holder=holder, trace=incoming.trace, seconds=seconds
        ) as lease:
            self.leases[request] = lease
            try:
                await incoming.accept(lease)
                await asyncio.wait_for(incoming.complete(), PATIENCE_S)
            except dmaplane.TransferError as failure:
                return _told(failure, request)
            stamp = pool.stamp(lease.blocks)
            (seed,) = _SEED.unpack(incoming.metadata)
            wrong = [
                layer
                for layer in range(pool.layout.layers)
                if not is_right(pool, lease, seed=seed, layer=layer, tokens=incoming.tokens)
            ]
            pool.check(lease.blocks, stamp)
            assert not wrong, f"{request}: layers {wrong} are not what was sent"
            return ""

    async def result(self, request: str) -> str:
        """Empty if it is here and right, else what it failed with."""
        await self.announced(request)
        return await asyncio.wait_for(asyncio.shield(self._results[request]), 2 * PATIENCE_S)

    async def close(self) -> None:
        await self.receiver.__aexit__(None, None, None)
        await self._listening
        await asyncio.gather(*self._results.values())


# ---- programs


async def _orders(talk: Any) -> AsyncIterator[dict[str, Any]]:
    """What the test says, while the loop goes on."""
    loop, orders = asyncio.get_running_loop(), asyncio.Queue[dict[str, Any]]()
    loop.add_reader(talk._talk.fileno(), lambda: orders.put_nowait(talk.hear()))
    while True:
        yield await orders.get()


def _account(pool: Pool) -> list[int]:
    account = pool.audit()
    return [account.allocated, account.free, account.leased, account.quarantined]


async def _with_pool(talk: Any, act: Any, *, address: str, path: Any, layout: str) -> None:
    with dmaplane.open(plane="embedded") as plane:
        with Pool(plane, Layout.decode(bytes.fromhex(layout)), BLOCKS) as pool:
            endpoint = await plane.connect_async(address, require=path)
            try:
                await act(pool, endpoint)
            except dmaplane.LayoutError as failure:
                endpoint.close()
                talk.say({"refused": str(failure), "account": _account(pool)})
                talk.hear()


def prefill(talk: Any, *, chunk_bytes: int = CHUNK_BYTES, **settings: Any) -> None:
    """A prefill side in a process of its own."""

    async def act(pool: Pool, endpoint: dmaplane.Endpoint) -> None:
        side = await Prefill.open(pool, endpoint, chunk_bytes=chunk_bytes)
        talk.say({"open": True})
        async for order in _orders(talk):
            do, answer = order.pop("do"), None
            if do == "send":
                side.send(**order)
            elif do == "ready":
                side.ready(**order)
            elif do == "abort":
                await side.sent[order["request"]].outgoing.abort(order["reason"])
            elif do == "result":
                answer = await side.result(order["request"])
            elif do == "account":
                answer = _account(pool)
            talk.say({"answer": answer})

    asyncio.run(_with_pool(talk, act, **settings))


def decode(talk: Any, *, hold: bool = False, **settings: Any) -> None:
    """A decode side in a process of its own."""

    async def act(pool: Pool, endpoint: dmaplane.Endpoint) -> None:
        side = await Decode.open(pool, endpoint, hold=hold)
        talk.say({"open": True})
        async for order in _orders(talk):
            do, answer = order.pop("do"), None
            if do == "announced":
                await side.announced(order["request"])
            elif do == "take":
                side.take(await side.announced(order["request"]))
            elif do == "abort":
                await (await side.announced(order["request"])).abort(order["reason"])
            elif do == "result":
                answer = await side.result(order["request"])
            elif do == "account":
                answer = _account(pool)
            talk.say({"answer": answer})

    asyncio.run(_with_pool(talk, act, **settings))

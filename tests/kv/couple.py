# SPDX-License-Identifier: MIT
"""A sender and a receiver in one process, on planes of their own, and bytes to move."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

import numpy as np

import dmaplane
from dmaplane.kv import Incoming, Layout, Outgoing, Pool, Receiver, Sender, compile_plan

T = TypeVar("T")
SOON = 20.0
SETTLED_S = 5.0
LAYERS = 4
NHD = Layout(
    layers=LAYERS, kv_heads=4, head_size=32, dtype="float16", block_tokens=16, model="tiny"
)
HND = dataclasses.replace(NHD, order="HND", block_tokens=64)


def run(main: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(main, SOON))


@contextlib.asynccontextmanager
async def endpoints(
    path: str, *, window: int = 64, address: Any = None
) -> AsyncIterator[tuple[dmaplane.Endpoint, dmaplane.Endpoint]]:
    """Two ends of one connection: (near, far). @address: of who is between, by that of far."""
    with (
        dmaplane.open(plane="embedded") as ours,
        dmaplane.open(plane="embedded") as theirs,
        theirs.listen("127.0.0.1:0", require=path) as listener,  # type: ignore[arg-type]
    ):
        where = listener.address if address is None else address(listener.address)
        near, far = await asyncio.gather(
            ours.connect_async(where, window=window, require=path),
            listener.accept_async(window=window, window_bytes=16 << 20),
        )
        with near, far:
            yield near, far


class Couple:
    """Both ends, their pools, and what is asked of them again and again."""

    def __init__(self, sender: Sender, receiver: Receiver) -> None:
        self.sender, self.receiver = sender, receiver

    def fill(self, seed: int = 1) -> None:
        """Other bytes in every place of the source."""
        memory = self.sender.pool.buffer.numpy()
        memory[:] = np.random.default_rng(seed).integers(0, 256, len(memory), dtype=np.uint8)

    def same(self, outgoing: Outgoing, incoming: Incoming) -> bool:
        """Every byte that was to come is there: Plan.apply() says which."""
        source, target = self.sender.pool, self.receiver.pool
        plan = compile_plan(source.layout, target.layout)
        lease = incoming._lease
        assert lease is not None
        copies = plan.copies(
            incoming.tokens,
            outgoing._lease.blocks,
            lease.blocks[: incoming.blocks],
        )
        for layer in range(source.layout.layers):
            wanted = target.layer(layer).copy()
            before = wanted.tobytes()
            plan.apply(source.layer(layer), wanted, copies)
            if wanted.tobytes() != before:
                return False
        return True

    async def next(self) -> Incoming:
        return await self.receiver.__anext__()

    async def settles(self) -> None:
        """Soon nothing is leased, nothing in quarantine, at either side.

        Soon: who ended it knows at once, the other side when it has read that.
        """
        limit = asyncio.get_running_loop().time() + SETTLED_S
        while True:
            accounts = self.sender.pool.audit(), self.receiver.pool.audit()
            if all(each.free == each.allocated for each in accounts):
                return
            assert asyncio.get_running_loop().time() < limit, accounts
            await asyncio.sleep(0.01)

    async def moves(self, tokens: int = 100, request: str = "again") -> None:
        """A whole transfer, from the first lease to the last release."""
        source, target = self.sender.pool, self.receiver.pool
        with source.lease(source.layout.blocks_for(tokens), holder="prefill") as from_:
            outgoing = self.sender.send(request, from_, tokens)
            incoming = await self.next()
            assert incoming.request == request
            with target.lease(incoming.blocks, holder="decode") as to:
                await incoming.accept(to)
                assert await incoming.complete() is to
                await outgoing.done()
                assert self.same(outgoing, incoming)


@contextlib.asynccontextmanager
async def couple(
    path: str = "shm",
    source: Layout = NHD,
    target: Layout = NHD,
    *,
    blocks: int = 256,
    chunk_bytes: int = 16 << 10,
    window: int = 16,
    transfers: int = 64,
    address: Any = None,
) -> AsyncIterator[Couple]:
    async with endpoints(path, address=address) as (near, far):
        with Pool(near.plane, source, blocks) as ours, Pool(far.plane, target, blocks) as theirs:
            sender, receiver = await asyncio.gather(
                Sender.open(near, ours, chunk_bytes=chunk_bytes, window=window),
                Receiver.open(far, theirs, transfers=transfers),
            )
            async with sender, receiver:
                made = Couple(sender, receiver)
                made.fill()
                yield made
            ours.audit()
            theirs.audit()


@contextlib.asynccontextmanager
async def under_way(both: Couple, tokens: int = 700, *, accept: bool = True, **options: Any) -> Any:
    """A transfer that was announced, and accepted if @accept; no layer of it is ready."""
    source, target = both.sender.pool, both.receiver.pool
    options = {"ready": False, **options}
    with (
        source.lease(source.layout.blocks_for(tokens), holder="prefill") as from_,
        target.lease(target.layout.blocks_for(tokens), holder="decode") as to,
    ):
        outgoing = both.sender.send("under way", from_, tokens, **options)
        incoming = await both.next()
        if accept:
            await incoming.accept(to)
        yield outgoing, incoming, to


@contextlib.asynccontextmanager
async def several(both: Couple, priorities: list[int], tokens: int = 512) -> Any:
    """As many transfers, all accepted, none ready."""
    source, target = both.sender.pool, both.receiver.pool
    blocks = source.layout.blocks_for(tokens)
    with contextlib.ExitStack() as stack:
        out, into = [], []
        for number, priority in enumerate(priorities):
            lease = stack.enter_context(source.lease(blocks, holder=f"prefill {number}"))
            out.append(
                both.sender.send(f"r{number}", lease, tokens, priority=priority, ready=False)
            )
        for _ in priorities:
            incoming = await both.next()
            await incoming.accept(stack.enter_context(target.lease(blocks, holder="decode")))
            into.append(incoming)
        while any(each._route is None for each in out):
            await asyncio.sleep(0.001)
        yield out, into


async def failures(outgoing: Outgoing, incoming: Incoming) -> list[dmaplane.TransferError]:
    """Why it failed, at both ends."""
    ended = await asyncio.gather(outgoing.done(), incoming.complete(), return_exceptions=True)
    assert all(isinstance(each, dmaplane.TransferError) for each in ended), ended
    return ended  # type: ignore[return-value]

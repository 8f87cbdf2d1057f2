# SPDX-License-Identifier: MIT
"""Caches of one tensor parallelism, block size and order become those of another, over connections.

Every rank that has to send is a sender of its own, with its own connection; all of them fill one
lease at the same time. What is there in the end is what the oracle puts there, and no
other byte has changed. What no plan bridges is refused at both ends when they connect.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator

import numpy as np
import pytest
from oracle import base, put

import dmaplane
from dmaplane import LayoutError
from dmaplane.kv import Layout, Lease, Pool, Receiver, Sender, sources_of

TOKENS = 283
BLOCKS = 40
SOON = 30.0


@contextlib.asynccontextmanager
async def meeting(
    near: dmaplane.Plane, far: dmaplane.Plane, path: str
) -> AsyncIterator[tuple[dmaplane.Endpoint, dmaplane.Endpoint]]:
    with far.listen("127.0.0.1:0", require=path) as listener:
        here, there = await asyncio.gather(
            near.connect_async(listener.address, require=path),
            listener.accept_async(window_bytes=16 << 20),
        )
    with here, there:
        yield here, there


async def one_rank_sends(
    source: Layout, near: dmaplane.Plane, target: Pool, lease: Lease, path: str
) -> None:
    """From a pool of its own, over a connection of its own, into @lease; publishes nothing."""
    async with meeting(near, target.plane, path) as (here, there):
        with Pool(near, source, BLOCKS) as pool:
            blocks = source.blocks_for(TOKENS)
            with pool.lease(blocks + 2, holder="prefill") as mine:
                memory = [pool.layer(layer) for layer in range(source.layers)]
                for whole in memory:
                    whole.view(np.uint8)[...] = 0xAA
                put(memory, source, TOKENS, mine.blocks)
                del memory, whole
                sender, receiver = await asyncio.gather(
                    Sender.open(here, pool, chunk_bytes=4096), Receiver.open(there, target)
                )
                async with sender, receiver:
                    outgoing = sender.send("one", mine, TOKENS)
                    incoming = await receiver.__anext__()
                    assert incoming.tokens == TOKENS
                    await incoming.accept(lease, publish=False)
                    await incoming.complete()
                    await outgoing.done()
            assert pool.audit().free == BLOCKS


async def becomes(source: Layout, degree: int, destination: Layout, path: str) -> None:
    with (
        dmaplane.open(plane="embedded") as near,
        dmaplane.open(plane="embedded") as far,
        Pool(far, destination, BLOCKS) as target,
    ):
        target.buffer.numpy()[:] = 0x55
        with (
            target.lease(2, holder="somebody else"),
            target.lease(destination.blocks_for(TOKENS) + 1, holder="decode") as lease,
        ):
            await asyncio.gather(
                *(
                    one_rank_sends(source.for_rank(rank, degree), near, target, lease, path)
                    for rank in sources_of(degree, destination)
                )
            )
            lease.publish()
            found = [target.layer(n).tobytes() for n in range(destination.layers)]
            target.buffer.numpy()[:] = 0x55
            memory = [target.layer(n) for n in range(destination.layers)]
            put(memory, destination, TOKENS, lease.blocks)
            wanted = [layer.tobytes() for layer in memory]
            del memory
        same = found == wanted  # not in the assert: nobody reads a difference of so many bytes
        assert same
        assert target.audit().free == BLOCKS


@pytest.mark.parametrize("path", ["shm", "tcp"])
@pytest.mark.parametrize(
    ("source", "degree", "destination"),
    [
        ({}, 1, {}),
        ({}, 1, {"block_tokens": 64, "order": "HND"}),
        ({}, 1, {"rank": 3, "degree": 4}),
        ({}, 4, {}),
        ({"order": "HND"}, 4, {"order": "HND", "rank": 1, "degree": 2, "block_tokens": 64}),
        ({"order": "HND", "block_tokens": 64}, 2, {"block_tokens": 16}),
        ({"kv_heads": 2}, 8, {"kv_heads": 2, "block_tokens": 48}),
        ({"kv_heads": 1, "kind": "mla"}, 2, {"kv_heads": 1, "kind": "mla", "block_tokens": 64}),
    ],
    ids=["same", "order+blocks", "1to4", "4to1", "HND-4to2", "2to1", "twins", "mla"],
)
def test_what_arrives_is_the_other_layout_byte_for_byte(
    source: dict[str, object], degree: int, destination: dict[str, object], path: str
) -> None:
    asyncio.run(asyncio.wait_for(becomes(base(**source), degree, base(**destination), path), SOON))


@pytest.mark.parametrize(
    "change",
    [
        {"layers": 3},
        {"kv_heads": 16},
        {"head_size": 5},
        {"dtype": "float16"},
        {"model": "another"},
        {"rank": 1, "degree": 2},
        {"layers": 1, "dtype": "int8", "model": "another"},
    ],
    ids=lambda change: "+".join(change),
)
def test_what_no_plan_bridges_is_refused_at_both_ends(change: dict[str, object]) -> None:
    ours = base(rank=0, degree=2)
    theirs = dataclasses.replace(base(order="HND", block_tokens=64, rank=0, degree=2), **change)

    async def main() -> tuple[object, object]:
        with dmaplane.open(plane="embedded") as near, dmaplane.open(plane="embedded") as far:
            with Pool(near, ours, 4) as source, Pool(far, theirs, 4) as target:
                async with meeting(near, far, "shm") as (here, there):
                    answers = await asyncio.gather(
                        Sender.open(here, source),
                        Receiver.open(there, target),
                        return_exceptions=True,
                    )
                assert source.audit().free == target.audit().free == 4
                return answers[0], answers[1]

    sent, received = asyncio.run(asyncio.wait_for(main(), SOON))
    assert isinstance(sent, LayoutError)
    assert isinstance(received, LayoutError)
    assert received.differences == tuple((name, b, a) for name, a, b in sent.differences)
    named = {name for name, _, _ in sent.differences}
    assert named == ({"heads"} if "rank" in change else set(change))

# SPDX-License-Identifier: MIT
"""Engines over a real transfer: two planes, two pools, a connection, nothing else shared.

Each side has an engine of its own, made from the same settings, as two processes would. The decode
side begins while later layers are not even computed, and has to say what one process says.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from engines import LAST, PROMPT, TOKENS, cache_of, generated, made
from engines import flip as flipped

import dmaplane
from dmaplane import kv
from dmaplane.kv.engine import Cache, Engine, greedy

LIMIT_S = 60.0


@contextlib.asynccontextmanager
async def connected(
    path: Any, source: kv.Layout, target: kv.Layout
) -> AsyncIterator[tuple[kv.Sender, kv.Receiver]]:
    with (
        dmaplane.open(plane="embedded") as ours,
        dmaplane.open(plane="embedded") as theirs,
        theirs.listen("127.0.0.1:0", require=path) as listener,
    ):
        near, far = await asyncio.gather(
            ours.connect_async(listener.address, require=path), listener.accept_async()
        )
        with kv.Pool(ours, source, 16) as one, kv.Pool(theirs, target, 16) as other:
            sender, receiver = await asyncio.gather(
                kv.Sender.open(near, one), kv.Receiver.open(far, other)
            )
            async with sender, receiver:
                yield sender, receiver


async def split(
    path: str, prefill: Engine, decode: Engine, *, flip: int | None = None
) -> list[int]:
    """Tokens of the two engines together.

    @flip: the layer of which one number of V gets the highest bit of its exponent on the sender's
    side, before it is sent and without a checksum.
    """
    begun, waited = threading.Event(), list[int]()
    async with connected(path, prefill.layout, decode.layout) as (sender, receiver):
        ours, theirs = sender.pool, receiver.pool
        loop = asyncio.get_running_loop()
        with (
            ours.lease(prefill.layout.blocks_for(LAST), holder="prefill") as from_,
            theirs.lease(decode.layout.blocks_for(LAST + TOKENS), holder="decode") as to,
        ):
            outgoing = sender.send("r", from_, LAST, checksum=flip is None, ready=False)
            incoming = await receiver.__anext__()
            await incoming.accept(to)

            def on_layer(number: int) -> None:
                if number == 1:  # layer 0 is there, and decode has begun, or this ends in a timeout
                    assert begun.wait(LIMIT_S)
                if number == flip:
                    flipped(ours, from_, number)
                outgoing.ready(number)

            def before_layer(number: int) -> None:
                waited.append(number)
                asyncio.run_coroutine_threadsafe(incoming.layer(number), loop).result(LIMIT_S)
                begun.set()

            def decoded() -> list[int]:
                steps = greedy(
                    decode,
                    Cache(theirs, to),
                    token=int(PROMPT[-1]),
                    position=LAST,
                    count=TOKENS,
                    before_layer=before_layer,
                )
                return list(steps)

            _, found = await asyncio.gather(
                asyncio.to_thread(prefill.prefill, PROMPT[:-1], Cache(ours, from_), on_layer),
                asyncio.to_thread(decoded),
            )
            assert waited == list(range(decode.layout.layers)), "in the first step only"
            assert await incoming.complete() is to
            await outgoing.done()
            return found


def in_one_process(engine: Engine) -> list[int]:
    with dmaplane.open(plane="embedded") as plane, cache_of(plane, engine.layout) as cache:
        return generated(engine, cache)


def run(main: Any) -> Any:
    return asyncio.run(asyncio.wait_for(main, LIMIT_S))


@pytest.mark.parametrize("path", ["shm", "tcp"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["numpy", "transformers"])
@pytest.mark.parametrize("other", [{}, {"block_tokens": 64, "order": "HND"}])
def test_split_over_two_sides_the_tokens_are_those_of_one(
    name: str, dtype: str, path: str, other: dict[str, Any]
) -> None:
    prefill, decode = made(name, dtype=dtype), made(name, dtype=dtype, **other)
    right = in_one_process(prefill)
    assert len(set(right)) >= 20
    assert run(split(path, prefill, decode)) == right


@pytest.mark.parametrize("name", ["numpy", "transformers"])
def test_one_bit_flipped_on_the_way_without_a_checksum_changes_the_tokens(name: str) -> None:
    engine = made(name)
    assert run(split("shm", engine, engine, flip=2)) != in_one_process(engine)

# SPDX-License-Identifier: MIT
"""A prefill and a decode server of one test, in one event loop, on two planes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np

import dmaplane
from dmaplane.kv import Pool
from dmaplane.kv.engine import Cache, Engine, greedy, load
from dmaplane.kv.serve import (
    Decoder,
    DecodeSettings,
    HttpServer,
    Limits,
    Link,
    LinkSettings,
    PrefillServer,
    Routes,
)

SMALL = {
    "layers": 3,
    "hidden": 64,
    "heads": 4,
    "kv_heads": 2,
    "head_size": 16,
    "inner": 96,
    "vocabulary": 256,
    "spread": 0.2,
}


class Held:
    """An engine whose prefill waits, after its first layer, until it is let go."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.held = False
        self.at_layer = 0
        """How many layers prefill has computed."""
        self.decode_layer = -1
        """Which layer decode asked for last."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def prefill(self, tokens: Any, cache: Cache, on_layer: Any = None) -> Any:
        def told(layer: int) -> None:
            on_layer(layer)
            self.at_layer = layer + 1
            while self.held:
                time.sleep(0.002)

        return self._engine.prefill(tokens, cache, told)

    def decode(self, token: int, position: int, cache: Cache, before_layer: Any = None) -> Any:
        def asked(layer: int) -> None:
            self.decode_layer = layer
            before_layer(layer)

        return self._engine.decode(token, position, cache, None if before_layer is None else asked)


@dataclasses.dataclass
class Scene:
    """Both servers, and what they stand on."""

    engine: Held
    prefill_pool: Pool
    decode_pool: Pool
    prefill: PrefillServer
    decoder: Decoder
    http: HttpServer
    restart: Callable[[], Any]

    @property
    def port(self) -> int:
        return self.http.port

    def all_free(self) -> bool:
        """No block of either side is taken, and the books agree."""
        accounts = [pool.audit() for pool in (self.prefill_pool, self.decode_pool)]
        return all(one.free == one.allocated for one in accounts)

    def single(self, prompt: list[int], count: int) -> list[int]:
        """What one process gives."""
        layout = self.engine.layout
        with dmaplane.open(plane="embedded") as plane, Pool(plane, layout, 64) as pool:
            with pool.lease(layout.blocks_for(len(prompt) + count), holder="test") as lease:
                cache = Cache(pool, lease)
                if len(prompt) > 1:
                    self.engine._engine.prefill(np.array(prompt[:-1]), cache)
                found = list(
                    greedy(
                        self.engine._engine,
                        cache,
                        token=prompt[-1],
                        position=len(prompt) - 1,
                        count=count,
                    )
                )
            return found


@contextlib.asynccontextmanager
async def scene(
    *,
    blocks: int = 64,
    prefill_blocks: int = 64,
    theirs: dict[str, Any] | None = None,
    ours: dict[str, Any] | None = None,
    path: Any = None,
    settings: DecodeSettings | None = None,
    limits: Limits | None = None,
) -> AsyncIterator[Scene]:
    """@theirs and @ours: what the pools' layouts have otherwise than the engine's."""
    engine = Held(load("numpy", **SMALL))
    with contextlib.ExitStack() as stack:
        planes = [stack.enter_context(dmaplane.open(plane="embedded")) for _ in range(2)]
        prefill_pool, decode_pool = (
            stack.enter_context(
                Pool(plane, dataclasses.replace(engine.layout, **(changed or {})), count)
            )
            for plane, changed, count in zip(
                planes, (theirs, ours), (prefill_blocks, blocks), strict=True
            )
        )
        servers: list[PrefillServer] = []

        async def start(address: str) -> PrefillServer:
            listener = planes[0].listen(address, require=path)
            servers.append(PrefillServer(engine, prefill_pool, listener))  # type: ignore[arg-type]
            return await servers[-1].__aenter__()

        first = await start("127.0.0.1:0")
        address = first.listener.address
        try:
            link_settings = LinkSettings(address=address, require=path, retry_seconds=0.05)
            async with (
                await Link.open(planes[1], decode_pool, link_settings) as link,
                Decoder(
                    engine, decode_pool, link, settings=settings or DecodeSettings()
                ) as decoder,  # type: ignore[arg-type]
                await HttpServer.open(Routes(decoder), limits=limits or Limits()) as http,
            ):
                made = Scene(
                    engine, prefill_pool, decode_pool, first, decoder, http, lambda: start(address)
                )
                try:
                    yield made
                finally:
                    engine.held = False
        finally:
            engine.held = False
            for server in servers:
                await server.close()


async def until(true: Callable[[], bool]) -> None:
    """Soon; a test's own time limit is the end of patience."""
    while not true():
        await asyncio.sleep(0.005)

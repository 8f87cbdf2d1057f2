# SPDX-License-Identifier: MIT
"""What one server stands on: a plane, an engine and a pool for it; and a server's whole life.

Invariants: opened in this order and closed in the other one, whatever happens in between. `ready`
is told once, when requests can come.

Who owns what: Site owns plane and pool. serve_prefill() and serve_decode() own their servers and
end when `stop` is set.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import dmaplane
from dmaplane.kv._pool import Pool
from dmaplane.kv.engine import load
from dmaplane.kv.serve._blocks import keep_swept
from dmaplane.kv.serve._decode import Decoder
from dmaplane.kv.serve._http import HttpServer
from dmaplane.kv.serve._link import Link, LinkSettings
from dmaplane.kv.serve._prefill import PrefillServer
from dmaplane.kv.serve._routes import PrefillRoutes, Routes

if TYPE_CHECKING:
    from dmaplane._address import Require
    from dmaplane.kv._layout import Order
    from dmaplane.kv.engine import Engine

Ready = Callable[[dict[str, Any]], None]
PlaneName = Literal["auto", "kernel", "embedded"]


@dataclasses.dataclass(frozen=True, slots=True)
class SiteSettings:
    """Which plane, which engine, how many blocks of what form."""

    plane: PlaneName = "auto"
    engine: str = "numpy"
    engine_settings: tuple[tuple[str, Any], ...] = ()
    blocks: int = 512
    block_tokens: int | None = None
    """The engine's own if left out."""
    order: Order | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Site:
    """Open, for as long as opened() is."""

    plane: dmaplane.Plane
    engine: Engine
    pool: Pool


@contextlib.contextmanager
def opened(settings: SiteSettings) -> Iterator[Site]:
    """Opens all of it. The error says what is wrong, before anything else was done."""
    with dmaplane.open(plane=settings.plane) as plane:
        engine = load(settings.engine, **dict(settings.engine_settings))
        layout = dataclasses.replace(
            engine.layout,
            block_tokens=settings.block_tokens or engine.layout.block_tokens,
            order=settings.order or engine.layout.order,
        )
        with Pool(plane, layout, settings.blocks) as pool:
            yield Site(plane, engine, pool)


@dataclasses.dataclass(frozen=True, slots=True)
class Door:
    """Where HTTP is answered; port 0 is any free one."""

    host: str = "127.0.0.1"
    port: int = 0


async def serve_prefill(
    site: Site,
    *,
    listen: str,
    secret: str | None,
    require: Require | None,
    http: Door | None,
    ready: Ready,
    stop: asyncio.Event,
) -> None:
    """A prefill server, until @stop."""
    with site.plane.listen(listen, secret=secret, require=require) as listener:
        async with (
            _swept(site.pool),
            PrefillServer(site.engine, site.pool, listener) as server,
            _http(PrefillRoutes(server), http) as address,
        ):
            ready({"role": "prefill", "address": listener.address, **_about(site, address)})
            await stop.wait()


async def serve_decode(
    site: Site,
    *,
    link: LinkSettings,
    http: Door,
    ready: Ready,
    stop: asyncio.Event,
) -> None:
    """A decode server, until @stop."""
    async with (
        _swept(site.pool),
        await Link.open(site.plane, site.pool, link) as opened_link,
        Decoder(site.engine, site.pool, opened_link) as decoder,
        _http(Routes(decoder), http) as address,
    ):
        ready(
            {
                "role": "decode",
                "prefill": link.address,
                "path": opened_link.path,
                **_about(site, address),
            }
        )
        await stop.wait()


def _about(site: Site, http: str | None) -> dict[str, Any]:
    return {
        "http": http,
        "plane": site.plane.name,
        "engine": site.engine.name,
        "vocabulary": site.engine.vocabulary,
        "copied": site.engine.copied(),
        "blocks": site.pool.blocks,
        "block_tokens": site.pool.layout.block_tokens,
        "order": site.pool.layout.order,
    }


@contextlib.asynccontextmanager
async def _swept(pool: Pool) -> Any:
    task = asyncio.get_running_loop().create_task(keep_swept(pool))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def _http(handler: Any, door: Door | None) -> Any:
    """Its address; None if nobody wants it."""
    if door is None:
        yield None
        return
    async with await HttpServer.open(handler, host=door.host, port=door.port) as server:
        yield server.address

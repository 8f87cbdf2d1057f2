# SPDX-License-Identifier: MIT
"""What a decode server answers over HTTP.

    POST /v1/completions   OpenAI's, greedy; "stream": true for server-sent events
    GET  /v1/models        the one model there is
    GET  /health           200 while the prefill server is connected, else 503 and why
    GET  /metrics          counters for collectors
    GET  /kv/leases        who has which blocks

Invariants: each error has one status, and says whether trying again can help; a stream that ends
with an error says so in an event before it ends, and has no [DONE].
"""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any, Final

from dmaplane._errors import (
    ClosedError,
    DmaplaneError,
    InvalidError,
    LimitError,
    PeerLostError,
    TimedOutError,
    TransferError,
    UnreachableError,
)
from dmaplane.kv._leaks import as_json
from dmaplane.kv.serve._completion import DONE, Answer, Bounds, Completion, parse, sse
from dmaplane.kv.serve._http import Exchange, HttpError, Request
from dmaplane.kv.serve._metrics import EXPOSITION_KIND, exposition
from dmaplane.kv.serve._text import TextStream

if TYPE_CHECKING:
    from dmaplane.kv._pool import Pool
    from dmaplane.kv.serve._decode import Decoder
    from dmaplane.kv.serve._prefill import PrefillServer

_AGAIN: Final = (("Retry-After", "1"),)
_STATUS: Final[tuple[tuple[type[DmaplaneError], int, str], ...]] = (
    (InvalidError, 400, "invalid_value"),
    (LimitError, 429, "overloaded"),
    (TimedOutError, 504, "timed_out"),
    (UnreachableError, 503, "prefill_unreachable"),
    (ClosedError, 503, "closing"),
    (PeerLostError, 502, "prefill_lost"),
    (TransferError, 502, "transfer_failed"),
    (DmaplaneError, 500, "internal"),
)


class Routes:
    """The handler of an HttpServer, over one Decoder."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.bounds = Bounds(
            model=decoder.engine.name,
            vocabulary=decoder.engine.vocabulary,
            context_tokens=decoder.context_tokens,
        )
        self._plain = {
            "/v1/models": self._models,
            "/health": self._health,
            "/metrics": self._metrics,
            "/kv/leases": self._leases,
        }

    async def __call__(self, request: Request, exchange: Exchange) -> None:
        """Answers one request."""
        known = "POST" if request.path == "/v1/completions" else "GET"
        if request.path != "/v1/completions" and request.path not in self._plain:
            raise HttpError(404, "there is nothing here; POST /v1/completions", code="not_found")
        if request.method != known:
            raise HttpError(405, f"{request.path} takes {known} alone", headers=(("Allow", known),))
        if known == "GET":
            await self._plain[request.path](exchange)
            return
        await self._complete(request, exchange)

    async def _complete(self, request: Request, exchange: Exchange) -> None:
        meter = self.decoder.meter
        meter.requests += 1
        try:
            wanted = parse(request.body, self.bounds)
        except HttpError:
            meter.refused += 1
            raise
        answer = Answer(
            request=f"cmpl-{secrets.token_hex(8)}",
            model=self.bounds.model,
            created=int(time.time()),
        )
        try:
            await (self._stream if wanted.stream else self._whole)(wanted, answer, exchange)
        except DmaplaneError as error:
            refusal = _refusal(error)
            if refusal.status == 429:
                meter.refused += 1
            else:
                meter.failed += 1
            if not exchange.begun:
                raise refusal from error
            await exchange.send(sse(refusal.body()))
            await exchange.end()
        except BaseException:
            meter.cancelled += 1
            raise

    async def _whole(self, wanted: Completion, answer: Answer, exchange: Exchange) -> None:
        kept = _Kept()
        figures = await self.decoder.complete(
            answer.request, wanted.prompt, wanted.max_tokens, kept
        )
        text = TextStream()
        shown = "".join([*map(text.add, kept.tokens), text.end()])
        await exchange.reply(
            200,
            answer.whole(
                shown,
                kept.tokens,
                prompt_tokens=len(wanted.prompt),
                figures=figures.as_json(),
            ),
        )

    async def _stream(self, wanted: Completion, answer: Answer, exchange: Exchange) -> None:
        told = _Told(exchange, answer, progress=wanted.progress)
        figures = await self.decoder.complete(
            answer.request, wanted.prompt, wanted.max_tokens, told
        )
        last = answer.event(told.text.end(), [], figures=figures.as_json())
        await exchange.send(last + DONE)
        await exchange.end()

    async def _models(self, exchange: Exchange) -> None:
        model = {"id": self.bounds.model, "object": "model", "owned_by": "dmaplane"}
        await exchange.reply(200, {"object": "list", "data": [model]})

    async def _health(self, exchange: Exchange) -> None:
        decoder = self.decoder
        found: dict[str, Any] = {
            "ready": not decoder.link.down,
            "prefill": decoder.link.settings.address,
            "down": decoder.link.down,
            "path": decoder.link.path,
            "plane": decoder.pool.plane.name,
            "engine": decoder.engine.name,
            "copied": decoder.engine.copied(),
        }
        await exchange.reply(200 if found["ready"] else 503, found)

    async def _metrics(self, exchange: Exchange) -> None:
        decoder = self.decoder
        gauges = {
            "requests_running": decoder.running,
            "requests_waiting": decoder.waiting,
            "prefill_connected": int(not decoder.link.down),
            **_blocks(decoder.pool),
        }
        await exchange.reply(200, exposition(decoder.meter, gauges), kind=EXPOSITION_KIND)

    async def _leases(self, exchange: Exchange) -> None:
        await exchange.reply(200, as_json(self.decoder.pool))


class _Kept:
    """An answer in one piece: tokens are kept until the last."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    async def layer(self, layer: int, layers: int) -> None:
        """Nobody is told."""

    async def token(self, token: int) -> None:
        """Kept."""
        self.tokens.append(token)


class _Told:
    """An answer as a stream: told as it comes."""

    def __init__(self, exchange: Exchange, answer: Answer, *, progress: bool) -> None:
        self.text = TextStream()
        self._exchange = exchange
        self._answer = answer
        self._progress = progress

    async def layer(self, layer: int, layers: int) -> None:
        """A comment, if that was asked for."""
        if self._progress:
            await self._send(b": layer %d of %d\n\n" % (layer + 1, layers))

    async def token(self, token: int) -> None:
        """An event."""
        await self._send(self._answer.event(self.text.add(token), [token]))

    async def _send(self, data: bytes) -> None:
        if not self._exchange.begun:
            await self._exchange.begin(kind="text/event-stream")
        await self._exchange.send(data)


def _refusal(error: DmaplaneError) -> HttpError:
    status, code = next((s, c) for kind, s, c in _STATUS if isinstance(error, kind))
    return HttpError(
        status, str(error), code=code, headers=_AGAIN if status in (429, 502, 503, 504) else ()
    )


class PrefillRoutes:
    """A prefill server's own door: for who watches it. It completes nothing."""

    def __init__(self, server: PrefillServer) -> None:
        self.server = server

    async def __call__(self, request: Request, exchange: Exchange) -> None:
        """Answers one request."""
        server = self.server
        if request.path not in ("/health", "/metrics", "/kv/leases"):
            raise HttpError(404, "this is a prefill server; ask the decode server")
        if request.method != "GET":
            raise HttpError(405, f"{request.path} takes GET alone", headers=(("Allow", "GET"),))
        if request.path == "/kv/leases":
            await exchange.reply(200, as_json(server.pool))
        elif request.path == "/health":
            await exchange.reply(
                200,
                {
                    "ready": True,
                    "address": server.listener.address,
                    "plane": server.pool.plane.name,
                    "engine": server.engine.name,
                },
            )
        else:
            gauges = {
                "orders": server.orders,
                "orders_failed": server.failures,
                **_blocks(server.pool),
            }
            await exchange.reply(200, exposition(None, gauges), kind=EXPOSITION_KIND)


def _blocks(pool: Pool) -> dict[str, float]:
    account = pool.account()
    return {
        "blocks_allocated": account.allocated,
        "blocks_free": account.free,
        "blocks_leased": account.leased,
        "blocks_quarantined": account.quarantined,
    }

# SPDX-License-Identifier: MIT
"""A client of a decode server: one request a connection, streams read as they come.

Invariants: what a server may send is bounded, in bytes and in time. The connection is closed when
the call is over, however it ended.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import h11

from dmaplane._errors import ProtocolError, TransferError

_READ_BYTES: Final = 1 << 16
BODY_BYTES_MAX: Final = 16 << 20
PATIENCE_S: Final = 120.0


async def fetch(host: str, port: int, path: str) -> tuple[int, bytes]:
    """GET: status and body."""
    status = 0
    body = bytearray()
    async for event in _exchange(host, port, "GET", path, b""):
        if isinstance(event, h11.Response):
            status = event.status_code
        else:
            body += event
    return status, bytes(body)


class Stream:
    """What came of one completion, in the order it came. Moments are time.monotonic()."""

    def __init__(self) -> None:
        self.sent = 0.0
        self.tokens: list[int] = []
        self.moments: list[float] = []
        self.figures: dict[str, Any] | None = None
        """The server's own, from the last event."""


async def complete(
    host: str,
    port: int,
    body: dict[str, Any],
    *,
    told: Callable[[str, int, int], None] = lambda what, done, all_: None,
) -> Stream:
    """A streamed completion. @told hears "layer" or "token", how many are there, and of how many.

    TransferError has the server's own words if it could not.
    """
    result = Stream()
    result.sent = time.monotonic()
    rest = b""
    status = 0
    data = json.dumps({**body, "stream": True, "progress": True}).encode()
    async for event in _exchange(host, port, "POST", "/v1/completions", data):
        if isinstance(event, h11.Response):
            status = event.status_code
            continue
        rest += event
        while status == 200 and b"\n\n" in rest:
            part, _, rest = rest.partition(b"\n\n")
            _take(part, result, told, body["max_tokens"])
    if status != 200:
        raise TransferError("completion", f"status {status}: {_message(rest)}")
    if result.figures is None:
        raise TransferError("completion", "the stream ended early")
    return result


def _take(part: bytes, result: Stream, told: Callable[[str, int, int], None], wanted: int) -> None:
    """One event or comment of a stream."""
    if part.startswith(b": layer "):
        numbers = part[len(b": layer ") :].split(b" of ")
        told("layer", int(numbers[0]), int(numbers[1]))
    if not part.startswith(b"data: ") or part == b"data: [DONE]":
        return
    event = json.loads(part[len(b"data: ") :])
    if "error" in event:
        raise TransferError("completion", event["error"]["message"])
    for token in event["choices"][0]["token_ids"]:
        result.tokens.append(token)
        result.moments.append(time.monotonic())
        told("token", len(result.tokens), wanted)
    result.figures = event.get("dmaplane", result.figures)


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")


async def _exchange(
    host: str, port: int, method: str, path: str, body: bytes
) -> AsyncIterator[Any]:
    """The response, then its body in pieces."""
    reader, writer = await asyncio.wait_for(asyncio.open_connection(host, port), PATIENCE_S)
    try:
        protocol = h11.Connection(h11.CLIENT)
        headers = [("Host", host), ("Content-Length", str(len(body))), ("Connection", "close")]
        for event in (
            h11.Request(method=method, target=path, headers=headers),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            writer.write(protocol.send(event) or b"")
        length = 0
        while True:
            came = protocol.next_event()
            if came is h11.NEED_DATA:
                protocol.receive_data(await asyncio.wait_for(reader.read(_READ_BYTES), PATIENCE_S))
            elif isinstance(came, h11.Response):
                yield came
            elif isinstance(came, h11.Data):
                length += len(came.data)
                if length > BODY_BYTES_MAX:
                    raise ProtocolError(f"an answer of more than {BODY_BYTES_MAX} bytes")
                yield bytes(came.data)
            elif isinstance(came, h11.EndOfMessage | h11.ConnectionClosed):
                return
    except h11.RemoteProtocolError as error:
        raise ProtocolError(f"{host}:{port} speaks no HTTP: {error}") from error
    finally:
        writer.close()

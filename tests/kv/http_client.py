# SPDX-License-Identifier: MIT
"""A client for tests of HTTP: raw bytes out, whatever comes back, and the answers in it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import Any

PATIENCE_S = 20.0


@dataclasses.dataclass(frozen=True)
class Got:
    """One answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """Of a stream of server-sent events, [DONE] as it stands."""
        parts = [part for part in self.body.split(b"\n\n") if part.startswith(b"data: ")]
        return [
            "[DONE]" if part == b"data: [DONE]" else json.loads(part[len(b"data: ") :])
            for part in parts
        ]


def post(body: bytes | dict[str, Any], path: str = "/v1/completions", extra: str = "") -> bytes:
    """The bytes of a POST."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return (
        f"POST {path} HTTP/1.1\r\nHost: here\r\nContent-Length: {len(data)}\r\n{extra}\r\n".encode()
        + data
    )


def get(path: str) -> bytes:
    """The bytes of a GET."""
    return f"GET {path} HTTP/1.1\r\nHost: here\r\n\r\n".encode()


async def talk(port: int, *requests: bytes) -> list[Got]:
    """Sends all of @requests on one connection; the answers in order."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"".join(requests))
        return [await asyncio.wait_for(answer(reader), PATIENCE_S) for _ in requests]
    finally:
        writer.close()


async def ask(port: int, request: bytes) -> Got:
    """One request, one answer."""
    return (await talk(port, request))[0]


async def answer(reader: asyncio.StreamReader) -> Got:
    """The next answer on a connection."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.split("\r\n")
    headers = {
        name.lower(): value.strip()
        for name, _, value in (line.partition(":") for line in lines if line)
    }
    if headers.get("transfer-encoding") == "chunked":
        parts = []
        while (length := int(await reader.readline(), 16)) > 0:
            parts.append(await reader.readexactly(length))
            await reader.readexactly(2)
        await reader.readexactly(2)
        body = b"".join(parts)
    else:
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Got(int(first.split()[1]), headers, body)

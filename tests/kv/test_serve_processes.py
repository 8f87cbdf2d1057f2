# SPDX-License-Identifier: MIT
"""Servers as processes, killed in the middle: the right error, the books balanced, life goes on."""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("h11", reason="missing-package: h11")

import dmaplane
from dmaplane.kv.demo._children import Child, child
from dmaplane.kv.demo._client import Stream, complete, fetch

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE_S = 30.0
# Slow enough to be caught in the middle, on any machine.
SLOW = (
    "--set", "layers=48", "--set", "hidden=128", "--set", "heads=4", "--set", "kv_heads=2",
    "--set", "head_size=32", "--set", "inner=256", "--set", "vocabulary=256", "--set", "spread=0.2",
)  # fmt: skip
PROMPT = [step % 251 for step in range(700)]


def door(server: Child) -> tuple[str, int]:
    host, _, port = server.told["http"].rpartition(":")
    return host, int(port)


def prefill(listen: str = "127.0.0.1:0") -> Any:
    return child("prefill", "--listen", listen, "--http", "127.0.0.1:0", *SLOW)


def decode(address: str) -> Any:
    return child("decode", "--prefill", address, "--http", "127.0.0.1:0", *SLOW)


async def asked(
    server: Child, prompt: list[int], told: Callable[[str, int, int], None] | None = None
) -> Stream:
    hears = told or (lambda what, done, all_: None)
    return await complete(*door(server), {"prompt": prompt, "max_tokens": 4}, told=hears)


async def account(server: Child) -> dict[str, int]:
    status, body = await fetch(*door(server), "/kv/leases")
    assert status == 200
    found: dict[str, int] = json.loads(body)["account"]
    assert found["allocated"] == found["free"] + found["leased"] + found["quarantined"]
    return found


async def until_free(server: Child) -> None:
    loop = asyncio.get_running_loop()
    until = loop.time() + PATIENCE_S
    while (found := await account(server))["free"] != found["allocated"]:
        assert loop.time() < until, found
        await asyncio.sleep(0.02)


async def until_ready(server: Child) -> None:
    loop = asyncio.get_running_loop()
    until = loop.time() + PATIENCE_S
    while (await fetch(*door(server), "/health"))[0] != 200:
        assert loop.time() < until, "it never connected again"
        await asyncio.sleep(0.02)


def test_prefill_killed_in_the_middle_of_a_transfer() -> None:
    async def whole(first: Child, server: Child) -> None:
        def told(what: str, done: int, all_: int) -> None:
            assert what == "layer", "it was not killed in time"
            if done == 2:
                first.process.kill()

        with pytest.raises(dmaplane.TransferError, match="transfer"):
            await asked(server, PROMPT, told)
        await until_free(server)
        status, _ = await fetch(*door(server), "/health")
        assert status == 503
        first.process.wait()
        with prefill(first.told["address"]):
            await until_ready(server)
            assert len((await asked(server, PROMPT[:20])).tokens) == 4
            await until_free(server)

    with prefill() as first, decode(first.told["address"]) as server:
        asyncio.run(whole(first, server))


def test_decode_killed_in_the_middle_of_a_transfer() -> None:
    async def whole(first: Child, server: Child) -> None:
        def told(what: str, done: int, all_: int) -> None:
            assert what == "layer", "it was not killed in time"
            if done == 2:
                server.process.kill()

        with pytest.raises((dmaplane.DmaplaneError, OSError)):
            await asked(server, PROMPT, told)
        await until_free(first)
        with decode(first.told["address"]) as other:
            assert len((await asked(other, PROMPT[:20])).tokens) == 4
            await until_free(first)

    with prefill() as first, decode(first.told["address"]) as server:
        asyncio.run(whole(first, server))


def private_bytes(server: Child) -> int:
    """Resident memory of its own; that of the pool is as large as it was made."""
    with open(f"/proc/{server.process.pid}/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) << 10
    raise AssertionError("no such line")


def descriptors(server: Child) -> int:
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


async def flood(host: str, port: int) -> int:
    """Sends 4 MiB that nobody wants, however it is taken; the status, or 0 if it was cut off."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n"
        )
        writer.write(b"\r\n" + (b"10000\r\n" + bytes(65536) + b"\r\n") * 64)
        return int((await asyncio.wait_for(reader.readline(), PATIENCE_S)).split()[1])
    except (OSError, IndexError):
        return 0
    finally:
        writer.transport.abort()  # nobody waits for what was never taken
        await asyncio.sleep(0)


async def until_closed(server: Child, open_before: int) -> None:
    """Until it has no more descriptors than so many."""
    loop = asyncio.get_running_loop()
    until = loop.time() + PATIENCE_S
    while descriptors(server) > open_before:
        assert loop.time() < until, "sockets stay open"
        await asyncio.sleep(0.05)


def test_what_clients_make_a_server_hold_is_bounded_and_given_back() -> None:
    async def whole(server: Child) -> None:
        await asked(server, PROMPT[:20])
        before, open_before = private_bytes(server), descriptors(server)
        for _ in range(3):
            found = await asyncio.gather(*(flood(*door(server)) for _ in range(60)))
            assert set(found) <= {0, 413}
            assert 413 in found
            await until_closed(server, open_before)  # 128 at once is the limit
        streams = await asyncio.gather(
            *(asked(server, PROMPT[: 2 + number % 40]) for number in range(50))
        )
        assert all(len(one.tokens) == 4 for one in streams)
        await until_free(server)
        await until_closed(server, open_before)
        # 60 bodies of 256 KiB are 15 MiB; all that was sent is 720 MiB.
        assert private_bytes(server) - before < 64 << 20

    with prefill() as first, decode(first.told["address"]) as server:
        asyncio.run(whole(server))

# SPDX-License-Identifier: MIT
"""HTTP: every client gets an answer with the right status or is let go, at a bounded cost."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("h11", reason="missing-package: h11")

from http_client import PATIENCE_S, answer, ask, get, post, talk

from dmaplane.kv.serve._http import Exchange, HttpError, HttpServer, Limits, Request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

SMALL = Limits(
    connections_max=4,
    head_bytes_max=4096,
    body_bytes_max=1000,
    idle_seconds=0.5,
    stall_seconds=0.3,
)


class Echo:
    """A handler: what it was asked, and what became of those who asked."""

    def __init__(self) -> None:
        self.running = 0
        self.cancelled = 0
        self.seen: list[Request] = []

    async def __call__(self, request: Request, exchange: Exchange) -> None:
        self.seen.append(request)
        self.running += 1
        try:
            if request.path == "/wait":
                await asyncio.sleep(PATIENCE_S)
            elif request.path == "/flood":
                await exchange.begin(kind="text/plain")
                while True:
                    await exchange.send(bytes(65536))
            elif request.path == "/wrong":
                raise HttpError(418, "a teapot", param="pot", code="teapot")
            elif request.path == "/broken":
                raise RuntimeError("a bug")
            elif request.path == "/late":
                await exchange.begin(kind="text/plain")
                await exchange.send(b"begun")
                raise RuntimeError("a bug behind the status")
            await exchange.reply(200, request.body or b"nothing", kind="text/plain")
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1


@contextlib.asynccontextmanager
async def serving(limits: Limits = SMALL) -> AsyncIterator[tuple[Echo, HttpServer]]:
    echo = Echo()
    async with await HttpServer.open(echo, limits=limits) as server:
        yield echo, server
    assert server.connections == 0
    assert echo.running == 0


def run(scene: Callable[[Echo, HttpServer], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        async with serving() as (echo, server):
            await asyncio.wait_for(scene(echo, server), PATIENCE_S)

    asyncio.run(whole())


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.005)


def test_requests_of_one_connection_are_answered_in_turn() -> None:
    async def scene(echo: Echo, server: HttpServer) -> None:
        got = await talk(server.port, post(b"one"), get("/"), post(b"two"))
        assert [one.body for one in got] == [b"one", b"nothing", b"two"]
        assert [one.path for one in echo.seen] == ["/v1/completions", "/", "/v1/completions"]

    run(scene)


def test_a_query_is_no_part_of_the_path() -> None:
    async def scene(echo: Echo, server: HttpServer) -> None:
        await ask(server.port, get("/here?a=b"))
        assert echo.seen[0].path == "/here"

    run(scene)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: here\r\nX: " + b"y" * 5000 + b"\r\n\r\n", 431),
        (post(b"", extra="Transfer-Encoding: gzip\r\n"), 501),
        (post(b"x" * 1001), 413),
        (
            b"POST / HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"3e9\r\n" + b"x" * 1001 + b"\r\n0\r\n\r\n",
            413,
        ),
        (b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 99999999999999\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: -1\r\n\r\n", 400),
    ],
)
def test_what_is_no_request_has_its_status_and_ends_the_connection(
    sent: bytes, status: int
) -> None:
    async def scene(echo: Echo, server: HttpServer) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(sent)
        got = await answer(reader)
        assert got.status == status
        assert got.headers["connection"] == "close"
        assert got.json["error"]["message"]
        assert await reader.read() == b""
        writer.close()
        assert not echo.seen
        assert (await ask(server.port, get("/"))).status == 200

    run(scene)


def test_a_body_of_the_longest_length_passes() -> None:
    async def scene(echo: Echo, server: HttpServer) -> None:
        assert (await ask(server.port, post(b"x" * 1000))).body == b"x" * 1000

    run(scene)


def test_an_error_of_the_handler_is_told_and_the_connection_goes_on() -> None:
    async def scene(echo: Echo, server: HttpServer) -> None:
        wrong, fine = await talk(server.port, get("/wrong"), get("/"))
        assert wrong.status == 418
        assert wrong.json["error"]["param"] == "pot"
        assert wrong.json["error"]["code"] == "teapot"
        assert fine.status == 200

    run(scene)


def test_a_bug_of_the_handler_is_a_500_and_nothing_more(caplog: pytest.LogCaptureFixture) -> None:
    async def scene(echo: Echo, server: HttpServer) -> None:
        assert (await ask(server.port, get("/broken"))).status == 500
        assert (await ask(server.port, get("/"))).status == 200

    run(scene)
    assert "a bug" in caplog.text


def test_a_bug_behind_the_status_breaks_the_answer_off(caplog: pytest.LogCaptureFixture) -> None:
    async def scene(echo: Echo, server: HttpServer) -> None:
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError, ValueError)):
            await ask(server.port, get("/late"))
        assert (await ask(server.port, get("/"))).status == 200

    run(scene)
    assert "behind the status" in caplog.text


def test_a_client_that_leaves_cancels_its_request() -> None:
    async def scene(echo: Echo, server: HttpServer) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(get("/wait"))
        await until(lambda: echo.running == 1)
        writer.close()
        await until(lambda: echo.cancelled == 1)
        await until(lambda: server.connections == 0)

    run(scene)


def test_a_client_that_never_reads_is_let_go() -> None:
    async def scene(echo: Echo, server: HttpServer) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
        writer.write(get("/flood"))
        await until(lambda: echo.running == 1)
        await until(lambda: echo.running == 0)
        await until(lambda: server.connections == 0)
        writer.close()

    run(scene)


def test_a_client_that_says_nothing_is_let_go() -> None:
    async def scene(echo: Echo, server: HttpServer) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET / HT")
        assert await reader.read() == b""
        writer.close()
        assert not echo.seen

    run(scene)


def test_one_too_many_is_told_to_come_back() -> None:
    async def scene(echo: Echo, server: HttpServer) -> None:
        waiting = []
        for count in range(SMALL.connections_max):
            waiting.append(await asyncio.open_connection("127.0.0.1", server.port))
            waiting[-1][1].write(get("/wait"))
            await until(lambda count=count: echo.running == count + 1)  # type: ignore[misc]
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        got = await answer(reader)
        assert got.status == 503
        assert got.headers["retry-after"] == "1"
        assert server.turned_away == 1
        for _, each in [*waiting, (reader, writer)]:
            each.close()
        await until(lambda: server.connections == 0)
        assert (await ask(server.port, get("/"))).status == 200

    run(scene)


def test_what_comes_ahead_of_an_answer_is_bounded_and_kept() -> None:
    async def scene(echo: Echo, server: HttpServer) -> None:
        many = 50
        got = await talk(server.port, *[post(b"x" * 1000)] * many)
        assert len(got) == many
        assert all(one.body == b"x" * 1000 for one in got)

    run(scene)


def test_close_ends_what_is_being_answered() -> None:
    async def whole() -> None:
        async with serving() as (echo, server):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(get("/wait"))
            await until(lambda: echo.running == 1)
        assert echo.cancelled == 1
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()

    asyncio.run(asyncio.wait_for(whole(), PATIENCE_S))

# SPDX-License-Identifier: MIT
"""HTTP/1.1 for a server of few routes: h11 reads and writes the protocol, asyncio the bytes.

Invariants: what a client can make this process hold is bounded by Limits (connections, head,
body, bytes not yet taken by a slow reader), and so is how long it can be held up by one. A handler
runs once a request, and is cancelled when its client has gone. An answer is begun at most once.

Who owns what: HttpServer owns the listening socket and a task per connection; a connection owns
its streams and the handler it runs. The handler owns whatever it opened for a request, and frees
it when it is cancelled.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import h11

from dmaplane._errors import ClosedError

if TYPE_CHECKING:
    from typing_extensions import Self

_READ_BYTES: Final = 1 << 16
_AHEAD_BYTES: Final = 1 << 16
"""What a client may send ahead of its answer before nobody reads it any more."""
_LINGER_S: Final = 1.0
_LOG: Final = logging.getLogger("dmaplane.kv.serve")


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """What clients may cost."""

    connections_max: int = 128
    head_bytes_max: int = 16 << 10
    body_bytes_max: int = 256 << 10
    idle_seconds: float = 30.0
    """From one answer to the whole of the next request."""
    stall_seconds: float = 10.0
    """How long a client may leave what was sent to it unread."""


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """A request that is there completely. `path` is without the query."""

    method: str
    path: str
    body: bytes


class HttpError(Exception):
    """Becomes the answer, in the form that clients of OpenAI's API know.

    `param` names the field of the request that is wrong, `code` is a word for programs.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = headers

    def body(self) -> dict[str, Any]:
        """The object of the answer."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": str(self),
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }


class GoneError(Exception):
    """The client left, or does not read what it asked for."""


class Exchange:
    """One answer: reply() at once, or begin(), send()... and end()."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self._begun = False

    @property
    def begun(self) -> bool:
        """True once the status is on its way."""
        return self._begun

    async def reply(
        self,
        status: int,
        body: bytes | dict[str, Any],
        *,
        kind: str = "application/json",
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        """The whole answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        await self._start(status, kind, (("Content-Length", str(len(data))), *headers))
        await self.send(data)
        await self.end()

    async def begin(self, *, kind: str) -> None:
        """Status 200; what follows is sent as it comes."""
        await self._start(200, kind, (("Cache-Control", "no-store"),))

    async def _start(self, status: int, kind: str, headers: tuple[tuple[str, str], ...]) -> None:
        if self._begun:
            raise ClosedError("this answer has begun already")
        self._begun = True
        fields = [("Content-Type", kind), *headers]
        if self._connection.is_last:
            fields.append(("Connection", "close"))
        await self._connection.put(h11.Response(status_code=status, headers=fields))

    async def send(self, data: bytes) -> None:
        """Part of the body; waits while the client does not read. GoneError if it never does."""
        await self._connection.put(h11.Data(data=data))

    async def end(self) -> None:
        """The end of the answer."""
        await self._connection.put(h11.EndOfMessage())


Handler = Callable[[Request, Exchange], Awaitable[None]]


class HttpServer:
    """Listens and answers. `async with await HttpServer.open(handler) as server`."""

    def __init__(self, handler: Handler, limits: Limits) -> None:
        self.handler = handler
        self.limits = limits
        self.turned_away = 0
        """Connections that found the house full."""
        self._server: asyncio.AbstractServer | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.host = ""
        self.port = 0

    @classmethod
    async def open(
        cls,
        handler: Handler,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        limits: Limits = Limits(),
    ) -> Self:
        """Listens at @host and @port; 0 is any free one, see `address`."""
        self = cls(handler, limits)
        self._server = await asyncio.start_server(
            self._came, host, port, limit=_READ_BYTES, backlog=limits.connections_max
        )
        self.host, self.port = self._server.sockets[0].getsockname()[:2]
        return self

    @property
    def address(self) -> str:
        """Where it can be reached: "host:port"."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def connections(self) -> int:
        """How many are open now."""
        return len(self._tasks)

    def _came(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(self, reader, writer)
        try:
            if len(self._tasks) > self.limits.connections_max:
                self.turned_away += 1
                await connection.turn_away()
            else:
                await connection.live()
        except (GoneError, ConnectionError, TimeoutError, asyncio.TimeoutError):
            pass  # the client's own doing; its request was cancelled
        finally:
            writer.transport.abort() if connection.is_broken else writer.close()

    async def close(self) -> None:
        """Listens no more, cancels what is being answered, and waits for it; idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class _Connection:
    """A client, for as long as it stays."""

    def __init__(
        self, server: HttpServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._server = server
        self._limits = server.limits
        self._reader = reader
        self._writer = writer
        self._protocol = h11.Connection(
            h11.SERVER, max_incomplete_event_size=server.limits.head_bytes_max
        )
        self.is_last = False
        self.is_broken = False
        """What is still to be sent will not be waited for."""
        writer.transport.set_write_buffer_limits(high=_AHEAD_BYTES)

    async def live(self) -> None:
        """Requests and answers in turn, until one side has had enough."""
        while True:
            try:
                request = await asyncio.wait_for(self._next(), self._limits.idle_seconds)
            except HttpError as refusal:
                # With its frames it would keep the body until somebody collects garbage.
                await self._refuse(refusal.with_traceback(None))
                return
            except h11.RemoteProtocolError as broken:
                broken.__traceback__ = None
                await self._refuse(HttpError(broken.error_status_hint, f"no HTTP/1.1: {broken}"))
                return
            if request is None:
                return
            await self._answer(request)
            if self.is_broken or self._protocol.our_state is not h11.DONE:
                return
            if self._protocol.their_state is not h11.DONE:
                return
            self._protocol.start_next_cycle()

    async def turn_away(self) -> None:
        """Too many at once: says so, in as few bytes as it takes."""
        await self._refuse(
            HttpError(
                503,
                f"this server answers {self._limits.connections_max} connections at once; "
                "try again",
                code="overloaded",
                headers=(("Retry-After", "1"),),
            )
        )

    async def _next(self) -> Request | None:
        """The next request, complete; None if the client has left."""
        head: h11.Request | None = None
        body = bytearray()
        while True:
            event = self._protocol.next_event()
            if event is h11.NEED_DATA:
                if self._protocol.they_are_waiting_for_100_continue:
                    await self.put(h11.InformationalResponse(status_code=100, headers=[]))
                self._protocol.receive_data(await self._reader.read(_READ_BYTES))
            elif isinstance(event, h11.Request):
                head = event
                self._check_head(event)
                for name, value in event.headers:
                    if name == b"content-length" and int(value) > self._limits.body_bytes_max:
                        raise self._too_long()
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > self._limits.body_bytes_max:
                    raise self._too_long()
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                target = head.target.decode("ascii", "replace")
                return Request(head.method.decode("ascii"), target.partition("?")[0], bytes(body))
            else:
                return None

    def _check_head(self, head: h11.Request) -> None:
        """h11 bounds what is not complete yet; a head that came in one piece it lets pass."""
        most = self._limits.head_bytes_max
        length = len(head.target) + sum(len(name) + len(value) for name, value in head.headers)
        if length > most:
            raise HttpError(431, f"the head is longer than {most} bytes", code="head_too_large")

    def _too_long(self) -> HttpError:
        most = self._limits.body_bytes_max
        return HttpError(413, f"the body is longer than {most} bytes", code="body_too_large")

    async def _answer(self, request: Request) -> None:
        """Runs the handler for as long as the client is there."""
        exchange = Exchange(self)
        loop = asyncio.get_running_loop()
        work = loop.create_task(self._handle(request, exchange))
        watch = loop.create_task(self._until_gone())
        try:
            await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise GoneError("the client has left")
            work.result()
        except BaseException:
            self.is_broken = True
            raise
        finally:
            for task in (work, watch):
                task.cancel()
            await asyncio.gather(work, watch, return_exceptions=True)

    async def _handle(self, request: Request, exchange: Exchange) -> None:
        try:
            await self._server.handler(request, exchange)
        except HttpError as refusal:
            if exchange.begun:
                raise GoneError(str(refusal)) from refusal
            await exchange.reply(refusal.status, refusal.body(), headers=refusal.headers)
        except (GoneError, ConnectionError):
            raise
        except Exception as error:
            _LOG.exception("%s %s failed", request.method, request.path)
            if exchange.begun:
                raise GoneError("the answer broke off") from error
            await exchange.reply(500, HttpError(500, f"{type(error).__name__}: {error}").body())

    async def _until_gone(self) -> None:
        """Returns when the client has left; keeps what it sends ahead, up to a bound."""
        ahead = 0
        while ahead < _AHEAD_BYTES:
            data = await self._reader.read(_READ_BYTES)
            if not data:
                return
            ahead += len(data)
            self._protocol.receive_data(data)
        await asyncio.get_running_loop().create_future()  # cancelled with the answer

    async def put(self, event: Any) -> None:
        """Sends an event of h11; GoneError if the client takes none of it for too long."""
        try:
            data = self._protocol.send(event)
        except h11.LocalProtocolError as error:
            raise GoneError(f"the connection is over: {error}") from error
        if data:
            self._writer.write(data)
        try:
            await asyncio.wait_for(self._writer.drain(), self._limits.stall_seconds)
        except (asyncio.TimeoutError, ConnectionError) as error:
            self.is_broken = True
            raise GoneError("the client does not read") from error

    async def _refuse(self, refusal: HttpError) -> None:
        """The last answer on this connection, left standing until the client may have read it."""
        self.is_last = True
        exchange = Exchange(self)
        await exchange.reply(refusal.status, refusal.body(), headers=refusal.headers)
        if self._writer.can_write_eof():
            self._writer.write_eof()
        loop = asyncio.get_running_loop()
        until = loop.time() + _LINGER_S
        while (left := until - loop.time()) > 0:
            try:
                if not await asyncio.wait_for(self._reader.read(_READ_BYTES), left):
                    return
            except asyncio.TimeoutError:
                return

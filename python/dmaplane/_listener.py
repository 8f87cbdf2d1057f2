# SPDX-License-Identifier: MIT
"""Listeners: who waits at an address for peers that connect.

The plane keeps callers at the door until accept() takes one; a caller that cannot prove
the secret, or speaks something else, is sent away, and the next one is taken. In asyncio
nothing waits in a thread: the plane tells the listener's channel that somebody is there,
and that wakes the task. The greeting itself is left to a thread of the listener's own, one for
all, because who called may be slow to answer.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import ctypes
import errno
import warnings
from typing import TYPE_CHECKING, Final

from dmaplane import _abi, _address
from dmaplane._endpoint import Endpoint
from dmaplane._errors import DmaplaneError, InvalidError, TimedOutError, error_from
from dmaplane._inbox import Inbox
from dmaplane._plane import Capability, Visit, deadline_of, slice_of
from dmaplane._scope import Scope
from dmaplane._seat import WINDOW, WINDOW_BYTES, Seat, completions_for
from dmaplane._topology import text_of

if TYPE_CHECKING:
    from typing_extensions import Self

    from dmaplane._channel import Channel
    from dmaplane._plane import Plane

_NOBODY: Final = (-errno.EAGAIN, -errno.ETIMEDOUT, -errno.EACCES, -errno.EPROTO, -errno.ECONNRESET)
"""No endpoint now, and no reason to stop: nobody came, or who came was sent away."""
_SLOTS: Final = 8
"""Of the channel a listener makes for itself: it carries events only."""


class Listener(Scope):
    """Waits for peers at `address`. Use it in a `with` block; made by `plane.listen()`."""

    def __init__(self, channel: Channel, made: _abi.Listen, *, is_private: bool) -> None:
        self.plane: Plane = channel.plane
        self.channel = channel
        self.id: int = made.listener_id
        self.address = text_of(made.bound_address)
        """Where it listens, with the port that was really taken."""
        self._is_private = is_private
        self._door = Inbox()
        self._greeting: concurrent.futures.ThreadPoolExecutor | None = None
        self._spares: list[Channel] = []  # made for an endpoint that did not come
        self._open = [True]  # popped by whoever closes it: list.pop() happens once
        channel._taker.doors[self.id] = self._door
        channel._children.add(self)

    def accept(
        self,
        *,
        window: int = WINDOW,
        window_bytes: int = WINDOW_BYTES,
        timeout: float | None = None,
        detect: float | None = None,
        channel: Channel | None = None,
    ) -> Endpoint:
        """Waits for a peer and lets it in; the arguments are those of Plane.connect()."""
        self._check()
        deadline = deadline_of(timeout)
        seat = self._seat(channel, window, window_bytes, detect)
        request = _abi.Accept(listener_id=self.id)
        try:
            last = False
            while not last:
                until, last = slice_of(deadline)
                if self._let_in(seat, request, until):
                    return Endpoint(seat, request, text_of(request.peer_address))
            raise TimedOutError(
                f"nobody connected to {self.address} in time", errno=errno.ETIMEDOUT
            )
        except BaseException:
            self._clear(seat, request)
            raise

    async def accept_async(
        self,
        *,
        window: int = WINDOW,
        window_bytes: int = WINDOW_BYTES,
        detect: float | None = None,
        channel: Channel | None = None,
    ) -> Endpoint:
        """accept() for asyncio; nothing waits in a thread until somebody has come."""
        self._check()
        loop = asyncio.get_running_loop()
        seat = self._seat(channel, window, window_bytes, detect)
        request = _abi.Accept(listener_id=self.id)
        greeting = None
        try:
            while True:
                self._check()
                bells = self._door.bells
                greeting = loop.run_in_executor(self._greeter(), self._let_in, seat, request, 1)
                if await asyncio.shield(greeting):
                    return Endpoint(seat, request, text_of(request.peer_address))
                greeting = None
                await self._bell(bells)
        except BaseException:
            if greeting is None or greeting.done():
                self._clear(seat, request)
            else:  # the thread still uses the seat

                def leave(done: asyncio.Future[bool]) -> None:
                    if not done.cancelled():
                        done.exception()  # there is nobody to raise it to
                    self._clear(seat, request)

                greeting.add_done_callback(leave)
            raise

    def _greeter(self) -> concurrent.futures.Executor:
        """Not the loop's own: that may be full of those who connect to us."""
        if self._greeting is None:
            self._greeting = concurrent.futures.ThreadPoolExecutor(1, "dmaplane-greeter")
        return self._greeting

    async def _bell(self, bells: int) -> None:
        """Returns once somebody has come since @bells was read, or it is closed."""
        self._check()  # it may have been closed while the greeting was on
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._door.futures.append(future)
        self.channel._loops.watch(loop)
        try:
            if self._door.bells == bells and self._door.refusal is None:
                await future
        finally:
            self._door.futures.remove(future)
            self.channel._loops.unwatch(loop)

    def __aiter__(self) -> Self:
        """`async for endpoint in listener`: accept_async() until it is closed."""
        return self

    async def __anext__(self) -> Endpoint:
        return await self.accept_async()

    def _seat(
        self, channel: Channel | None, window: int, window_bytes: int, detect: float | None
    ) -> Seat:
        spare = None
        if channel is None and self._spares:
            spare = self._spares.pop()
            if spare.completion_slots < completions_for(self.plane, window):
                spare.close()
                spare = None
        try:
            return Seat(self.plane, channel, window, window_bytes, detect, spare)
        except BaseException:
            if spare is not None:
                spare.close()
            raise

    def _let_in(self, seat: Seat, request: _abi.Accept, deadline_ns: int) -> bool:
        """One ACCEPT; True if there is an endpoint now."""
        self._check()
        seat.offer(request)
        request.size = ctypes.sizeof(_abi.Accept)
        request.deadline_ns = deadline_ns
        answer = -errno.EINTR
        while answer == -errno.EINTR:
            answer = self.plane.command(_abi.ACCEPT, request)
        if answer == 0:
            return True
        if answer not in _NOBODY:
            self._check()  # closed meanwhile: that is the reason
            raise error_from(answer, "ACCEPT", self.address)
        return False

    def _clear(self, seat: Seat, request: _abi.Accept) -> None:
        unused = seat.is_private and not request.endpoint_id
        keep = unused and not self.closed and not self._spares
        seat.leave(request, keep=keep)
        if keep:
            self._spares.append(seat.channel)

    @property
    def closed(self) -> bool:
        """True after close(), or once its channel or plane is closed."""
        return self._door.refusal is not None or self.channel.closed

    def _check(self) -> None:
        self._door.check()
        self.channel._check()

    def close(self) -> None:
        """Listens no more; idempotent. Endpoints it has accepted stay."""
        if self._door.refusal is not None or self.channel.closed:
            return
        with Visit(self.plane):  # the plane is not ended before this is
            try:
                self._open.pop()
            except IndexError:
                return  # another thread is closing it, or has
            self._door.end(f"the listener at {self.address} is closed")
            request = _abi.Destroy(size=ctypes.sizeof(_abi.Destroy), id=self.id)
            answer = -errno.EINTR
            while answer == -errno.EINTR:
                answer = self.plane._command(_abi.LISTENER_DESTROY, request)
            if answer == -errno.EBUSY:  # somebody is inside an accept(), for a slice of time
                request.flags = _abi.DESTROY_DRAIN
                answer = self.plane._command(_abi.LISTENER_DESTROY, request)
            if self._greeting is not None:
                self._greeting.shutdown(wait=False)
            self.channel._taker.doors.pop(self.id, None)
            self.channel._children.discard(self)
            while self._spares:
                self._spares.pop().close()
            if self._is_private:
                self.channel.close()
        if answer not in (0, -errno.ENOENT):
            raise error_from(answer, "LISTENER_DESTROY", self.address)

    def __del__(self) -> None:
        if hasattr(self, "_open") and not self.closed and not self.plane.closed:
            warnings.warn(f"{self!r} was never closed", ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        return f"<listener at {self.address}{', closed' if self.closed else ''}>"


def listen(
    plane: Plane,
    address: str,
    *,
    secret: str | bytes | None,
    require: _address.Require | None,
    encrypt: bool,
    backlog: int,
    channel: Channel | None,
) -> Listener:
    """Plane.listen()."""
    plane.require(Capability.ENDPOINT)
    if not 0 < backlog < 1 << 16:
        raise InvalidError("backlog", f"{backlog}", fix="1 .. 65535")
    if channel is not None and channel.plane is not plane:
        raise InvalidError("channel", "it belongs to another plane", fix="plane.channel()")
    request = _abi.Listen(backlog=backlog)
    _address.describe(request, address=address, secret=secret, require=require, encrypt=encrypt)
    used = channel or plane.channel(_SLOTS, completion_slots=8 * _SLOTS)
    request.channel_id = used.id
    try:
        used._check()
        try:
            plane.call("LISTEN", _abi.LISTEN, request, address)
        except DmaplaneError as failure:
            _address.refuse(failure, plane, request)
        finally:
            _address.forget_secret(request)
        return Listener(used, request, is_private=channel is None)
    except BaseException:
        if request.listener_id:
            ended = _abi.Destroy(size=ctypes.sizeof(_abi.Destroy), id=request.listener_id)
            plane.command(_abi.LISTENER_DESTROY, ended)
        if channel is None:
            used.close()
        raise

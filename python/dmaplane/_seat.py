# SPDX-License-Identifier: MIT
"""From a request to an endpoint: the seat that is made first, and CONNECT.

An endpoint can be spoken to the moment the plane has it, before Python knows its id. So what
comes for it has a place first: a seat, on a channel, with an inbox. Then the plane is asked;
an Endpoint takes the seat, or it is left again. An exception that arrives between the
plane's answer and the Endpoint (a signal handler that raises) ends the connection.
"""

from __future__ import annotations

import asyncio
import ctypes
from typing import TYPE_CHECKING, Any, Final

from dmaplane import _abi, _address
from dmaplane._endpoint import Endpoint
from dmaplane._errors import DmaplaneError, InvalidError
from dmaplane._inbox import Inbox
from dmaplane._plane import Capability, Visit, deadline_of

if TYPE_CHECKING:
    from dmaplane._channel import Channel
    from dmaplane._plane import Plane

WINDOW: Final = 64
WINDOW_BYTES: Final = 4 << 20
_SLOTS: Final = 256
"""Submissions a channel holds that an endpoint makes for itself."""


class Seat:
    """A place for one endpoint on a channel, made before it: what comes for it has where to go."""

    def __init__(
        self,
        plane: Plane,
        channel: Channel | None,
        window: int,
        window_bytes: int,
        detect: float | None,
        spare: Channel | None = None,
    ) -> None:
        plane.require(Capability.ENDPOINT)
        if not 0 < window <= plane.limits.slots_max:
            raise InvalidError("window", f"{window}", fix=f"1 .. {plane.limits.slots_max}")
        if window_bytes < 1:
            raise InvalidError("window_bytes", f"{window_bytes}", fix="at least 1")
        if detect is not None and not 0.001 <= detect <= 3600:
            raise InvalidError("detect", f"{detect}", fix="seconds, 0.001 .. 3600, or None")
        if channel is not None and channel.plane is not plane:
            raise InvalidError("channel", "it belongs to another plane", fix="plane.channel()")
        self.is_private = channel is None
        if channel is not None:
            channel._check()
        self.window = window
        self.window_bytes = window_bytes
        self.detect_ms = 0 if detect is None else int(detect * 1000)
        self.channel = channel or spare or _private_channel(plane, window)
        self.user_data = next(self.channel._endpoint_numbers)
        self.inbox = Inbox()
        self.channel._taker.inboxes[self.user_data] = self.inbox

    def offer(self, request: _abi.Connect | _abi.Accept) -> None:
        """Fills in what CONNECT and ACCEPT have in common."""
        request.channel_id = self.channel.id
        request.window_slots = self.window
        request.window_bytes = self.window_bytes
        request.detect_ms = self.detect_ms
        request.user_data = self.user_data

    def leave(self, request: _abi.Connect | _abi.Accept, *, keep: bool = False) -> None:
        """Nobody sits here; with @keep its private channel stays open for another."""
        self.channel._taker.inboxes.pop(self.user_data, None)
        if request.endpoint_id:  # an exception came right behind the answer
            ended = _abi.Destroy(size=ctypes.sizeof(_abi.Destroy), id=request.endpoint_id)
            with Visit(self.channel.plane):
                if not self.channel.plane._ended:
                    self.channel.plane._command(_abi.ENDPOINT_DESTROY, ended)
        if self.is_private and not keep:
            self.channel.close()


def _private_channel(plane: Plane, window: int) -> Channel:
    return plane.channel(_SLOTS, completion_slots=completions_for(plane, window))


def completions_for(plane: Plane, window: int) -> int:
    """Completion slots of a channel for one endpoint: its operations, and what its peer sends."""
    return min(1 << (2 * _SLOTS + window).bit_length(), plane.limits.slots_max)


def connect(
    plane: Plane,
    address: str,
    *,
    secret: str | bytes | None,
    window: int,
    window_bytes: int,
    timeout: float | None,
    require: _address.Require | None,
    encrypt: bool,
    detect: float | None,
    channel: Channel | None,
) -> Endpoint:
    """Plane.connect()."""
    request = _abi.Connect(deadline_ns=deadline_of(timeout))
    _address.describe(request, address=address, secret=secret, require=require, encrypt=encrypt)
    seat = Seat(plane, channel, window, window_bytes, detect)
    seat.offer(request)
    try:
        try:
            plane.call("CONNECT", _abi.CONNECT, request, address)
        except DmaplaneError as failure:
            _address.refuse(failure, plane, request)
        finally:
            _address.forget_secret(request)
        return Endpoint(seat, request, address)
    except BaseException:
        seat.leave(request)
        raise


async def connect_async(plane: Plane, address: str, options: dict[str, Any]) -> Endpoint:
    """Plane.connect_async(). Who is cancelled leaves no connection behind."""
    made: list[Endpoint] = []
    unwanted: list[bool] = []

    def make() -> None:
        made.append(plane.connect(address, **options))
        if unwanted:
            discard()

    def discard() -> None:
        try:
            made.pop().close()  # list.pop() happens once
        except IndexError:
            pass

    try:
        await asyncio.get_running_loop().run_in_executor(None, make)
        return made.pop()
    except asyncio.CancelledError:
        unwanted.append(True)
        discard()
        raise

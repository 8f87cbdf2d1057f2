# SPDX-License-Identifier: MIT
"""Events of the driver, and marks made of them.

An event is taken from the pool of its device, recorded, and comes back when nobody holds the
mark any more. That is safe while a stream still waits for it: such a wait is bound to what
had been recorded when it was asked for, not to the event.

Waiting is asking again and again, never a call of the driver that waits: such a call would
not come back from a kernel that never ends, nor would Ctrl-C reach who stands in it.

Who owns what. The pool owns all events and destroys them when the device closes; a mark has
one lent to it. The pool is a deque, whose ends are safe from any thread, also from the one
that happens to drop the last reference of a mark.
"""

from __future__ import annotations

import collections
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

from dmaplane._errors import DmaplaneError, InvalidError
from dmaplane.stream.cuda._driver import NOT_READY

if TYPE_CHECKING:
    from collections.abc import Callable

    from dmaplane.stream._device import Marker

UNTIMED: Final = 2
"""CU_EVENT_DISABLE_TIMING: for order only, and cheaper for the device."""
_SPIN_SECONDS: Final = 50e-6
_NAP_SECONDS: Final = 50e-6
_NAP_MAX_SECONDS: Final = 1e-3


def asked(done: Callable[[], bool], timeout: float | None) -> bool:
    """Asks @done until it says True, at most @timeout seconds; what it raises, this raises.

    Without a nap at first, then with longer and longer ones: about a sixteenth of what has
    passed, so that who waits long costs little, and learns of it little later.
    """
    if done():
        return True
    began = now = time.monotonic()
    while timeout is None or now - began < timeout:
        passed = now - began
        if passed >= _SPIN_SECONDS:
            nap = min(_NAP_MAX_SECONDS, max(_NAP_SECONDS, passed / 16))
            time.sleep(nap if timeout is None else min(nap, timeout - passed))
        if done():
            return True
        now = time.monotonic()
    return False


class Caller(Protocol):
    """The device, as far as an event needs it."""

    def call(self, name: str, *arguments: Any) -> Any:
        """A driver's call with the device's context current; raises, and notes a lost device."""

    def query(self, event: Any) -> int:
        """What cuEventQuery answers, in the same context."""

    def raise_if_lost(self) -> None:
        """The DeviceLostError of the device if it has one."""

    def failed(self, code: int, call: str) -> DmaplaneError:
        """The error for a CUresult; notes a lost device."""


class EventPool:
    """Events that are free. @timed: seconds_since() may be asked of their marks."""

    __slots__ = ("_caller", "_closed", "_flags", "_free", "_made")

    def __init__(self, caller: Caller, *, timed: bool = True) -> None:
        self._caller = caller
        self._flags = 0 if timed else UNTIMED
        self._free: collections.deque[Any] = collections.deque()
        self._made: collections.deque[Any] = collections.deque()
        self._closed = False

    def take(self) -> Any:
        """One that is free, or a new one."""
        try:
            return self._free.popleft()
        except IndexError:
            made = self._caller.call("cuEventCreate", self._flags)
            self._made.append(made)
            return made

    def give(self, event: Any) -> None:
        """It is free again."""
        if not self._closed:
            self._free.append(event)

    def close(self) -> None:
        """Destroys all of them."""
        self._closed = True
        self._free.clear()
        while self._made:
            self._caller.call("cuEventDestroy", self._made.popleft())


class CudaMarker:
    """A place in a stream: an event that is recorded there."""

    __slots__ = ("_caller", "_event", "_pool", "_reached")

    def __init__(self, caller: Caller, pool: EventPool, stream: Any) -> None:
        """Records it at the end of @stream."""
        self._caller = caller
        self._pool = pool
        self._reached = False
        self._event = pool.take()
        caller.call("cuEventRecord", self._event, stream)

    @property
    def event(self) -> Any:
        """The driver's handle; lent, it is the pool's."""
        return self._event

    def reached(self) -> bool:
        """True once all before it has ended; DeviceLostError if it never will."""
        if self._reached:
            return True
        self._caller.raise_if_lost()
        code = self._caller.query(self._event)
        if code == NOT_READY:
            return False
        if code:
            raise self._caller.failed(code, "cuEventQuery")
        self._reached = True
        return True

    def wait(self, timeout: float | None) -> bool:
        """Blocks until it is reached, at most @timeout seconds; None: as long as it takes, or
        until the device is lost."""
        return asked(self.reached, timeout)

    def seconds_since(self, earlier: Marker) -> float:
        """By the device's clock; both have to be reached, and of a pool that is timed."""
        if not isinstance(earlier, CudaMarker):
            raise InvalidError("earlier", "it is not a mark of a cuda lane", fix="one of those")
        return float(self._caller.call("cuEventElapsedTime", earlier._event, self._event)) / 1e3

    def __del__(self) -> None:
        event = getattr(self, "_event", None)
        if event is not None:
            self._pool.give(event)


def foreign_stream(what: Any) -> int | None:
    """The handle of a caller's stream: `__cuda_stream__()`, or torch's `cuda_stream`; or None."""
    protocol = getattr(what, "__cuda_stream__", None)
    if protocol is not None:
        told = protocol() if callable(protocol) else protocol
        if not isinstance(told, tuple) or len(told) != 2 or told[0] != 0:
            raise InvalidError(
                "stream", f"__cuda_stream__ gave {told!r}", fix="(0, handle), version 0"
            )
        return int(told[1])
    handle = getattr(what, "cuda_stream", None)
    return None if handle is None else int(handle)


def foreign_event(what: Any) -> int | None:
    """The handle of a caller's event (torch's `cuda_event`, cuda.core's `handle`); or None."""
    for name in ("cuda_event", "handle"):
        handle = getattr(what, name, None)
        if handle is not None:
            return int(handle)
    return None

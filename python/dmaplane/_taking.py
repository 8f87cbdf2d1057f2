# SPDX-License-Identifier: MIT
"""Taking completions from a ring, and handing them to whom they belong.

Invariants
 - One thread takes at a time (_turn). It hands what it takes to all who wait; who
   waits and is not taking is woken by who is.
 - Taking is restartable. An exception can arrive between any two steps (a signal
   handler that raises), so completions are popped into the rings' `popped`, which stays
   valid until _taken, the number handed out, has caught up with the ring's own head.
   Handing out twice is harmless: operations are found by number and leave their
   table once, rows and what came for an endpoint are kept under the position they were
   popped at.

Who owns what. The taker owns the turn and the tables of operations in flight and of the
inboxes that events go to; the rings and the kept rows are the channel's, the inboxes those of
endpoints and listeners, and it only uses them. It knows no channel, so
dropping one is not delayed by a cycle.
"""

from __future__ import annotations

import errno
import math
import struct
import threading
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from dmaplane import _abi
from dmaplane._completion import ENTRY, Completion, Event, event_of
from dmaplane._errors import ClosedError, TimedOutError, error_from
from dmaplane._operation import OPERATION_BIT, Operation, wake
from dmaplane._plane import Capability
from dmaplane._rings import NO_DEADLINE

if TYPE_CHECKING:
    import numpy.typing as npt

    from dmaplane._endpoint import Endpoint
    from dmaplane._inbox import Inbox
    from dmaplane._rings import Rings
    from dmaplane._rows import KeptRows
    from dmaplane._watch import Watch

NOTHING: Final = (-errno.EINTR, -errno.ETIMEDOUT, -errno.EAGAIN)
"""Answers of an exchange that moved nothing and is worth another."""
_tuple_of: Final = tuple.__new__  # what Completion._make does, less a look at the length
_unpack: Final = ENTRY.unpack_from
_unpack_pair: Final = struct.Struct("<QiBBHQIIQiBBHQII").unpack_from
_TURN: Final = 0
_FOLLOW_S: Final = 0.05
_OPERATION_BIT: Final = np.uint64(OPERATION_BIT)
_EVENTFUL: Final = Capability.REVOKE | Capability.ENDPOINT
_OF_ENDPOINTS: Final = (_abi.EVENT_WRITE_IMM, _abi.EVENT_ENDPOINT_LOST)
_ENTRY_BYTES: Final = ENTRY.size
ENDPOINT_BIT: Final = 1 << 62
"""Of the user_data of endpoints made here: what still comes for a closed one is dropped."""
_FEW: Final = 16
"""Up to so many completions are handed out one by one, which is cheaper than an array."""


class Awaited(Protocol):
    """What a thread waits for while another one takes: an operation, an inbox."""

    def settled(self) -> bool:
        """True if there is no need to wait any longer."""


class Taker:
    """The consumer of one completion ring."""

    def __init__(self, rings: Rings, rows: KeptRows) -> None:
        self.operations: dict[int, Operation] = {}
        self.inboxes: dict[int, Inbox] = {}
        """Of endpoints, by their user_data."""
        self.doors: dict[int, Inbox] = {}
        """Of listeners, by their id."""
        self.events: dict[int, Event] = {}
        """Under the ring position each was popped at, until somebody asks for them."""
        self._has_events = bool(rings.plane.capabilities & _EVENTFUL)
        self._rings = rings
        self._rows = rows
        self._control = rings.control
        self._pop_into = rings.pop
        self._bytes = rings.popped.view(np.uint8).data
        self._turn = {_TURN: True}
        self._popped_from = 0
        self._taken = 0
        self._until = type(NO_DEADLINE)()
        self._news = threading.Condition()
        self._followers = 0
        self.watches: list[Watch] = []
        """Rung whenever something was handed out."""

    def take_now(self) -> int:
        """Takes what is there, without waiting; how many. 0 if another thread is taking."""
        return self.take(0, 1) if self._rings.refusal is None and _TURN in self._turn else 0

    def take(self, wait_count: int, deadline: int, awaited: Awaited | None = None) -> int:
        """Waits for completions, or for another thread that is taking them to do so.

        Whoever removes _TURN from _turn is the one who takes. That a signal handler may
        raise after any call is why this is no lock: between `del`, the store that follows
        it, and the `finally` there is no call, so the turn cannot get lost.
        """
        mine = False
        try:
            try:
                del self._turn[_TURN]
                mine = True
            except KeyError:
                self._follow(deadline, awaited)
                return 0
            return self._pop(wait_count, deadline)
        finally:
            if mine:
                self._turn[_TURN] = True
                if self._followers:
                    with self._news:
                        self._news.notify_all()

    def push_and_take(
        self, operation: tuple[Endpoint, int], wait_count: int, deadline: int
    ) -> Completion | Operation | int:
        """Pushes the rings' row and waits for completions, in one call of the plane.

        By who holds the push lock, and so for a short time only. @operation: the endpoint and
        number of the row. What comes, if nothing else does, is its completion and then an
        immediate of the same peer: that is given, and nothing had to be kept anywhere.
        Else the operation, or the errno of a row that was not pushed.
        """
        endpoint, number = operation
        rings = self._rings
        mine = False
        try:
            try:
                del self._turn[_TURN]
                mine = True
            except KeyError:
                self.operations[number] = started = Operation(endpoint.channel, number, endpoint)
                answer = rings.push_row()
                if answer >= 0:
                    return started
                del self.operations[number]
                return answer
            if self._control.complete_head != self._taken:
                self._hand_out()
            self._popped_from = self._taken
            self._until.value = deadline
            answer = rings.push_row_and_pop(wait_count, self._until)
            if answer == 2:
                pair = _unpack_pair(self._bytes)
                if (
                    pair[0] == number
                    and not pair[1]
                    and pair[12] & _abi.COMPLETE_EVENT
                    and pair[10] == _abi.EVENT_WRITE_IMM
                    and pair[8] == endpoint.user_data
                    and not endpoint._inbox.parts
                ):
                    arrived = _tuple_of(Completion, pair[8:])
                    self._taken = (self._taken + 2) & 0xFFFFFFFF
                    return arrived
            if rings.row_pushed.value:
                # Nobody else can have taken its completion: it is our turn.
                self.operations[number] = started = Operation(endpoint.channel, number, endpoint)
            if answer > 0:
                self._hand_out()
            return started if rings.row_pushed.value else min(answer, 0) or -errno.EAGAIN
        finally:
            if mine:
                self._turn[_TURN] = True
                if self._followers:
                    with self._news:
                        self._news.notify_all()

    def _follow(self, deadline: int, awaited: Awaited | None) -> None:
        """Another thread is taking: waits until it has handed something out, or stops."""
        with self._news:
            self._followers += 1
            try:
                # Looked at once counted, so that who takes now cannot miss us. Who was
                # interrupted may not have said so: hence the limit.
                if _TURN not in self._turn and not (awaited and awaited.settled()):
                    self._news.wait(min(_FOLLOW_S, _remaining(deadline)))
            finally:
                self._followers -= 1

    def _pop(self, wait_count: int, deadline: int) -> int:
        """One exchange, by whose turn it is. How many completions were handed out."""
        rings = self._rings
        if rings.refusal is not None:
            raise ClosedError(rings.refusal)
        if self._control.complete_head != self._taken:
            return self._hand_out()  # an exception came between popping and handing out
        self._popped_from = self._taken
        if deadline:
            self._until.value = deadline
            answer = self._pop_into(wait_count, self._until)
        else:
            answer = self._pop_into(wait_count, NO_DEADLINE)
        if answer > 0:
            return self._hand_out()
        if answer == 0 or answer in NOTHING:
            return 0
        raise error_from(answer, "ENTER", f"channel {rings.channel_id}")

    def _hand_out(self) -> int:
        """Gives popped completions to whom they belong. May be entered again after a raise."""
        head = self._control.complete_head
        count = (head - self._taken) & 0xFFFFFFFF
        first = (self._taken - self._popped_from) & 0xFFFFFFFF
        rows = self._rows
        if rows.taken == rows.pushed and (count <= _FEW or not self._has_events):
            while self._taken != head:
                fields = _unpack(self._bytes, first * _ENTRY_BYTES)
                if fields[4] & _abi.COMPLETE_EVENT:
                    start = first * _ENTRY_BYTES
                    self._tell(fields, self._bytes[start : start + _ENTRY_BYTES])
                else:
                    self.finish(fields)
                self._taken = (self._taken + 1) & 0xFFFFFFFF
                first += 1
        else:
            # Bytes are copied as bytes: numpy copies structured entries field by field.
            copied = bytearray(self._bytes[first * _ENTRY_BYTES : (first + count) * _ENTRY_BYTES])
            popped = np.frombuffer(copied, dtype=_abi.COMPLETION)
            if self._has_events:
                popped, copied = self._without_events(popped, copied, head)
            if self.operations:
                ours = popped["user_data"] >= _OPERATION_BIT
                for entry in np.flatnonzero(ours).tolist():
                    self.finish(_unpack(copied, entry * _ENTRY_BYTES))
                popped = popped[~ours]
            more = len(popped)
            with rows.lock:
                # Plain stores in a row: no signal handler runs between them.
                if more:
                    rows.parts[self._taken] = popped
                    rows.taken += more
                self._taken = head
        if self._followers:
            with self._news:
                self._news.notify_all()
        for watch in self.watches:
            watch.ring()
        return count

    def finish(self, fields: tuple[Any, ...]) -> None:
        """Completes the operation that these fields of a completion are about."""
        user_data = fields[0]
        operation = self.operations.get(user_data)
        if operation is not None:
            operation._completion = _tuple_of(Completion, fields)
            if operation._futures:
                for future in operation._futures:
                    future.get_loop().call_soon_threadsafe(wake, future)
            del self.operations[user_data]  # last: a raise before it means once more

    def _tell(self, fields: tuple[Any, ...], entry: memoryview) -> None:
        """Puts an event where it belongs: the entry at the position handed out next."""
        kind = fields[2]
        if kind == _abi.EVENT_WRITE_IMM:
            inbox = self.inboxes.get(fields[0])
            if inbox is not None:
                inbox.put(bytes(entry), self._taken, (self._taken + 1) & 0xFFFFFFFF)
                return
        self._note(fields, self._taken)

    def _note(self, fields: tuple[Any, ...], position: int) -> None:
        """Tells an endpoint that it is lost, a listener that somebody is there; else keeps it."""
        inbox = None
        if fields[2] == _abi.EVENT_ENDPOINT_LOST:
            inbox = self.inboxes.get(fields[0])
            if inbox is not None:
                inbox.lost = (fields[1], fields[3])
        elif fields[2] == _abi.EVENT_CONNECTION:
            inbox = self.doors.get(fields[0])
            if inbox is not None:
                inbox.bells += 1
        if inbox is not None:
            inbox.wake()
        elif not (fields[0] & ENDPOINT_BIT and fields[2] in _OF_ENDPOINTS):
            self.events[position] = event_of(fields)

    def _without_events(
        self, popped: npt.NDArray[np.void], copied: bytearray, head: int
    ) -> tuple[npt.NDArray[np.void], bytearray]:
        """Hands out the events; what is left, and the same as bytes."""
        told = (popped["flags"] & _abi.COMPLETE_EVENT) != 0
        if not told.any():
            return popped, copied
        arrived = told & (popped["operation"] == _abi.EVENT_WRITE_IMM)
        if arrived.any():
            self._deliver(popped, copied, arrived, head)
        for entry in np.flatnonzero(told & ~arrived).tolist():
            fields = _unpack(copied, entry * _ENTRY_BYTES)
            self._note(fields, (self._taken + entry) & 0xFFFFFFFF)
        if told.all():
            return popped[:0], bytearray()
        left = bytearray(_selected(popped, ~told))
        return np.frombuffer(left, dtype=_abi.COMPLETION), left

    def _deliver(
        self,
        popped: npt.NDArray[np.void],
        copied: bytearray,
        arrived: npt.NDArray[np.bool_],
        head: int,
    ) -> None:
        """Immediates that came together, each to its endpoint."""
        whose = popped["user_data"]
        first = int(whose[arrived.argmax()])
        if arrived.all() and first in self.inboxes and (whose == np.uint64(first)).all():
            self.inboxes[first].put(memoryview(copied), self._taken, head)
            return
        for user_data in np.unique(whose[arrived]).tolist():
            mine = arrived & (whose == np.uint64(user_data))
            inbox = self.inboxes.get(user_data)
            if inbox is not None:
                inbox.put(_selected(popped, mine), self._taken, head)
            elif not user_data & ENDPOINT_BIT:
                for entry in np.flatnonzero(mine).tolist():
                    fields = _unpack(copied, entry * _ENTRY_BYTES)
                    self._note(fields, (self._taken + entry) & 0xFFFFFFFF)

    def give_events(self) -> tuple[Event, ...]:
        """Those kept, in the order they came; not kept any more."""
        given = []
        for position in list(self.events):
            event = self.events.pop(position, None)
            if event is not None:  # else another thread was given it
                given.append(event)
        return tuple(given)

    def leave(self) -> None:
        """Waits until nobody is taking; the rings refuse already, so nobody starts to."""
        while _TURN not in self._turn:
            self._follow(0, None)

    def wait_for(self, operation: Operation, deadline: int) -> Completion:
        """Takes, or lets another thread take, until @operation has completed."""
        while (completion := operation._completion) is None:
            try:
                self.take(1, deadline, operation)
            except ClosedError:
                if operation._completion is None:
                    raise
            if operation._completion is None and deadline and time.monotonic_ns() >= deadline:
                raise TimedOutError(
                    f"{operation!r} of channel {self._rings.channel_id} has not completed yet; "
                    "it goes on: wait again, or cancel() it",
                    errno=errno.ETIMEDOUT,
                )
        return completion


def _remaining(deadline_ns: int) -> float:
    return max(0.0, (deadline_ns - time.monotonic_ns()) / 1e9) if deadline_ns else math.inf


def _selected(entries: npt.NDArray[np.void], mask: npt.NDArray[np.bool_]) -> bytes:
    """The bytes of those entries; numpy would copy them field by field."""
    return entries.view(np.uint64).reshape(-1, _ENTRY_BYTES // 8)[mask].tobytes()

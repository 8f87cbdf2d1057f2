# SPDX-License-Identifier: MIT
"""Channels: a submission ring, a completion ring, and a worker behind them.

Two ways to use one, freely mixed on the same channel:

  operations  ch.copy(dst, src) gives an Operation: wait() for it, or await it.
  rows        ch.submit(rows) takes a numpy array of SUBMISSION and gives one of
              COMPLETION; no Python runs per element.

user_data tells them apart: its highest bit belongs to operations.

A channel may carry endpoints and listeners. What a peer or the plane says by itself comes
through the same ring, and is handed to the endpoint it is about.

One thread pushes at a time, one takes completions at a time; the two do not exclude each
other.

Who owns what. The channel owns its rings (_rings.py), the taker of completions
(_taking.py), the completions of rows kept for a caller (_rows.py) and the event loops that
watch it (_loops.py). It numbers operations and counts rows; they know no channel. It is the
parent of its endpoints and listeners, which hold it; close() ends them first.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import time
import warnings
import weakref
from typing import TYPE_CHECKING, Final

import numpy as np

from dmaplane import _abi, _operands
from dmaplane._errors import (
    ClosedError,
    InvalidError,
    TimedOutError,
    WouldBlock,
    error_from,
)
from dmaplane._loops import Loops
from dmaplane._operation import OPERATION_BIT, Operation
from dmaplane._plane import Capability, Visit, deadline_of
from dmaplane._rings import ROW, WRITE_ROW, Rings
from dmaplane._rows import KeptRows, checked
from dmaplane._scope import Scope
from dmaplane._statistics import Histogram, Statistics, read_histogram, read_statistics
from dmaplane._taking import ENDPOINT_BIT, NOTHING, Taker

if TYPE_CHECKING:
    import numpy.typing as npt

    from dmaplane._buffer import Buffer, BufferRange
    from dmaplane._completion import Completion, Event
    from dmaplane._endpoint import Endpoint
    from dmaplane._listener import Listener
    from dmaplane._plane import Plane

_LINGER_NS: Final = 300_000
"""Who submits and waits in one call keeps other threads from submitting for so long."""
_LEAVE_NS: Final = 200_000_000
"""close() waits so long for what it cancelled; a peer that is silent does not hold it up."""


class Channel(Scope):
    """A pair of rings and a worker. Use it in a `with` block; made by `plane.channel()`."""

    def __init__(self, plane: Plane, made: _abi.ChannelCreate, eventfd: int) -> None:
        self.plane = plane
        self._rings = Rings(plane, made)
        self.id: int = made.channel_id
        self.slots = self._rings.slots
        self.completion_slots = self._rings.completion_slots
        self._numbers = itertools.count(OPERATION_BIT)
        self._endpoint_numbers = itertools.count(ENDPOINT_BIT)
        self._children: weakref.WeakSet[Endpoint | Listener] = weakref.WeakSet()
        self._leaving: list[Endpoint] = []  # closed with something in flight
        self._rows = KeptRows()
        self._taker = Taker(self._rings, self._rows)
        self._operations = self._taker.operations
        self._loops = Loops(self._rings, self._taker, eventfd)
        self._open = [True]  # popped by whoever closes it: list.pop() happens once
        plane._channels[self.id] = self
        plane._eventfds[self.id] = eventfd

    # Submitting one.

    def nop(
        self, *, link: bool = False, timeout: float | None = None, nowait: bool = False
    ) -> Operation:
        """Does nothing, in order; measures what a submission costs."""
        return self._start(_abi.OP_NOP, _abi.SUBMIT_LINK if link else 0, timeout, nowait)

    def fence(
        self, *, link: bool = False, timeout: float | None = None, nowait: bool = False
    ) -> Operation:
        """Completes when all before it have; nothing after it starts earlier."""
        return self._start(_abi.OP_FENCE, _abi.SUBMIT_LINK if link else 0, timeout, nowait)

    def copy(
        self,
        dst: Buffer | BufferRange,
        src: Buffer | BufferRange,
        *,
        link: bool = False,
        checksum: bool = False,
        verify: int | None = None,
        timeout: float | None = None,
        nowait: bool = False,
    ) -> Operation:
        """Copies @src to @dst, which are of one length and do not overlap.

        @link: the next submission starts only if this one succeeds. @checksum: CRC32C of
        the bytes, computed inside the copy, in Completion.checksum. @verify: and it must be
        this value, else ChecksumError. @timeout: seconds from now by which it has completed,
        with TimedOutError if need be. @nowait: WouldBlock instead of waiting for a slot.
        """
        flags, operands = _operands.of_copy(
            self.plane, dst, src, link=link, checksum=checksum, verify=verify
        )
        return self._start(_abi.OP_COPY, flags, timeout, nowait, operands)

    def fill(
        self,
        dst: Buffer | BufferRange,
        pattern: int = 0,
        *,
        link: bool = False,
        checksum: bool = False,
        verify: int | None = None,
        timeout: float | None = None,
        nowait: bool = False,
    ) -> Operation:
        """Fills @dst with a 32-bit @pattern; start and length are multiples of 4 bytes."""
        flags, operands = _operands.of_fill(
            self.plane, dst, pattern, link=link, checksum=checksum, verify=verify
        )
        return self._start(_abi.OP_FILL, flags, timeout, nowait, operands)

    def _start(
        self,
        operation: int,
        flags: int,
        timeout: float | None,
        nowait: bool,
        operands: bytes = _operands.NONE,
        endpoint: Endpoint | None = None,
    ) -> Operation:
        deadline = deadline_of(timeout) if timeout is not None else 0
        user_data = next(self._numbers)
        started = Operation(self, user_data, endpoint)
        endpoint_id = 0 if endpoint is None else endpoint.id
        rings, operations = self._rings, self._operations
        while True:
            with rings.push_lock:
                if rings.refusal is not None:
                    raise ClosedError(rings.refusal)
                ROW.pack_into(
                    rings.row,
                    0,
                    operation,
                    flags,
                    endpoint_id,
                    user_data,
                    deadline,
                    operands,
                    0,
                    0,
                )
                operations[user_data] = started
                try:
                    answer = rings.push_row()
                except BaseException:  # of a signal handler
                    if not rings.row_pushed.value:
                        operations.pop(user_data, None)
                    raise
                if answer >= 0:
                    return started
                del operations[user_data]
            if answer not in NOTHING:
                raise error_from(answer, "ENTER", f"channel {self.id}")
            self._make_room(deadline, nowait)

    def _exchange(
        self, endpoint: Endpoint, operands: bytes, imm: int, deadline: int
    ) -> Completion | Operation:
        """Submits a WRITE_IMM and lingers for what comes back.

        The peer's next immediate, if that came and the write succeeded; else the operation.
        """
        rings, taker = self._rings, self._taker
        number = next(self._numbers)
        while True:
            with rings.push_lock:
                if rings.refusal is not None:
                    raise ClosedError(rings.refusal)
                WRITE_ROW.pack_into(
                    rings.row,
                    0,
                    _abi.OP_WRITE_IMM,
                    0,
                    endpoint.id,
                    number,
                    deadline,
                    operands,
                    imm,
                    0,
                    0,
                    0,
                )
                until = time.monotonic_ns() + _LINGER_NS
                answer = taker.push_and_take((endpoint, number), 2, until)
            if not isinstance(answer, int):
                return answer
            if answer not in NOTHING:
                raise error_from(answer, "ENTER", f"channel {self.id}")
            self._make_room(deadline, nowait=False)

    def _make_room(self, deadline: int, nowait: bool) -> None:
        """Takes completions, so that a slot gets free; waits for one unless @nowait."""
        if self._taker.take_now():
            return
        if nowait:
            raise WouldBlock(
                f"all {self.slots} slots of channel {self.id} are taken; "
                "wait for a completion, or create the channel with more slots",
                errno=errno.EAGAIN,
            )
        if not self._taker.take(1, deadline) and deadline and time.monotonic_ns() >= deadline:
            raise TimedOutError(f"no slot of channel {self.id} got free", errno=errno.ETIMEDOUT)

    # Rows: many at once.

    def push_nowait(self, rows: npt.NDArray[np.void]) -> int:
        """Submits as many of @rows as there is room for, in order; how many.

        WouldBlock if there is room for none. Their completions come from completions().
        """
        accepted = self._push_rows(checked(rows))
        if not accepted and len(rows):
            self._taker.take_now()
            accepted = self._push_rows(rows)
            if not accepted:
                raise WouldBlock(
                    f"all {self.slots} slots of channel {self.id} are taken; take completions",
                    errno=errno.EAGAIN,
                )
        return accepted

    def push(self, rows: npt.NDArray[np.void], *, timeout: float | None = None) -> None:
        """Submits all of @rows, in order, waiting for room as needed.

        What completes meanwhile is kept for completions(). TimedOutError says how many
        went in.
        """
        rows = checked(rows)
        deadline = deadline_of(timeout)
        done = self._push_rows(rows)
        while done < len(rows):
            try:
                self._make_room(deadline, nowait=False)
            except TimedOutError:
                raise TimedOutError(
                    f"{done} of {len(rows)} rows were accepted before the time passed",
                    errno=errno.ETIMEDOUT,
                ) from None
            done += self._push_rows(rows[done:])

    def _push_rows(self, rows: npt.NDArray[np.void]) -> int:
        rings = self._rings
        with rings.push_lock:
            rings.check()
            count = len(rows)
            if not count:
                return 0
            self._rows.pushed += count
            rings.pushed.value = 0
            try:
                answer = rings.push(rows)
            finally:
                self._rows.pushed -= count - rings.pushed.value
            if answer < 0 and answer not in NOTHING:
                raise error_from(answer, "ENTER", f"channel {self.id}")
            return rings.pushed.value

    def completions(
        self, limit: int | None = None, *, wait: int = 0, timeout: float | None = None
    ) -> npt.NDArray[np.void]:
        """Completions of rows, at most @limit, in the order they came.

        Does not block, unless @wait completions are asked for; then TimedOutError after
        @timeout seconds, with what has come kept for the next call.
        """
        in_flight = self._rows.to_come
        if wait > in_flight:
            raise InvalidError("wait", f"{wait} rows", fix=f"{in_flight} can still come")
        deadline = deadline_of(timeout)
        if not wait:
            self._taker.take_now()
        while (kept := len(self._rows)) < wait:
            self._taker.take(1 if self._operations else wait - kept, deadline)
            if len(self._rows) < wait and deadline and time.monotonic_ns() >= deadline:
                raise TimedOutError(
                    f"{len(self._rows)} of {wait} completions came in time; "
                    "they are kept for the next call",
                    errno=errno.ETIMEDOUT,
                )
        return self._rows.give(limit)

    def submit(
        self,
        rows: npt.NDArray[np.void],
        *,
        wait: int | None = None,
        timeout: float | None = None,
    ) -> npt.NDArray[np.void]:
        """Submits all of @rows with one ENTER where they fit, and gives completions.

        @wait: return when so many have come; by default all of the rows in flight, those
        of an earlier push() included. A failed row is a completion with a negative
        `result`, not an exception. InvalidError names the first row that is malformed.
        """
        deadline = deadline_of(timeout)
        self.push(rows, timeout=timeout)
        in_flight = self._rows.to_come
        left = None if not deadline else max(0.0, (deadline - time.monotonic_ns()) / 1e9)
        return self.completions(wait=in_flight if wait is None else wait, timeout=left)

    def events(self) -> tuple[Event, ...]:
        """What the plane told this channel by itself since the last call; does not block.

        "buffer_revoked": the memory of that buffer was taken away from outside; every
        channel of the plane is told once. What is about an endpoint or a listener is given
        to that, not here. plane.wait() returns for events too.
        """
        self._check()
        self._taker.take_now()
        return self._taker.give_events()

    # Cancelling.

    def cancel(
        self,
        user_data: int | None = None,
        *,
        everything: bool = False,
        timeout: float | None = None,
    ) -> int:
        """Cancels rows by their @user_data, or everything; a fence (L5).

        How many were stopped by this; others finished by themselves. Each still has its
        completion. NotFoundError if none was in flight.
        """
        if (user_data is None) != everything:
            raise InvalidError(
                "user_data, everything", "one of them", fix="a number, or everything=True"
            )
        flags = _abi.CANCEL_ALL if everything else 0
        return self._cancel(flags, user_data or 0, timeout)

    def _cancel(self, flags: int, user_data: int, timeout: float | None) -> int:
        self._check()
        request = _abi.Cancel(
            flags=flags,
            channel_id=self.id,
            user_data=user_data,
            deadline_ns=deadline_of(timeout),
        )
        self.plane.call("CANCEL", _abi.CANCEL, request)
        return int(request.cancelled)

    # Looking at it, and ending it.

    @property
    def in_flight(self) -> int:
        """Operations and rows submitted whose completion was not taken yet."""
        return len(self._operations) + self._rows.pushed - self._rows.taken

    def statistics(self) -> Statistics:
        """Counters of this channel; one command."""
        self._check()
        return read_statistics(self.plane, _abi.SCOPE_CHANNEL, self.id)

    def histogram(self) -> Histogram:
        """Nanoseconds from acceptance to completion; 18 commands."""
        self._check()
        return read_histogram(self.plane, _abi.SCOPE_CHANNEL, self.id, _abi.HISTOGRAM_LATENCY)

    @property
    def closed(self) -> bool:
        """True after close(), or once the plane is closed."""
        return self._rings.refusal is not None

    def _check(self) -> None:
        self._rings.check()

    def _forked(self) -> None:
        self._rings.refusal = (
            "this channel belongs to the process that made it; a forked child opens its own plane"
        )

    def close(self, *, drain: bool = False, timeout: float | None = None) -> None:
        """Ends it; idempotent. What is in flight is cancelled, or with @drain finished first.

        Operations still waited for complete: nobody is left hanging.
        """
        if self._rings.refusal is not None:
            return
        deadline = deadline_of(timeout)
        while drain and self.in_flight:
            if not self._taker.take(1, deadline) and deadline and time.monotonic_ns() >= deadline:
                raise TimedOutError(
                    f"{self.in_flight} still in flight on channel {self.id}",
                    errno=errno.ETIMEDOUT,
                )
        with Visit(self.plane):  # the plane is not ended before this is
            try:
                self._open.pop()
            except IndexError:
                return  # another thread is closing it, or has
            for child in list(self._children):
                child.close()
            everything = _abi.Cancel(
                size=ctypes.sizeof(_abi.Cancel),
                flags=_abi.CANCEL_ALL,
                channel_id=self.id,
                deadline_ns=time.monotonic_ns() + _LEAVE_NS,
            )
            self.plane._command(_abi.CANCEL, everything)  # ENOENT: nothing was in flight
            while self._taker.take_now():
                pass
            self._rings.refusal = f"channel {self.id} is closed"
            with self._rings.push_lock:
                pass  # nobody is pushing from here on, and nobody starts to
            self._taker.leave()
            self._end()

    def _end(self) -> None:
        """Gives everything back; nobody is inside the rings any more."""
        request = _abi.Destroy(size=ctypes.sizeof(_abi.Destroy), id=self.id)
        answer = self._rings.unmap()
        answer = self.plane._command(_abi.CHANNEL_DESTROY, request) or answer
        for endpoint in self._leaving:  # nothing is in flight any more
            endpoint._finish()
        for user_data in list(self._operations):  # what came after the cancel
            self._taker.finish((user_data, -errno.ECANCELED, 0, 0, 0, 0, 0, 0))
        if self._loops.end():  # else it is closed with the plane: a loop still knows its number
            fd = self.plane._eventfds.pop(self.id, -1)
            if fd >= 0:
                os.close(fd)
        if answer:
            raise error_from(answer, "CHANNEL_DESTROY", f"channel {self.id}")

    def __del__(self) -> None:
        if hasattr(self, "_open") and not self.closed and not self.plane.closed:
            warnings.warn(f"{self!r} was never closed", ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.in_flight} in flight"
        return f"<channel {self.id}, {self.slots} slots, {state}>"


def create(
    plane: Plane,
    *,
    slots: int,
    completion_slots: int | None,
    cpu: int | None,
    node: int | None,
    workers: int,
    spin_us: int | None,
) -> Channel:
    """Plane.channel()."""
    slots_max = plane.limits.slots_max
    for field, count in (("slots", slots), ("completion_slots", completion_slots or slots)):
        if count <= 0 or count & (count - 1) or count > slots_max:
            raise InvalidError(field, f"{count}", fix=f"a power of two, 1 .. {slots_max}")
    if completion_slots is not None and completion_slots < slots:
        raise InvalidError("completion_slots", f"{completion_slots}", fix=f"at least {slots}")
    if cpu is not None and node is not None:
        raise InvalidError("cpu, node", "both are given", fix="one of them")
    if workers < 1:
        raise InvalidError("workers", f"{workers}", fix="at least 1")
    if spin_us is not None and not 0 <= spin_us <= 1_000_000:
        raise InvalidError("spin_us", f"{spin_us}", fix="0 .. 1000000 microseconds")
    for field, number in (("cpu", cpu), ("node", node)):
        if number is not None and number < 0:
            raise InvalidError(field, f"{number}", fix="a number of plane.topology(), or None")
    if cpu is not None or node is not None:
        plane.require(Capability.BIND)
    eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        request = _abi.ChannelCreate(
            flags=_abi.CHANNEL_EVENTFD
            | (_abi.CHANNEL_BIND_CPU if cpu is not None else 0)
            | (_abi.CHANNEL_BIND_NODE if node is not None else 0)
            | (_abi.CHANNEL_SPIN if spin_us is not None else 0),
            slots=slots,
            completion_slots=completion_slots or 0,
            workers=workers,
            spin_us=spin_us or 0,
            cpu=cpu or 0,
            node=node or 0,
            eventfd=eventfd,
        )
        with Visit(plane):
            plane.call("CHANNEL_CREATE", _abi.CHANNEL_CREATE, request)
            try:
                channel = Channel(plane, request, eventfd)
            except BaseException:
                ended = _abi.Destroy(size=ctypes.sizeof(_abi.Destroy), id=request.channel_id)
                plane._command(_abi.CHANNEL_DESTROY, ended)
                raise
    except BaseException:
        os.close(eventfd)
        raise
    if plane.closed:  # meanwhile, by another thread
        channel._open.clear()
        channel._rings.refusal = "the plane was closed while this channel was made"
        channel._check()
    return channel

# SPDX-License-Identifier: MIT
"""Channels: a submission ring, a completion ring, and a worker behind them.

Two ways to use one, freely mixed on the same channel:

  operations  ch.copy(dst, src) gives an Operation: wait() for it, or await it.
  rows        ch.submit(rows) takes a numpy array of SUBMISSION and gives one of
              COMPLETION; no Python runs per element.

user_data tells them apart: its highest bit belongs to operations.

Invariants
 - One thread pushes at a time (_push_lock), one takes completions at a time
   (_turn); the two do not exclude each other. Whoever takes completions hands
   them to all who wait; who waits and is not taking is woken by who is.
 - Taking is restartable. An exception can arrive between any two steps (a signal
   handler that raises), so completions are popped into _scratch, which stays valid
   until _taken, the number handed out, has caught up with the ring's own head.
   Handing out twice is harmless: operations are found by number and leave their
   table once, rows are kept under the position they were popped at.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import itertools
import math
import os
import struct
import threading
import time
import warnings
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dmaplane import _abi, _buffer, _library, _rows
from dmaplane._completion import ENTRY, Completion
from dmaplane._errors import (
    ClosedError,
    InvalidError,
    TimedOutError,
    WouldBlock,
    error_from,
)
from dmaplane._operation import OPERATION_BIT, Operation, wake
from dmaplane._plane import Capability, Visit, deadline_of
from dmaplane._statistics import Histogram, Statistics, read_histogram, read_statistics
from dmaplane._storage import PROT_READ, PROT_WRITE

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    import numpy.typing as npt
    from typing_extensions import Self

    from dmaplane._buffer import Buffer, BufferRange
    from dmaplane._plane import Plane

_tuple_of: Final = tuple.__new__  # what Completion._make does, less a look at the length
_unpack: Final = ENTRY.unpack_from
_TURN: Final = 0
_FOLLOW_S: Final = 0.05
_OPERATION_BIT: Final = np.uint64(OPERATION_BIT)
_ROW: Final = struct.Struct("<HHIQQIIQQQIII")  # dmp_submission, and the count pushed
_NOTHING: Final = (-errno.EINTR, -errno.ETIMEDOUT, -errno.EAGAIN)
_PROT_BOTH: Final = PROT_READ | PROT_WRITE


class Channel:
    """A pair of rings and a worker. Use it in a `with` block; made by `plane.channel()`."""

    def __init__(self, plane: Plane, made: _abi.ChannelCreate, eventfd: int) -> None:
        self.plane = plane
        self.id: int = made.channel_id
        self.slots: int = made.slots
        self._eventfd = eventfd
        self._refusal: str | None = None
        self._map_bytes: int = made.map_bytes
        address = plane._map(made.map_bytes, _PROT_BOTH, made.map_offset)
        if address < 0:
            raise error_from(address, "mmap", f"channel {self.id}")
        self._address = address
        self._control = _abi.RingControl.from_address(address)
        self.completion_slots: int = made.completion_slots or 2 * made.slots
        self._client = _library.Client(
            control=address,
            submissions=address + made.submissions_offset,
            completions=address + made.completions_offset,
            slots=self.slots,
            completion_slots=self.completion_slots,
            channel_id=self.id,
        )
        library = plane._attach(self._client)
        # Looked up anew, these carry no argument types; every pointer and 64-bit number is
        # passed as an object made once, which halves the cost of a call.
        self._push_exchange: Callable[..., int] = library.quick["dmp_client_exchange"]
        self._take_exchange: Callable[..., int] = library.waiting["dmp_client_exchange"]
        self._client_at = ctypes.c_void_p(ctypes.addressof(self._client))
        self._no_deadline = ctypes.c_uint64(0)
        self._arm: Callable[..., int] = library.quick.dmp_client_arm

        self._push_lock = threading.Lock()
        self._row = (ctypes.c_char * _ROW.size)()
        self._row_at = ctypes.c_void_p(ctypes.addressof(self._row))
        self._row_pushed = ctypes.c_uint32.from_buffer(self._row, _abi.SUBMISSION.itemsize)
        self._row_pushed_at = ctypes.c_void_p(ctypes.addressof(self._row_pushed))
        self._pushed = ctypes.c_uint32()
        self._pushed_at = ctypes.c_void_p(ctypes.addressof(self._pushed))
        self._numbers = itertools.count(OPERATION_BIT)
        self._rows_pushed = 0

        self._turn = {_TURN: True}
        self._open = [True]  # popped by whoever closes it: list.pop() happens once
        self._rows_lock = threading.Lock()
        self._scratch = np.zeros(self.completion_slots, dtype=_abi.COMPLETION)
        self._scratch_at = ctypes.c_void_p(self._scratch.ctypes.data)
        self._scratch_bytes = self._scratch.view(np.uint8).data
        self._scratch_head = 0
        self._taken = 0
        self._unused = ctypes.c_uint32()
        self._unused_at = ctypes.c_void_p(ctypes.addressof(self._unused))
        self._take_deadline = ctypes.c_uint64()
        self._operations: dict[int, Operation] = {}
        self._rows: dict[int, npt.NDArray[np.void]] = {}
        self._rows_taken = 0

        self._news = threading.Condition()
        self._followers = 0
        self._loops: dict[asyncio.AbstractEventLoop, int] = {}
        plane._channels[self.id] = self
        plane._eventfds[self.id] = eventfd

    # Submitting one.

    def nop(
        self, *, link: bool = False, timeout: float | None = None, nowait: bool = False
    ) -> Operation:
        """Does nothing, in order; measures what a submission costs."""
        return self._start(_abi.OP_NOP, link * _abi.SUBMIT_LINK, timeout, nowait)

    def fence(
        self, *, link: bool = False, timeout: float | None = None, nowait: bool = False
    ) -> Operation:
        """Completes when all before it have; nothing after it starts earlier."""
        return self._start(_abi.OP_FENCE, link * _abi.SUBMIT_LINK, timeout, nowait)

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
        target, source = self._range(dst, "dst"), self._range(src, "src")
        if target.length_bytes != source.length_bytes:
            raise InvalidError(
                "dst, src",
                f"{target.length_bytes} and {source.length_bytes} bytes",
                fix="one length: slice the longer one, as in dst[:len(src)]",
            )
        if target.buffer.read_only:
            raise InvalidError("dst", "this buffer is read-only", fix="a writable one")
        if target.buffer is source.buffer and (
            abs(target.offset - source.offset) < source.length_bytes
        ):
            raise InvalidError("dst, src", "they overlap", fix="ranges that do not")
        return self._start(
            _abi.OP_COPY,
            self._flags(link, checksum, verify),
            timeout,
            nowait,
            source.buffer.id,
            target.buffer.id,
            source.offset,
            target.offset,
            source.length_bytes,
            0,
            verify or 0,
        )

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
        target = self._range(dst, "dst")
        if not 0 <= pattern < 1 << 32:
            raise InvalidError("pattern", f"{pattern}", fix="0 .. 2**32 - 1")
        if target.offset % 4 or target.length_bytes % 4:
            raise InvalidError(
                "dst", f"[{target.offset}:+{target.length_bytes}]", fix="multiples of 4 bytes"
            )
        if target.buffer.read_only:
            raise InvalidError("dst", "this buffer is read-only", fix="a writable one")
        return self._start(
            _abi.OP_FILL,
            self._flags(link, checksum, verify),
            timeout,
            nowait,
            0,
            target.buffer.id,
            0,
            target.offset,
            target.length_bytes,
            pattern,
            verify or 0,
        )

    def _range(self, given: Buffer | BufferRange, field: str) -> BufferRange:
        if isinstance(given, _buffer.Buffer):
            part = _buffer.BufferRange(given, 0, given.length_bytes)
        elif isinstance(given, _buffer.BufferRange):
            part = given
        else:
            raise InvalidError(
                field,
                f"{type(given).__name__} is no buffer",
                fix="plane.buffer(), or plane.buffer(user=...) for memory you already have",
            )
        if part.buffer.plane is not self.plane:
            raise InvalidError(field, "it belongs to another plane", fix="export and import it")
        part.buffer._check()
        return part

    def _flags(self, link: bool, checksum: bool, verify: int | None) -> int:
        if not checksum and verify is None:
            return link * _abi.SUBMIT_LINK
        self.plane.require(Capability.CHECKSUM)
        if verify is None:
            return link * _abi.SUBMIT_LINK | _abi.SUBMIT_CHECKSUM
        if not 0 <= verify < 1 << 32:
            raise InvalidError("verify", f"{verify} is no CRC32C", fix="0 .. 2**32 - 1")
        return link * _abi.SUBMIT_LINK | _abi.SUBMIT_CHECKSUM | _abi.SUBMIT_VERIFY

    def _start(
        self,
        operation: int,
        flags: int,
        timeout: float | None,
        nowait: bool,
        source: int = 0,
        target: int = 0,
        source_offset: int = 0,
        target_offset: int = 0,
        length_bytes: int = 0,
        immediate: int = 0,
        checksum: int = 0,
    ) -> Operation:
        deadline = deadline_of(timeout) if timeout is not None else 0
        user_data = next(self._numbers)
        started = Operation(self, user_data)
        while True:
            with self._push_lock:
                if self._refusal is not None:
                    raise ClosedError(self._refusal)
                _ROW.pack_into(
                    self._row,
                    0,
                    operation,
                    flags,
                    0,
                    user_data,
                    deadline,
                    source,
                    target,
                    source_offset,
                    target_offset,
                    length_bytes,
                    immediate,
                    checksum,
                    0,
                )
                self._operations[user_data] = started
                try:
                    answer = self._push_exchange(
                        self._client_at,
                        self._row_at,
                        1,
                        self._row_pushed_at,
                        None,
                        0,
                        0,
                        self._no_deadline,
                    )
                except BaseException:  # of a signal handler
                    if not self._row_pushed.value:
                        self._operations.pop(user_data, None)
                    raise
                if answer >= 0:
                    return started
                del self._operations[user_data]
            if answer not in _NOTHING:
                raise error_from(answer, "ENTER", f"channel {self.id}")
            self._make_room(deadline, nowait)

    def _make_room(self, deadline: int, nowait: bool) -> None:
        """Takes completions, so that a slot gets free; waits for one unless @nowait."""
        if self._take_now():
            return
        if nowait:
            raise WouldBlock(
                f"all {self.slots} slots of channel {self.id} are taken; "
                "wait for a completion, or create the channel with more slots",
                errno=errno.EAGAIN,
            )
        if not self._take(1, deadline) and deadline and time.monotonic_ns() >= deadline:
            raise TimedOutError(f"no slot of channel {self.id} got free", errno=errno.ETIMEDOUT)

    # Taking completions.

    def _take_now(self) -> int:
        """Takes what is there, without waiting; how many. 0 if another thread is taking."""
        return self._take(0, 1) if self._refusal is None and _TURN in self._turn else 0

    def _take(self, wait_count: int, deadline: int, operation: Operation | None = None) -> int:
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
                self._follow(deadline, operation)
                return 0
            return self._pop(wait_count, deadline)
        finally:
            if mine:
                self._turn[_TURN] = True
                if self._followers:
                    with self._news:
                        self._news.notify_all()

    def _follow(self, deadline: int, operation: Operation | None) -> None:
        """Another thread is taking: waits until it has handed something out, or stops."""
        with self._news:
            self._followers += 1
            try:
                # Looked at once counted, so that who takes now cannot miss us. Who was
                # interrupted may not have said so: hence the limit.
                if _TURN not in self._turn and not (operation and operation._completion):
                    self._news.wait(min(_FOLLOW_S, _remaining(deadline)))
            finally:
                self._followers -= 1

    def _pop(self, wait_count: int, deadline: int) -> int:
        """One exchange, by whose turn it is. How many completions were handed out."""
        if self._refusal is not None:
            raise ClosedError(self._refusal)
        if self._control.complete_head != self._taken:
            return self._hand_out()  # an exception came between popping and handing out
        self._scratch_head = self._taken
        self._take_deadline.value = deadline
        answer = self._take_exchange(
            self._client_at,
            None,
            0,
            self._unused_at,
            self._scratch_at,
            self.completion_slots,
            wait_count,
            self._take_deadline,
        )
        if answer > 0:
            return self._hand_out()
        if answer == 0 or answer in _NOTHING:
            return 0
        raise error_from(answer, "ENTER", f"channel {self.id}")

    def _hand_out(self) -> int:
        """Gives popped completions to whom they belong. May be entered again after a raise."""
        head = self._control.complete_head
        count = (head - self._taken) & 0xFFFFFFFF
        first = (self._taken - self._scratch_head) & 0xFFFFFFFF
        if self._rows_taken == self._rows_pushed:
            for entry in range(first, first + count):
                self._finish(_unpack(self._scratch_bytes, entry * 32))
                self._taken = (self._taken + 1) & 0xFFFFFFFF
        else:
            # Bytes are copied as bytes: numpy copies structured entries field by field.
            copied = bytearray(self._scratch_bytes[first * 32 : (first + count) * 32])
            popped = np.frombuffer(copied, dtype=_abi.COMPLETION)
            if self._operations:
                ours = popped["user_data"] >= _OPERATION_BIT
                for entry in np.flatnonzero(ours).tolist():
                    self._finish(_unpack(copied, entry * 32))
                popped = popped[~ours]
            more = len(popped)
            with self._rows_lock:
                # Plain stores in a row: no signal handler runs between them.
                if more:
                    self._rows[self._taken] = popped
                    self._rows_taken += more
                self._taken = head
        if self._followers:
            with self._news:
                self._news.notify_all()
        return count

    def _finish(self, fields: tuple[Any, ...]) -> None:
        user_data = fields[0]
        operation = self._operations.get(user_data)
        if operation is not None:
            operation._completion = _tuple_of(Completion, fields)
            if operation._futures:
                for future in operation._futures:
                    future.get_loop().call_soon_threadsafe(wake, future)
            del self._operations[user_data]  # last: a raise before it means once more

    def _wait_for(self, operation: Operation, deadline: int) -> None:
        while operation._completion is None:
            try:
                self._take(1, deadline, operation)
            except ClosedError:
                if operation._completion is None:
                    raise
            if operation._completion is None and deadline and time.monotonic_ns() >= deadline:
                raise TimedOutError(
                    f"{operation!r} of channel {self.id} has not completed yet; "
                    "it goes on: wait again, or cancel() it",
                    errno=errno.ETIMEDOUT,
                )

    # Rows: many at once.

    def push_nowait(self, rows: npt.NDArray[np.void]) -> int:
        """Submits as many of @rows as there is room for, in order; how many.

        WouldBlock if there is room for none. Their completions come from completions().
        """
        accepted = self._push_rows(_rows.checked(rows))
        if not accepted and len(rows):
            self._take_now()
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
        rows = _rows.checked(rows)
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
        with self._push_lock:
            if self._refusal is not None:
                raise ClosedError(self._refusal)
            count = len(rows)
            if not count:
                return 0
            self._rows_pushed += count
            self._pushed.value = 0
            try:
                answer = self._push_exchange(
                    self._client_at,
                    ctypes.c_void_p(rows.ctypes.data),
                    count,
                    self._pushed_at,
                    None,
                    0,
                    0,
                    self._no_deadline,
                )
            finally:
                self._rows_pushed -= count - self._pushed.value
            if answer < 0 and answer not in _NOTHING:
                raise error_from(answer, "ENTER", f"channel {self.id}")
            return self._pushed.value

    def completions(
        self, limit: int | None = None, *, wait: int = 0, timeout: float | None = None
    ) -> npt.NDArray[np.void]:
        """Completions of rows, at most @limit, in the order they came.

        Does not block, unless @wait completions are asked for; then TimedOutError after
        @timeout seconds, with what has come kept for the next call.
        """
        in_flight = self._rows_pushed - self._rows_taken + self._rows_kept()
        if wait > in_flight:
            raise InvalidError("wait", f"{wait} rows", fix=f"{in_flight} can still come")
        deadline = deadline_of(timeout)
        if not wait:
            self._take_now()
        while (kept := self._rows_kept()) < wait:
            self._take(1 if self._operations else wait - kept, deadline)
            if self._rows_kept() < wait and deadline and time.monotonic_ns() >= deadline:
                raise TimedOutError(
                    f"{self._rows_kept()} of {wait} completions came in time; "
                    "they are kept for the next call",
                    errno=errno.ETIMEDOUT,
                )
        return self._kept_rows(limit)

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
        in_flight = self._rows_pushed - self._rows_taken + self._rows_kept()
        left = None if not deadline else max(0.0, (deadline - time.monotonic_ns()) / 1e9)
        return self.completions(wait=in_flight if wait is None else wait, timeout=left)

    def _rows_kept(self) -> int:
        return sum(map(len, self._rows.values())) if self._rows else 0

    def _kept_rows(self, limit: int | None) -> npt.NDArray[np.void]:
        with self._rows_lock:
            parts = list(self._rows.values())
            kept = parts[0] if len(parts) == 1 else _joined(parts)
            rest: dict[int, npt.NDArray[np.void]] = {}
            if limit is not None and limit < len(kept):
                rest = {next(iter(self._rows)): kept[limit:]}
                kept = kept[:limit]
            self._rows = rest
            return kept

    # Cancelling, and asyncio.

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
        if self._refusal is not None:
            raise ClosedError(self._refusal)
        request = _abi.Cancel(
            flags=flags,
            channel_id=self.id,
            user_data=user_data,
            deadline_ns=deadline_of(timeout),
        )
        self.plane.call("CANCEL", _abi.CANCEL, request)
        return int(request.cancelled)

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        watchers = self._loops.get(loop, 0)
        self._loops[loop] = watchers + 1
        if not watchers:
            loop.add_reader(self._eventfd, self._on_event)
        self._arm_or_take()

    def _unwatch(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop not in self._loops:
            return  # the channel was closed meanwhile
        self._loops[loop] -= 1
        if not self._loops[loop]:
            del self._loops[loop]
            loop.remove_reader(self._eventfd)

    def _on_event(self) -> None:
        try:
            os.read(self._eventfd, 8)
        except BlockingIOError:
            pass  # another loop, or an earlier turn of this one, has read it
        self._arm_or_take()

    def _arm_or_take(self) -> None:
        """Takes what is there; armed for the next completion when it returns."""
        while True:
            with self._push_lock:
                if self._refusal is not None or self._arm(self._client_at) == 0:
                    return
            if not self._take_now():
                return  # another thread is taking: it wakes the futures

    # Looking at it, and ending it.

    @property
    def in_flight(self) -> int:
        """Operations and rows submitted whose completion was not taken yet."""
        return len(self._operations) + self._rows_pushed - self._rows_taken

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
        return self._refusal is not None

    def _check(self) -> None:
        if self._refusal is not None:
            raise ClosedError(self._refusal)

    def _forked(self) -> None:
        self._refusal = (
            "this channel belongs to the process that made it; a forked child opens its own plane"
        )

    def close(self, *, drain: bool = False, timeout: float | None = None) -> None:
        """Ends it; idempotent. What is in flight is cancelled, or with @drain finished first.

        Operations still waited for complete: nobody is left hanging.
        """
        if self._refusal is not None:
            return
        deadline = deadline_of(timeout)
        while drain and self.in_flight:
            if not self._take(1, deadline) and deadline and time.monotonic_ns() >= deadline:
                raise TimedOutError(
                    f"{self.in_flight} still in flight on channel {self.id}",
                    errno=errno.ETIMEDOUT,
                )
        with Visit(self.plane):  # the plane is not ended before this is
            try:
                self._open.pop()
            except IndexError:
                return  # another thread is closing it, or has
            everything = _abi.Cancel(
                size=ctypes.sizeof(_abi.Cancel), flags=_abi.CANCEL_ALL, channel_id=self.id
            )
            self.plane._command(_abi.CANCEL, everything)  # ENOENT: nothing was in flight
            while self._take_now():
                pass
            self._refusal = f"channel {self.id} is closed"
            with self._push_lock:
                pass  # nobody is pushing from here on, and nobody starts to
            while _TURN not in self._turn:
                self._follow(0, None)
            self._end()

    def _end(self) -> None:
        """Gives everything back; nobody is inside the rings any more."""
        request = _abi.Destroy(size=ctypes.sizeof(_abi.Destroy), id=self.id)
        answer = self.plane._unmap(self._address, self._map_bytes)
        answer = self.plane._command(_abi.CHANNEL_DESTROY, request) or answer
        for user_data in list(self._operations):  # what came after the cancel
            self._finish((user_data, -errno.ECANCELED, 0, 0, 0, 0, 0, 0))
        here = asyncio._get_running_loop()
        abroad = [loop for loop in self._loops if loop is not here]
        if here in self._loops:
            here.remove_reader(self._eventfd)
        for loop in abroad:
            try:
                loop.call_soon_threadsafe(loop.remove_reader, self._eventfd)
            except RuntimeError:
                pass  # that loop is closed, and its readers with it
        self._loops = {}
        if not abroad:  # else it is closed with the plane: a loop still knows its number
            fd = self.plane._eventfds.pop(self.id, -1)
            if fd >= 0:
                os.close(fd)
        if answer:
            raise error_from(answer, "CHANNEL_DESTROY", f"channel {self.id}")

    def __enter__(self) -> Self:
        self._check()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_refusal", "") is None and not self.plane.closed:
            warnings.warn(f"{self!r} was never closed", ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.in_flight} in flight"
        return f"<channel {self.id}, {self.slots} slots, {state}>"


def _remaining(deadline_ns: int) -> float:
    return max(0.0, (deadline_ns - time.monotonic_ns()) / 1e9) if deadline_ns else math.inf


def _joined(parts: list[npt.NDArray[np.void]]) -> npt.NDArray[np.void]:
    return np.concatenate(parts) if parts else np.empty(0, dtype=_abi.COMPLETION)


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
        channel._refusal = "the plane was closed while this channel was made"
        channel._check()
    return channel

# SPDX-License-Identifier: MIT
"""Endpoints: reliable connections to peers, and all that can be done on one.

An endpoint belongs to one channel: its operations go through the channel's rings and give
the same Operation as a copy does. What the peer does by itself (a WRITE_IMM that landed, the
end of the connection) comes through the same ring and waits in the endpoint's inbox.

Who owns what. An endpoint holds its channel; one that it made for itself it closes too. The
taker of the channel finds the inbox by the endpoint's number, for as long as it is open.
Regions imported on it die with it.
"""

from __future__ import annotations

import ctypes
import errno
import time
import warnings
import weakref
from typing import TYPE_CHECKING, Final, Literal

from dmaplane import _abi, _buffer, _operands, _region, _rows
from dmaplane._errors import (
    ChecksumError,
    ClosedError,
    DmaplaneError,
    InvalidError,
    PeerLostError,
    TimedOutError,
    error_from,
)
from dmaplane._immediate import Immediate
from dmaplane._ledger import Ledger, ledger_of
from dmaplane._plane import PATHS, SLICE_NS, Path, Visit, deadline_of, slice_of
from dmaplane._scope import Scope
from dmaplane._statistics import Histogram, Statistics, read_histogram, read_statistics

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import numpy.typing as npt
    from typing_extensions import Self

    from dmaplane._buffer import Buffer, BufferRange
    from dmaplane._completion import Completion
    from dmaplane._operation import Operation
    from dmaplane._plane import Plane
    from dmaplane._region import RemoteRange, RemoteRegion
    from dmaplane._seat import Seat

_BATCH_NS: Final = 10_000_000
"""Who waits for several looks this often whether the connection has ended meanwhile."""
_LEAVE_NS: Final = 1_000_000_000
"""close() gives what is in flight so long to let go."""
_CAUSES: Final = {
    0: "the peer closed it",
    errno.ECONNRESET: "the peer closed it, was killed, or was silent for the detection time",
    errno.EPROTO: "the peer broke the protocol",
    errno.ESTALE: "the peer has started anew",
    errno.ETIMEDOUT: "the peer was silent for the detection time",
}


class Ready:
    """Operands of exchange() that were checked: it is called again and again with the same."""

    __slots__ = ("buffer", "operands", "region", "remote", "src")

    def __init__(
        self,
        endpoint: Endpoint,
        src: Buffer | BufferRange,
        remote: RemoteRegion | RemoteRange,
        imm: int,
    ) -> None:
        packed = _operands.of_write(
            endpoint, src, remote, imm, link=False, checksum=False, verify=None
        )[1]
        self.operands = packed[: _operands.RANGES_BYTES]
        self.src = src
        self.remote = remote
        self.buffer = _buffer.range_of(endpoint.plane, src, "src").buffer
        self.region = _operands.range_there(endpoint, remote, "write").region


class Endpoint(Scope):
    """A connection to a peer. Use it in a `with` block.

    Made by `plane.connect()`, `listener.accept()` and their asyncio twins.
    """

    def __init__(self, seat: Seat, made: _abi.Connect | _abi.Accept, peer_address: str) -> None:
        channel = seat.channel
        self.plane: Plane = channel.plane
        self.channel = channel
        self.id: int = made.endpoint_id
        self.user_data = seat.user_data
        """In every event of this endpoint, should you read the rings yourself."""
        self.path: Path = PATHS[made.path_taken]
        self.epoch: int = made.epoch
        self.peer_address = peer_address
        self.window: int = made.window_slots
        self.window_bytes: int = made.window_bytes
        self._inbox = seat.inbox
        self._is_private = seat.is_private
        self._ready: Ready | None = None
        self._regions: weakref.WeakSet[RemoteRegion] = weakref.WeakSet()
        self._open = [True]  # popped by whoever closes it: list.pop() happens once
        channel._children.add(self)

    # One operation.

    def send(
        self,
        src: Buffer | BufferRange,
        *,
        link: bool = False,
        checksum: bool = False,
        verify: int | None = None,
        timeout: float | None = None,
        nowait: bool = False,
    ) -> Operation:
        """Sends @src as one message, into the oldest recv() of the peer, or its window.

        Completes when it is in the peer's memory, not when it was read. Takes a slot of credit
        and its length; without credit it waits, in order, or with @nowait fails. @timeout
        and the other flags as in Channel.copy().
        """
        flags, operands = _operands.of_send(
            self.plane, src, link=link, checksum=checksum, verify=verify
        )
        return self._start(_abi.OP_SEND, flags, timeout, nowait, operands)

    def recv(
        self,
        dst: Buffer | BufferRange,
        *,
        link: bool = False,
        checksum: bool = False,
        verify: int | None = None,
        timeout: float | None = None,
        nowait: bool = False,
    ) -> Operation:
        """Gives room for the next message; Completion.length_bytes says how long it was.

        One that does not fit fails with InvalidError and goes to the next recv().
        """
        flags, operands = _operands.of_recv(
            self.plane, dst, link=link, checksum=checksum, verify=verify
        )
        return self._start(_abi.OP_RECV, flags, timeout, nowait, operands)

    def write(
        self,
        src: Buffer | BufferRange,
        remote: RemoteRegion | RemoteRange,
        *,
        link: bool = False,
        checksum: bool = False,
        verify: int | None = None,
        timeout: float | None = None,
        nowait: bool = False,
    ) -> Operation:
        """Writes @src into @remote, of the same length. The peer is told nothing."""
        flags, operands = _operands.of_write(
            self, src, remote, 0, link=link, checksum=checksum, verify=verify
        )
        return self._start(_abi.OP_WRITE, flags, timeout, nowait, operands)

    def write_imm(
        self,
        src: Buffer | BufferRange,
        remote: RemoteRegion | RemoteRange,
        imm: int = 0,
        *,
        link: bool = False,
        checksum: bool = False,
        verify: int | None = None,
        timeout: float | None = None,
        nowait: bool = False,
    ) -> Operation:
        """Writes @src into @remote, then tells the peer the 32-bit number @imm.

        The peer gets it from immediate() or immediates(). Takes credit as send() does.
        """
        flags, operands = _operands.of_write(
            self, src, remote, imm, link=link, checksum=checksum, verify=verify
        )
        return self._start(_abi.OP_WRITE_IMM, flags, timeout, nowait, operands)

    def read(
        self,
        dst: Buffer | BufferRange,
        remote: RemoteRegion | RemoteRange,
        *,
        link: bool = False,
        checksum: bool = False,
        verify: int | None = None,
        timeout: float | None = None,
        nowait: bool = False,
    ) -> Operation:
        """Reads @remote into @dst, of the same length."""
        flags, operands = _operands.of_read(
            self, dst, remote, link=link, checksum=checksum, verify=verify
        )
        return self._start(_abi.OP_READ, flags, timeout, nowait, operands)

    def _start(
        self, operation: int, flags: int, timeout: float | None, nowait: bool, operands: bytes
    ) -> Operation:
        if self._inbox.refusal is not None:
            raise ClosedError(self._inbox.refusal)
        if nowait:
            flags |= _abi.SUBMIT_NOWAIT
        return self.channel._start(operation, flags, timeout, nowait, operands, self)

    def exchange(
        self,
        src: Buffer | BufferRange,
        remote: RemoteRegion | RemoteRange,
        imm: int = 0,
        *,
        timeout: float | None = None,
    ) -> Completion:
        """write_imm(), and the peer's next immediate: a round trip with one wait for both.

        @timeout limits the whole; a write that failed is raised.
        """
        inbox = self._inbox
        if inbox.refusal is not None:
            raise ClosedError(inbox.refusal)
        deadline = 0 if timeout is None else deadline_of(timeout)
        ready = self._ready
        if (
            ready is None
            or ready.src is not src
            or ready.remote is not remote
            or ready.buffer._refusal is not None
            or ready.region._refusal is not None
            or not 0 <= imm < 1 << 32
        ):
            ready = self._ready = Ready(self, src, remote, imm)
        started = self.channel._exchange(self, ready.operands, imm, deadline)
        if isinstance(started, tuple):
            return started
        while True:
            completion = started._completion
            if completion is not None:
                if completion[1]:
                    raise started._failure(completion)
                arrived = inbox.take_one()
                if arrived is not None:
                    return arrived
            self._wait(1 if completion is not None or inbox.parts else 2, deadline)
            if deadline and time.monotonic_ns() >= deadline and not inbox.parts:
                raise TimedOutError("no immediate came back in time", errno=errno.ETIMEDOUT)

    # Many at once.

    def rows(
        self,
        operation: Literal["send", "recv", "write", "write_imm", "read"],
        local: Buffer | BufferRange,
        remote: RemoteRegion | RemoteRange | None = None,
        *,
        local_offsets: npt.ArrayLike = 0,
        remote_offsets: npt.ArrayLike = 0,
        lengths: npt.ArrayLike | None = None,
        immediates: npt.ArrayLike = 0,
        user_data: npt.ArrayLike | None = None,
        checksum: bool = False,
        link: bool = False,
    ) -> npt.NDArray[np.void]:
        """An array of SUBMISSION for submit(): one row for each entry of the arrays given.

        Offsets are bytes from the start of @local and @remote. Numbers stand for all rows.
        @lengths: all of @local if left out. @user_data: 0, 1, 2... if left out. InvalidError
        names the first row that does not fit.
        """
        return _rows.of_transfers(
            self,
            operation,
            local,
            remote,
            local_offsets=local_offsets,
            remote_offsets=remote_offsets,
            lengths=lengths,
            immediates=immediates,
            user_data=user_data,
            checksum=checksum,
            link=link,
        )

    def submit(
        self,
        rows: npt.NDArray[np.void],
        *,
        wait: int | None = None,
        timeout: float | None = None,
    ) -> npt.NDArray[np.void]:
        """Submits rows of this endpoint; Channel.submit() says the rest.

        One ENTER where they fit: a channel with as many slots as you submit at once.
        """
        self._check()
        if len(rows):
            mine = rows["endpoint_id"] == self.id
            if not mine.all():
                first = int(mine.argmin())
                raise InvalidError(
                    f"rows[{first}].endpoint_id",
                    f"{rows['endpoint_id'][first]}",
                    fix=f"{self.id}, as endpoint.rows() has it",
                )
        return self.channel.submit(rows, wait=wait, timeout=timeout)

    # What the peer says by itself.

    def immediate(self) -> Immediate:
        """The peer's next WRITE_IMM: `endpoint.immediate().wait()`, or `await` it."""
        return Immediate(self)

    def immediates(
        self, count: int | None = None, timeout: float | None = None
    ) -> npt.NDArray[np.void]:
        """WRITE_IMMs that have landed, in order, as an array of COMPLETION.

        With @count: exactly so many, waiting as needed; TimedOutError after @timeout seconds
        and PeerLostError keep what has come for the next call. Without: all there are now.
        """
        inbox = self._inbox
        if count is None:
            if self._inbox.refusal is not None:
                raise ClosedError(self._inbox.refusal)
            self.channel._taker.take_now()
            return inbox.take(None)
        if count < 1:
            raise InvalidError("count", f"{count}", fix="at least 1, or None for what is there")
        deadline = 0 if timeout is None else deadline_of(timeout)
        while (there := len(inbox)) < count:
            self._wait(count - there, deadline)
            if deadline and len(inbox) < count and time.monotonic_ns() >= deadline:
                raise TimedOutError(
                    f"{len(inbox)} of {count} immediates landed in time; "
                    "they are kept for the next call",
                    errno=errno.ETIMEDOUT,
                )
        return inbox.take(count)

    def _wait(self, count: int, deadline: int) -> None:
        """Takes once, for at most a slice of time; raises if there is nothing to wait for."""
        self._check_alive()
        slice_ns = SLICE_NS
        if count > 1:  # the peer goes on once half of its window has come back
            count = min(count, max(2, self.window // 2))
            slice_ns = _BATCH_NS
        until = time.monotonic_ns() + slice_ns
        if deadline and deadline < until:
            until = deadline
        try:
            self.channel._taker.take(count, until, self._inbox)
        except ClosedError:
            self._inbox.check()
            raise

    def _check_alive(self) -> None:
        inbox = self._inbox
        if inbox.refusal is not None:
            raise ClosedError(inbox.refusal)
        if inbox.lost is not None:
            raise self._lost_error()

    def __aiter__(self) -> Self:
        """`async for`: immediates as they land, until the peer has drained and closed."""
        return self

    async def __anext__(self) -> Completion:
        try:
            return await Immediate(self)
        except PeerLostError:
            if self._inbox.lost is not None and self._inbox.lost[0] == 0:
                raise StopAsyncIteration from None
            raise

    # Regions of the peer.

    def region(self, key: bytes) -> RemoteRegion:
        """Names a peer's region by its key; costs a round trip, which proves it (L9).

        NotAllowedError: the peer has no such region. StaleEpochError: not any more.
        """
        self._check()
        made = _region.import_from(self, key)
        self._regions.add(made)
        return made

    def _taken(
        self,
    ) -> tuple[PeerLostError | None, npt.NDArray[np.void], npt.NDArray[np.void]]:
        """What was taken from the channel: why it is lost, completions of rows, immediates.

        In this order. So what came before the end is given with it, and an immediate that landed
        ahead of a completion is given with that. ClosedError if it was closed here.
        """
        self._inbox.check()
        lost = None if self._inbox.lost is None else self._lost_error()
        return lost, self.channel._rows.give(None), self._inbox.take(None)

    # Looking at it, and ending it.

    @property
    def lost(self) -> PeerLostError | None:
        """Why the connection ended, or None while it has not; never blocks."""
        if self._inbox.lost is None and self._inbox.refusal is None:
            self.channel._taker.take_now()
        return None if self._inbox.lost is None else self._lost_error()

    def _lost_error(self) -> PeerLostError:
        reason, path = self._inbox.lost or (-errno.ECONNRESET, 0)
        cause = _CAUSES.get(-reason, error_from(reason, "connection").args[0] if reason else "")
        return PeerLostError(
            f"the connection to {self.peer_address} by {self.path} ended: {cause}; connect again",
            errno=-reason or errno.ECONNRESET,
            peer=self.peer_address,
            path=PATHS[path] if path else self.path,
            cause=cause,
        )

    def _explained(
        self, failure: DmaplaneError, completion: Completion | None = None
    ) -> DmaplaneError:
        """What an operation failed with, and where: the connection that ended, the hop."""
        if isinstance(failure, PeerLostError):
            return self._lost_error()
        if isinstance(failure, ChecksumError) and completion is not None:
            return ChecksumError(f"{failure}: {self._hop(completion)}", errno=failure.errno)
        return failure

    def _hop(self, completion: Completion) -> str:
        """Where bytes that do not match were found."""
        if completion.path == "none":
            return "found in this process's own memory; nothing was sent"
        way = "from" if completion.operation in (_abi.OP_READ, _abi.OP_RECV) else "to"
        return f"found on the way {way} {self.peer_address} by {completion.path}"

    def ledger(self) -> Ledger:
        """State and credit now; one command."""
        answer = _abi.EndpointQuery(endpoint_id=self.id)
        self._call("ENDPOINT_QUERY", _abi.ENDPOINT_QUERY, answer)
        return ledger_of(answer)

    def statistics(self) -> Statistics:
        """Counters of this endpoint; one command."""
        self._check()
        return read_statistics(self.plane, _abi.SCOPE_ENDPOINT, self.id)

    def histogram(self) -> Histogram:
        """Nanoseconds from acceptance to completion; 18 commands."""
        self._check()
        return read_histogram(self.plane, _abi.SCOPE_ENDPOINT, self.id, _abi.HISTOGRAM_LATENCY)

    def _call(self, name: str, number: int, struct: ctypes.Structure) -> None:
        self._check()
        try:
            self.plane.call(name, number, struct)
        except DmaplaneError as failure:
            self._inbox.check()  # closed meanwhile: that is the reason
            explained = self._explained(failure)
            if explained is failure:
                raise
            raise explained from failure

    @property
    def closed(self) -> bool:
        """True after close(), or once its channel or plane is closed. Not when it is lost."""
        return self._inbox.refusal is not None or self.channel.closed

    def _check(self) -> None:
        if self._inbox.refusal is not None:
            raise ClosedError(self._inbox.refusal)
        self.channel._check()

    def close(self, *, drain: bool = False, timeout: float | None = None) -> None:
        """Ends the connection; idempotent. What is in flight fails, or with @drain finishes.

        TimedOutError after @timeout seconds of draining leaves it open, but it takes nothing
        new. The peer is told in any case.
        """
        if self._inbox.refusal is not None or self.channel.closed:
            return
        if drain:
            self._drain(deadline_of(timeout))
        channel = self.channel
        with Visit(self.plane):  # the plane is not ended before this is
            try:
                self._open.pop()
            except IndexError:
                return  # another thread is closing it, or has
            answer = 0 if drain else self._destroy()
            channel._taker.take_now()
            channel._taker.inboxes.pop(self.user_data, None)
            self._inbox.end(f"endpoint {self.id} is closed")
            channel._children.discard(self)
            if self._is_private:
                channel.close()
        if answer not in (0, -errno.ENOENT, -errno.ETIMEDOUT):
            raise error_from(answer, "ENDPOINT_DESTROY", f"endpoint {self.id}")

    def _drain(self, deadline_ns: int) -> None:
        with Visit(self.plane):
            for region in list(self._regions):
                region._refusal = f"endpoint {self.id} is draining"
                self._until_drained(region._command, deadline_ns)
            self._until_drained(self._command, deadline_ns)

    def _until_drained(self, command: Callable[[int, int], int], deadline_ns: int) -> None:
        answer, last = -errno.ETIMEDOUT, False
        while answer == -errno.ETIMEDOUT and not last:
            until, last = slice_of(deadline_ns)
            self._check()
            answer = command(_abi.DESTROY_DRAIN, until)
        if answer == -errno.ETIMEDOUT:
            raise TimedOutError(
                f"operations of endpoint {self.id} are still in flight; close() ends them",
                errno=errno.ETIMEDOUT,
            )
        if answer not in (0, -errno.ENOENT):
            raise error_from(answer, "ENDPOINT_DESTROY", f"endpoint {self.id}")

    def _destroy(self) -> int:
        """Takes what holds it away first: regions of the peer, and what is in flight."""
        limit = time.monotonic_ns() + _LEAVE_NS
        answer = self._finish()
        if answer != -errno.EBUSY:
            return answer
        self.channel._leaving.append(self)  # the channel ends it, if not we below
        if self._is_private:
            return 0
        for user_data, operation in list(self.channel._operations.items()):
            if operation._endpoint is self:
                request = _abi.Cancel(
                    size=ctypes.sizeof(_abi.Cancel),
                    channel_id=self.channel.id,
                    user_data=user_data,
                    deadline_ns=limit,
                )
                self.plane._command(_abi.CANCEL, request)
        answer = self._finish()
        if answer == -errno.EBUSY:  # rows are in flight
            answer = self._command(_abi.DESTROY_DRAIN, limit)
        if answer == 0:
            self.channel._leaving.remove(self)
        return answer

    def _finish(self) -> int:
        """Ends regions, then the endpoint; -EBUSY while anything is in flight."""
        for region in list(self._regions):
            region._refusal = f"endpoint {self.id} is closed"
            answer = region._command(0, 0)
            if answer == -errno.EBUSY:
                return answer
        return self._command(0, 0)

    def _command(self, flags: int, deadline_ns: int) -> int:
        request = _abi.Destroy(
            size=ctypes.sizeof(_abi.Destroy), flags=flags, id=self.id, deadline_ns=deadline_ns
        )
        answer = -errno.EINTR
        while answer == -errno.EINTR:
            answer = self.plane._command(_abi.ENDPOINT_DESTROY, request)
        return answer

    def __del__(self) -> None:
        if hasattr(self, "_open") and not self.closed and not self.plane.closed:
            warnings.warn(f"{self!r} was never closed", ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        state = "closed" if self.closed else "lost" if self._inbox.lost else f"epoch {self.epoch}"
        return f"<endpoint {self.id} to {self.peer_address} by {self.path}, {state}>"

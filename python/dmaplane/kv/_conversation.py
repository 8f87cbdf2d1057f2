# SPDX-License-Identifier: MIT
"""One end of a connection that moves KV caches: its messages, its turns, its end.

Sender and Receiver are Conversations. Whenever something came by the channel, or somebody here
wants something, a conversation has a turn (_watch.py): all completions, all immediates, all
messages, then whatever can be posted now. So the state of all transfers is changed by the
event loop's thread alone, without a lock.

Order. A turn hears immediates before messages, and fetches messages first: an immediate that came
before a message on the wire is never seen after it.

The peer is not trusted: what it may not say is a ProtocolError here, which ends this connection
and nothing else. What waits unread has a bound, and beyond that the peer waits (GRANT).

Who owns what. The conversation takes over its endpoint and the rows of its channel, which has to
be the endpoint's own or used by nobody else; it closes the endpoint. It owns the buffer its
messages go through, one thread for work on bytes, and what its subclasses add. The pool and
the leases are the caller's; it lends them to itself for as long as anybody can touch them.
"""

from __future__ import annotations

import abc
import asyncio
import collections
import concurrent.futures
import contextlib
import errno
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeVar

import numpy as np

from dmaplane._errors import (
    ClosedError,
    DmaplaneError,
    InvalidError,
    LayoutError,
    PeerLostError,
    ProtocolError,
    TimedOutError,
    WouldBlock,
    error_from,
)
from dmaplane._watch import Watch
from dmaplane.kv import _wire
from dmaplane.kv._wire import Hello, Kind, Message, Role

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping
    from types import TracebackType

    import numpy.typing as npt
    from typing_extensions import Self

    from dmaplane._endpoint import Endpoint
    from dmaplane.kv._pool import Pool

    Rows = npt.NDArray[np.void]

T = TypeVar("T")

RECVS: Final = 4
SENDS: Final = 4
KIND_SHIFT: Final = 56
WRITE: Final = 1
"""Of user_data, from KIND_SHIFT on: what a row is."""
RECV: Final = 2
SEND: Final = 3
_SLOT: Final = (1 << 8) - 1
_BYE_S: Final = 0.5
"""So long the last messages may take when it is closed in good order."""
_GRANT_EVERY: Final = _wire.ASKS_MAX // 4


class Waiting(Generic[T]):
    """What came and was not asked for yet, and who asks before it comes."""

    def __init__(self) -> None:
        self._items: collections.deque[T] = collections.deque()
        self._bell = asyncio.Event()
        self._ended = False
        self._failure: DmaplaneError | None = None

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[T]:
        return iter(list(self._items))

    def put(self, item: T) -> None:
        """Behind all others."""
        self._items.append(item)
        self._bell.set()

    def drop(self, item: T) -> bool:
        """It is not to be given any more; False if it has been."""
        if item not in self._items:
            return False
        self._items.remove(item)
        return True

    def end(self, failure: DmaplaneError | None) -> None:
        """After what is there comes @failure, or simply no more."""
        self._ended, self._failure = True, failure
        self._bell.set()

    async def get(self) -> T:
        """The oldest; StopAsyncIteration or the failure when there is no more to come."""
        while not self._items:
            if self._ended:
                if self._failure is not None:
                    raise self._failure
                raise StopAsyncIteration
            self._bell.clear()
            await self._bell.wait()
        return self._items.popleft()


class Conversation(abc.ABC):
    """What both ends have in common. Use it in an `async with` block."""

    role: Role
    _open: Mapping[int, object]
    """Transfers by tag; the subclass's."""

    def __init__(self, endpoint: Endpoint, pool: Pool, *, transfers: int) -> None:
        if endpoint.plane is not pool.plane:
            raise InvalidError("pool", "it is of another plane", fix="the endpoint's plane")
        if not 1 <= transfers <= _wire.TRANSFERS_MAX:
            raise InvalidError("transfers", f"{transfers}", fix=f"1 .. {_wire.TRANSFERS_MAX}")
        if endpoint.channel.slots < 4 * (RECVS + SENDS):
            raise InvalidError(
                "endpoint",
                f"its channel has {endpoint.channel.slots} slots",
                fix=f"{4 * (RECVS + SENDS)} or more",
            )
        self.endpoint = endpoint
        self.pool = pool
        self.peer: Hello | None = None
        self._transfers = transfers
        self._channel = endpoint.channel
        self._loop = asyncio.get_running_loop()
        self._failure: DmaplaneError | None = None
        self._closed = False
        self._task: asyncio.Task[None] | None = None
        self._over = asyncio.Event()
        self._watch: Watch | None = None
        self._will_pump = self._will_flush = False  # a turn is on its way there
        self._threads: concurrent.futures.ThreadPoolExecutor | None = None
        self._jobs: set[asyncio.Future[Any]] = set()
        self._greeted: asyncio.Future[None] = self._loop.create_future()
        self._told = False
        self._unfit: LayoutError | None = None
        self._is_ready = True
        self._outbox: collections.deque[bytes] = collections.deque()
        self._flushed = 0  # messages that left it, in all
        self._free_sends = list(range(SENDS))
        self._unposted_recvs: list[int] = []
        self._all_said = asyncio.Event()
        self._is_leaving = False
        self._heard_bye = False
        self._says: Waiting[bytes] = Waiting()
        self._read = [0, 0]  # asks and says given to who reads them, in all
        self._read_told = [0, 0]
        self._spoken = [0, 0]  # asks and says sent, in all
        self._granted = [0, 0]  # of these, read by the peer
        self._room = asyncio.Event()
        self._buffer = endpoint.plane.buffer((RECVS + SENDS) * _wire.MESSAGE_BYTES_MAX)
        self._memory: npt.NDArray[np.uint8] | None = self._buffer.numpy()

    # ---- the beginning

    async def _begin(self, hello: Hello, timeout: float | None) -> None:
        """Says hello, and waits for the peer's; whatever goes wrong closes all of it."""
        try:
            self._watch = Watch(self._channel, self._on_turn)
            self._recvs = self._message_rows("recv", RECV, 0, RECVS)
            self._sends = self._message_rows("send", SEND, RECVS, SENDS)
            self._channel.push(self._recvs)
            self._say(Kind.HELLO, hello.encode())
            self._task = self._loop.create_task(self._lasts())
            try:
                await asyncio.wait_for(asyncio.shield(self._greeted), timeout)
            except asyncio.TimeoutError:
                raise TimedOutError(
                    "the peer did not say hello in time; does it open a "
                    f"{'Receiver' if self.role is Role.SENDER else 'Sender'} there?",
                    errno=errno.ETIMEDOUT,
                ) from None
        except BaseException:
            self.close()
            await self._leave()
            raise

    def _message_rows(
        self, operation: Literal["send", "recv"], kind: int, first: int, count: int
    ) -> Rows:
        """A row for each slot of the buffer, to be used again and again."""
        slots = np.arange(count)
        return self.endpoint.rows(
            operation,
            self._buffer,
            local_offsets=(slots + first) * _wire.MESSAGE_BYTES_MAX,
            lengths=_wire.MESSAGE_BYTES_MAX,
            user_data=slots | (kind << KIND_SHIFT),
        )

    def _meet(self, hello: Hello) -> None:
        """The peer's HELLO; LayoutError if the caches cannot be bridged."""
        if hello.role is self.role:
            raise ProtocolError(
                f"both sides are a {self.role.name.lower()}; one has to be the other"
            )
        self.peer = hello
        try:
            self._met(hello)
        except LayoutError as unfit:
            self._unfit = unfit

    def _greet_if_ready(self) -> None:
        """Open, or refused, when the peer's hello is here and ours is there: so both know."""
        if self.peer is None or not self._told or self._greeted.done():
            return
        if self._unfit is not None:
            raise self._unfit
        if self._is_ready:
            self._greeted.set_result(None)

    # ---- what subclasses do

    @abc.abstractmethod
    def _met(self, hello: Hello) -> None:
        """Makes a plan of both layouts."""

    @abc.abstractmethod
    def _heard(self, message: Message) -> None:
        """A message that is about transfers."""

    @abc.abstractmethod
    def _landed(self, immediates: npt.NDArray[np.uint32]) -> None:
        """Immediates of the peer."""

    @abc.abstractmethod
    def _wrote(self, rows: Rows) -> None:
        """Completions of rows of kind WRITE."""

    @abc.abstractmethod
    def _pump(self) -> None:
        """Whatever can be begun now."""

    @abc.abstractmethod
    def _patience(self) -> int:
        """So many completions or immediates are worth a turn; a message always is."""

    @abc.abstractmethod
    def _ended(self, failure: DmaplaneError) -> None:
        """The endpoint is closed: every transfer ends with @failure."""

    # ---- turns

    def _on_turn(self) -> int:
        """A turn, and how many completions are worth the next one."""
        try:
            self._will_pump = self._will_flush = True
            self._turn()
        except DmaplaneError as failure:
            self._end(failure)
        except BaseException as failure:
            self._end(ClosedError(f"the conversation broke off: {failure!r}"))
            raise
        finally:
            self._will_pump = self._will_flush = False
        # Messages that have gone out are not worth a turn, but to who waits for that.
        waits = self._closed or self._outbox or self._is_leaving or not self._greeted.done()
        return 1 if waits else self._patience()

    def _turn(self) -> None:
        lost, rows, immediates = self.endpoint._taken()
        if len(immediates):
            self._landed(immediates["immediate"])
        if len(rows):
            self._dispatch(rows)
        if lost is not None:
            raise lost
        self._flush()  # messages go ahead of what is posted now
        self._will_pump = False
        self._pump()
        self._flush()
        self._will_flush = False
        # Last, and while bytes come only when few are left: who pushes may have to move some.
        if len(self._unposted_recvs) >= (RECVS // 2 if self._open else 1):
            self._channel.push(self._recvs[self._unposted_recvs])
            self._unposted_recvs.clear()

    def _dispatch(self, rows: Rows) -> None:
        kinds = rows["user_data"] >> np.uint64(KIND_SHIFT)
        writes = kinds == WRITE
        if writes.all():
            self._wrote(rows)
            return
        if writes.any():
            self._wrote(rows[writes])
        for at in np.flatnonzero(~writes).tolist():
            row = rows[at]
            slot, result = int(row["user_data"]) & _SLOT, int(row["result"])
            if int(kinds[at]) == SEND:
                self._sent(slot, result)
            else:
                self._received(slot, result, int(row["length_bytes"]))

    def _sent(self, slot: int, result: int) -> None:
        self._free_sends.append(slot)
        if result:
            raise self._broken("send", result)
        self._told = True
        self._greet_if_ready()
        if not self._outbox and len(self._free_sends) == SENDS:
            self._all_said.set()

    def _received(self, slot: int, result: int, length: int) -> None:
        if result == -errno.EOVERFLOW:
            raise ProtocolError(f"a message longer than {_wire.MESSAGE_BYTES_MAX} bytes")
        if result:
            raise self._broken("recv", result)
        assert self._memory is not None
        start = slot * _wire.MESSAGE_BYTES_MAX
        message = _wire.unpack(self._memory[start : start + length].tobytes())
        self._unposted_recvs.append(slot)
        if (self.peer is None) != (message.kind is Kind.HELLO):
            raise ProtocolError(f"{message.kind.name} out of turn; HELLO comes first, and once")
        if message.kind is Kind.HELLO:
            self._meet(Hello.decode(message.body))
            self._greet_if_ready()
        elif message.kind is Kind.SAY:
            if len(message.body) > _wire.PAYLOAD_BYTES_MAX:
                raise ProtocolError(f"SAY of {len(message.body)} bytes")
            self._bounded(self._says, "says")
            self._says.put(message.body)
        elif message.kind is Kind.GRANT:
            self._grant(_wire.decode_grant(message.body))
        elif message.kind is Kind.BYE:
            self._heard_bye = True
        else:
            self._heard(message)

    def _broken(self, what: str, result: int) -> DmaplaneError:
        return self.endpoint.lost or error_from(result, what)

    # ---- saying

    def _say(self, kind: Kind, body: bytes = b"", *, tag: int = 0, serial: int = 0) -> None:
        self._outbox.append(_wire.pack(kind, body, tag=tag, serial=serial))
        if not self._will_flush:
            self._ring()

    def _ring(self) -> None:
        """A turn follows; one that has yet to pump sees what the caller has done."""
        if self._watch is not None and not self._will_pump:
            self._watch.ring()

    def _flush(self) -> None:
        assert self._memory is not None
        while self._outbox and self._free_sends:
            said, slot = self._outbox[0], self._free_sends[-1]
            start = (RECVS + slot) * _wire.MESSAGE_BYTES_MAX
            self._memory[start : start + len(said)] = np.frombuffer(said, dtype=np.uint8)
            row = self._sends[slot : slot + 1]
            row["length_bytes"] = len(said)
            try:
                self._channel.push_nowait(row)
            except WouldBlock:
                return  # a completion rings, and makes room
            self._outbox.popleft()
            self._flushed += 1
            self._free_sends.pop()

    def _bounded(self, waiting: Waiting[Any], what: str) -> None:
        if len(waiting) >= _wire.ASKS_MAX:
            raise ProtocolError(f"more than {_wire.ASKS_MAX} {what} before the first was read")

    def _grant(self, told: tuple[int, int]) -> None:
        for which in (0, 1):
            more = (told[which] - self._granted[which]) & 0xFFFFFFFF
            if more > self._spoken[which] - self._granted[which]:
                raise ProtocolError("GRANT of what was never sent")
            self._granted[which] += more
        self._room.set()

    def _was_read(self, which: int) -> None:
        self._read[which] += 1
        if self._read[which] - self._read_told[which] >= _GRANT_EVERY:
            self._read_told = list(self._read)
            self._say(Kind.GRANT, _wire.encode_grant(*self._read))

    async def _may_speak(self, which: int) -> None:
        """Until the peer has room for one more ASK or SAY: said, and counted, before any await."""
        self._check()
        while self._spoken[which] - self._granted[which] >= _wire.ASKS_MAX:
            self._room.clear()
            await self._room.wait()
            self._check()

    async def say(self, payload: bytes) -> None:
        """Sends opaque bytes, at most 64 KiB, to who iterates says() there."""
        said = _wire.checked_payload(payload)
        await self._may_speak(1)
        self._spoken[1] += 1
        self._say(Kind.SAY, said)

    async def says(self) -> AsyncIterator[bytes]:
        """What the peer says, in order, until it closes. Unread, 256 of them make it wait."""
        while True:
            try:
                said = await self._says.get()
            except StopAsyncIteration:
                return
            self._was_read(1)
            yield said

    # ---- work on bytes, in a thread

    def _start_job(self, work: Callable[[], T], then: Callable[[T], None]) -> None:
        """Has the thread do @work, and gives what came of it to @then, in a turn's place.

        A turn follows if @then rings for it.
        """
        if self._threads is None:
            self._threads = concurrent.futures.ThreadPoolExecutor(1, "dmaplane-kv")
        future = self._loop.run_in_executor(self._threads, work)
        self._jobs.add(future)

        def done(finished: asyncio.Future[T]) -> None:
            self._jobs.discard(finished)
            if finished.cancelled():
                return
            failure = finished.exception()
            if self._closed:
                return
            try:
                if failure is not None:
                    raise failure
                then(finished.result())
            except DmaplaneError as told:
                self._end(told)
            except BaseException as bug:
                self._end(ClosedError(f"the conversation broke off: {bug!r}"))
                raise

        future.add_done_callback(done)

    # ---- the end

    @property
    def lost(self) -> DmaplaneError | None:
        """Why it ended, or None while it has not."""
        return self._failure

    @property
    def closed(self) -> bool:
        """True once it has ended, for whatever reason."""
        return self._closed

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Ends it, and the endpoint; idempotent. Transfers that are not done fail.

        When it returns nothing touches the leases any more that were given to it. The end of
        `async with` says goodbye first: who iterates there sees an end, and else an error.
        """
        self._end(ClosedError(f"this {type(self).__name__} is closed"))

    def _end(self, failure: DmaplaneError) -> None:
        if self._closed:
            return
        self._closed, self._failure = True, failure
        if self._watch is not None:
            self._watch.close()
        self._over.set()
        self.endpoint.close()
        self._ended(failure)
        self._memory = None
        self._buffer.close()
        if not self._greeted.done():
            self._greeted.set_exception(failure)
            self._greeted.exception()  # told to whoever opens; nobody else has to ask
        self._says.end(self._stops(failure))
        self._room.set()
        self._all_said.set()
        if self._threads is not None:
            self._threads.shutdown(wait=False)

    def _stops(self, failure: DmaplaneError) -> DmaplaneError | None:
        """What who iterates is told: nothing, if somebody closed it in good order."""
        said = self._heard_bye and isinstance(failure, PeerLostError)
        return None if said or isinstance(failure, ClosedError) else failure

    async def _lasts(self) -> None:
        """Ends it with its loop, which cancels this, if nobody else has."""
        try:
            await self._over.wait()
        finally:
            self._end(ClosedError("its event loop has ended"))

    async def _leave(self) -> None:
        """Until the task and the thread have ended too."""
        if self._task is not None and self._task is not asyncio.current_task():
            await asyncio.wait([self._task])
        while self._jobs:
            await asyncio.wait(list(self._jobs))

    async def __aenter__(self) -> Self:
        self._check()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if not self._closed:
                self._all_said.clear()
                self._is_leaving = True
                self._say(Kind.BYE)
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._all_said.wait(), _BYE_S)
        finally:
            self.close()
            await self._leave()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"to {self.endpoint.peer_address}"
        return f"<{type(self).__name__} {state} by {self.endpoint.path}>"

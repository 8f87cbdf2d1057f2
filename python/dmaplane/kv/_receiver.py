# SPDX-License-Identifier: MIT
"""Receiver: the end of a connection that KV caches come to; it asks, accepts and checks.

What may come for a transfer, and what becomes of it (states in _incoming.py):

              immediate     SUMS          ABORTED
  OFFERED     broken        broken        -> ENDED
  COMING      counted       compared      -> ENDED
  ENDING      passed over   passed over   -> ENDED: blocks are let go
  ENDED       broken        passed over   passed over

What comes to a room (_room.py) is COMING when it is announced. Its immediates may be seen ahead of
that, as they may of any message: a tag nobody knows is kept while there is a room it may be for.

broken: the peer does not keep to the protocol, and the connection ends; so do a chunk that comes
twice, an ordinal there is not, numbers that the layouts do not give, a tag that is taken.

Whoever writes into the pool does it through this object's own region. When the connection ends
the region is closed, and only when nothing of it is in flight are blocks let go: a peer that is
alive and lost cannot write into what somebody else has by then.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import time
from typing import TYPE_CHECKING, Final

import numpy as np

from dmaplane._errors import (
    DmaplaneError,
    InvalidError,
    LimitError,
    ProtocolError,
    TimedOutError,
    TransferError,
)
from dmaplane.kv import _pieces, _sums, _wire
from dmaplane.kv._conversation import SENDS, Conversation, Waiting
from dmaplane.kv._incoming import Incoming, State
from dmaplane.kv._plan import compile_plan
from dmaplane.kv._room import Room
from dmaplane.kv._transfer import ReceiverStatistics, failure_of
from dmaplane.kv._wire import Announce, Hello, Kind, Message, Reason, Role

if TYPE_CHECKING:
    import numpy.typing as npt
    from typing_extensions import Self

    from dmaplane._endpoint import Endpoint
    from dmaplane._region import Region
    from dmaplane.kv._lease import Lease
    from dmaplane.kv._plan import Plan
    from dmaplane.kv._pool import Pool

_WITHDRAWN_MAX: Final = 4096
"""Requests called off that are remembered: the oldest is forgotten."""
_LOOK_S: Final = 0.1
"""How often leases of open transfers are looked at while nothing happens."""
_AT_ONCE_BYTES: Final = 256 << 10
"""So much is read in a turn; more by the thread, beside what the peer still copies."""
_FENCE_S: Final = 0.1
"""So long a lost peer's last write is waited for; so often it is asked for afterwards."""
_LEAVE_S: Final = 2.0
_CHUNKS_A_TURN: Final = 32
"""A turn for so many at the latest, even if nobody waits for one of them."""


class Receiver(Conversation):
    """The end that caches come to. `async with await Receiver.open(endpoint, pool) as receiver`.

    `async for incoming in receiver` gives every transfer the peer announces.
    """

    role = Role.RECEIVER

    def __init__(self, endpoint: Endpoint, pool: Pool, region: Region, *, transfers: int) -> None:
        super().__init__(endpoint, pool, transfers=transfers)
        self.plan: Plan | None = None
        self._region = region
        self._first_byte = pool.offset(0)
        self._layer_step = pool.layout.layer_bytes(pool.blocks)
        self._open: dict[int, Incoming] = {}
        """By tag, until ENDED."""
        self._offered: Waiting[Incoming] = Waiting()
        self._newest = 0
        self._withdrawn: collections.OrderedDict[str, None] = collections.OrderedDict()
        self._rooms: dict[int, Room] = {}
        """By number, until something is announced to them, or they are GONE."""
        self._newest_room = 0
        self._early = np.zeros(0, dtype=np.uint32)
        """Immediates of tags that were not announced yet."""
        self._reasons: dict[int, TransferError] = {}
        """Of those that are ENDING, by serial."""
        self._look: asyncio.TimerHandle | None = None
        self._fenced = asyncio.Event()
        self._totals = [0, 0, 0, 0]  # transfers, failed, bytes, chunks

    @classmethod
    async def open(
        cls,
        endpoint: Endpoint,
        pool: Pool,
        *,
        timeout: float | None = 10.0,
        transfers: int = 64,
    ) -> Self:
        """Meets the Sender at the other end of @endpoint, which is this object's from here on.

        @transfers: how many the peer may have open at once, accepted or not.
        LayoutError, at both ends, with all differences, if no plan leads from layout to layout.
        TimedOutError if nobody says hello.
        """
        region = pool.buffer.region("write")
        try:
            made = cls(endpoint, pool, region, transfers=transfers)
        except BaseException:
            region.close()
            raise
        hello = Hello(
            role=Role.RECEIVER,
            layout=pool.layout,
            blocks=pool.blocks,
            transfers=transfers,
            layer_bytes=made._layer_step,
            first_byte=made._first_byte,
            window_bytes=endpoint.window_bytes,
            key=region.key,
        )
        await made._begin(hello, timeout)
        return made

    def _met(self, hello: Hello) -> None:
        self.plan = compile_plan(hello.layout, self.pool.layout, here="destination")

    # ---- for callers

    async def ask(
        self,
        request: str,
        payload: bytes = b"",
        *,
        lease: Lease | None = None,
        publish: bool = True,
    ) -> None:
        """Asks the peer for the cache of @request; it comes as an Incoming of that name.

        @payload: opaque bytes, at most 64 KiB. Waits while the peer has 256 unread.
        @lease: it goes to the first blocks of that, from here on and without accept(), if they
        are enough; else it is announced and waits. @publish: as for accept().
        """
        if lease is None:
            body = _wire.encode_ask(request, payload)
            await self._may_speak(0)
            number = 0
        else:
            offered = lease.blocks[: _wire.ROOM_BLOCKS_MAX]
            body = _wire.encode_ask(request, payload, offered)
            await self._may_speak(0)
            number = self._make_room(request, lease, len(offered), publish=publish)
        self._withdrawn.pop(request, None)
        self._spoken[0] += 1
        self._say(Kind.ASK, body, serial=number)

    def _make_room(self, request: str, lease: Lease, count: int, *, publish: bool) -> int:
        """Its number; @lease is lent to it."""
        rooms = self._rooms.values()
        if lease.pool is not self.pool:
            raise InvalidError("lease", "it is of another pool", fix="this receiver's")
        if any(each.request == request and not each.called_off for each in rooms):
            raise InvalidError("request", f"{request} has a room", fix="withdraw() it first")
        taken = [each.lease for each in rooms] + [each._lease for each in self._open.values()]
        if any(each is lease for each in taken):
            raise InvalidError("lease", "something else comes to it", fix="one of its own")
        if len(rooms) >= _wire.ROOMS_MAX or count > _wire.ROOMS_BLOCKS_MAX - sum(
            each.count for each in rooms
        ):
            raise LimitError(
                f"{len(rooms)} rooms are open; {_wire.ROOMS_MAX} and {_wire.ROOMS_BLOCKS_MAX} "
                "blocks at most: ask without a lease, or when some of it has come"
            )
        number, peer = self._newest_room + 1, self.endpoint.peer_address
        room = Room(number, request, lease, count, publish=publish, peer=peer)
        lease.lend(room)
        try:
            lease.fill()
        except BaseException:
            lease.let_go(room)
            raise
        self._newest_room, self._rooms[number] = number, room
        return number

    async def withdraw(self, request: str) -> None:
        """What was asked is not wanted: the peer is told, and refused if it sends it yet.

        A lease it was asked with ends ("aborted"); its blocks are free when the peer has said
        that it writes none of them.
        """
        self._check()
        body = _wire.encode_ask(request)
        stopped = False
        for incoming in (*self._offered, *self._open.values()):
            if incoming.request != request:
                continue
            unseen = self._offered.drop(incoming)
            if incoming._state is State.OFFERED or (unseen and not incoming.ended):
                incoming.refuse("withdrawn")
                stopped = True
        for room in self._rooms.values():
            if room.request == request and not room.called_off:
                room.called_off, stopped = True, False
                room.lease.quarantine(room, why="withdrawn")
        if stopped:
            return
        self._withdrawn[request] = None
        if len(self._withdrawn) > _WITHDRAWN_MAX:
            self._withdrawn.popitem(last=False)
        self._say(Kind.WITHDRAW, body)

    def __aiter__(self) -> Self:
        """Every transfer the peer announces, in order, until it closes."""
        return self

    async def __anext__(self) -> Incoming:
        return await self._offered.get()

    def statistics(self) -> ReceiverStatistics:
        """Since it was opened."""
        return ReceiverStatistics(
            transfers=self._totals[0],
            failed=self._totals[1],
            bytes=self._totals[2],
            chunks=self._totals[3],
            waiting=len(self._offered),
            open=len(self._open),
        )

    # ---- what the peer says

    def _wrote(self, rows: npt.NDArray[np.void]) -> None:
        raise AssertionError("a receiver writes nothing")

    def _heard(self, message: Message) -> None:
        if message.kind is Kind.ANNOUNCE:
            self._heard_announce(message)
            return
        if message.kind is Kind.GONE:
            room = self._room_of(message.serial)
            del self._rooms[room.number]
            self.pool.let_go(room)
            self._land_early()
            return
        if message.kind not in (Kind.SUMS, Kind.ABORTED):
            raise ProtocolError(f"{message.kind.name} is not the sender's to say")
        incoming = self._open.get(message.tag)
        if incoming is None or incoming._serial != message.serial:
            if not 0 < message.serial <= self._newest:
                raise ProtocolError(f"{message.kind.name} about a transfer that never was")
            return  # it has ended here while this was on its way
        if message.kind is Kind.ABORTED:
            reason = Reason.decode(message.kind, message.body)
            self._finish(incoming, failure_of(incoming.request, reason))
        elif incoming._state is State.COMING:
            self._heard_sums(incoming, message.body)
        elif incoming._state is State.OFFERED:
            raise ProtocolError("SUMS of a transfer that was not accepted")

    def _heard_announce(self, message: Message) -> None:
        announce, number = Announce.decode(message.body)
        plan = self.plan
        assert plan is not None
        if message.tag in self._open or message.serial != self._newest + 1:
            raise ProtocolError("ANNOUNCE with a tag or serial that is taken")
        if len(self._open) >= self._transfers:
            raise ProtocolError(f"more than {self._transfers} transfers at once")
        if (
            announce.layers != self.pool.layout.layers
            or announce.layer_bytes != _pieces.layer_bytes(plan, announce.tokens)
            or self.pool.layout.blocks_for(announce.tokens) > self.pool.blocks
        ):
            raise ProtocolError("ANNOUNCE of what neither layout has")
        self._newest = message.serial
        self._totals[0] += 1
        incoming = Incoming(self, announce, tag=message.tag, serial=message.serial)
        self._open[message.tag] = incoming
        if number:
            room = self._room_of(number)
            if room.request != announce.request or room.count < incoming.blocks:
                raise ProtocolError(f"ANNOUNCE of {incoming} to the {room}, where it cannot go")
            incoming._enter(self._rooms.pop(number))
            withdrawn = room.called_off
        else:
            withdrawn = announce.request in self._withdrawn
        if withdrawn:
            self._withdrawn.pop(announce.request, None)
            self._stop(incoming, Reason("withdrawn"))
        else:
            self._offered.put(incoming)
        if number:
            self._land_early()

    def _room_of(self, number: int) -> Room:
        room = self._rooms.get(number)
        if room is None:
            raise ProtocolError(f"there is no room {number}")
        return room

    def _landed(self, immediates: npt.NDArray[np.uint32]) -> None:
        tags, ordinals = _wire.tags_and_ordinals(immediates)
        unknown: list[int] = []
        first = int(tags[0])
        several = not (tags == first).all()
        for tag in np.unique(tags).tolist() if several else (first,):
            incoming = self._open.get(tag)
            if incoming is None and len(unknown) < len(self._rooms):
                unknown.append(tag)
                continue
            if incoming is None or incoming._state is State.OFFERED:
                raise ProtocolError(f"a chunk of tag {tag}, which was not accepted")
            if incoming._state is State.ENDING:
                continue
            mine = ordinals[tags == tag] if several else ordinals
            self._new(incoming._landed, mine, "a chunk")
            if not incoming._announce.checksum:
                self._count(incoming, mine)
            else:
                self._compare(incoming, mine[incoming._summed[mine]])
        if unknown:
            self._early = np.append(self._early, immediates[np.isin(tags, unknown)])
            if len(self._early) > _wire.CHUNKS_MAX:
                raise ProtocolError(f"{len(self._early)} chunks that were never announced")

    def _land_early(self) -> None:
        """Those that were seen ahead of their announcement, if that was heard now."""
        early, self._early = self._early, self._early[:0]
        if len(early):
            self._landed(early)

    def _heard_sums(self, incoming: Incoming, body: bytes) -> None:
        if not incoming._announce.checksum:
            raise ProtocolError("SUMS of a transfer without")
        told = _wire.decode_sums(body)
        ordinals = told["ordinal"].astype(np.int64)
        self._new(incoming._summed, ordinals, "a checksum")
        incoming._sums[ordinals] = told["crc"]
        self._compare(incoming, ordinals[incoming._landed[ordinals]])

    @staticmethod
    def _new(seen: npt.NDArray[np.bool_], ordinals: npt.NDArray[np.int64], what: str) -> None:
        """Marks @ordinals as seen: none was, none comes twice, none is beyond."""
        if int(ordinals.max()) >= len(seen):
            raise ProtocolError(f"{what} of ordinal {int(ordinals.max())} of {len(seen)}")
        rise = (ordinals[1:] > ordinals[:-1]).all()
        if seen[ordinals].any() or not (rise or len(np.unique(ordinals)) == len(ordinals)):
            raise ProtocolError(f"{what} that came twice")
        seen[ordinals] = True

    # ---- checking

    def _compare(self, incoming: Incoming, ordinals: npt.NDArray[np.int64]) -> None:
        """Has the thread read these chunks, behind those that wait for it."""
        if len(ordinals):
            incoming._unchecked.append(ordinals)
        if not incoming._unchecked or incoming._is_checking or incoming._state is not State.COMING:
            return
        some = np.concatenate(incoming._unchecked)
        incoming._unchecked.clear()
        incoming._is_checking = True
        if len(some) * incoming._announce.chunk_bytes <= _AT_ONCE_BYTES and not self._jobs:
            self._compared(incoming, some, *self._crcs(incoming, some))
        else:
            self._start_job(
                lambda: self._crcs(incoming, some),
                lambda found: self._compared(incoming, some, *found),
            )

    def _crcs(
        self, incoming: Incoming, some: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.uint32], float]:
        """CRC32C of these chunks as they are here, and how long that took."""
        began = time.monotonic()
        offsets, lengths, starts = incoming._runs(
            some, first_byte=self._first_byte, layer_step=self._layer_step
        )
        memory = self.pool.buffer.numpy()
        found = _sums.of_memory(memory.ctypes.data, offsets, lengths, starts)
        return found, time.monotonic() - began

    def _compared(
        self,
        incoming: Incoming,
        some: npt.NDArray[np.int64],
        found: npt.NDArray[np.uint32],
        seconds: float,
    ) -> None:
        incoming._is_checking = False
        incoming._checksum_seconds += seconds
        if incoming._state is not State.COMING:
            return
        wrong = np.flatnonzero(found != incoming._sums[some])
        if len(wrong):
            cause = "its CRC32C does not match: it changed in the receiver's memory"
            self._stop(incoming, Reason(cause, int(some[wrong[0]])))
            return
        self._count(incoming, some)
        self._compare(incoming, some[:0])

    def _count(self, incoming: Incoming, ordinals: npt.NDArray[np.int64]) -> None:
        self._totals[3] += len(ordinals)
        if not incoming._count(ordinals):
            return
        lease = incoming._lease
        assert lease is not None
        try:
            lease.check()
            if incoming._publish:
                lease.publish()
        except DmaplaneError as failure:
            self._stop(incoming, Reason(f"it could not be published: {failure}"))
            return
        self._tell(incoming, Kind.DONE)
        self._totals[2] += incoming.statistics.bytes
        self._finish(incoming, None)

    # ---- turns

    def _pump(self) -> None:
        if self._look is not None:
            self._look.cancel()
            self._look = None
        coming = [each for each in self._open.values() if each._state is State.COMING]
        for incoming in coming:
            ended = _end_of(incoming._lease)
            if ended:
                self._stop(incoming, Reason(f"the lease of its destination has {ended}"))
        for room in self._rooms.values():
            if not room.called_off and _end_of(room.lease):
                room.called_off = True
                self._say(Kind.WITHDRAW, _wire.encode_ask(room.request))
        if coming or self._rooms:
            self._look = self._loop.call_later(_LOOK_S, self._ring)

    def _patience(self) -> int:
        patience = max(1, min(_CHUNKS_A_TURN, self._channel.completion_slots // 4))
        for incoming in self._open.values():
            if incoming._state is not State.COMING:
                patience = 1
            elif not incoming._announce.checksum:  # else nobody can go on before its sums are here
                patience = min(patience, max(1, incoming._missing()))
        return patience if self._open else SENDS

    def _tell(self, incoming: Incoming, kind: Kind, body: bytes = b"") -> None:
        self._say(kind, body, tag=incoming._tag, serial=incoming._serial)

    # ---- the end of one

    def _reason_of(self, incoming: Incoming) -> TransferError | None:
        """Why it is ENDING, if it is."""
        return self._reasons.get(incoming._serial)

    def _stop(self, incoming: Incoming, reason: Reason) -> None:
        """Begins to end it; nothing, if that has begun."""
        if incoming._state is State.OFFERED:
            self._offered.drop(incoming)
            self._tell(incoming, Kind.REFUSE, reason.encode())
            self._finish(incoming, failure_of(incoming.request, reason))
        elif incoming._state is State.COMING:
            incoming._state = State.ENDING
            self._reasons[incoming._serial] = failure_of(incoming.request, reason)
            self._quarantine(incoming, reason.cause)
            self._tell(incoming, Kind.ABORT, reason.encode())
            incoming._ring()

    def _quarantine(self, incoming: Incoming, why: str) -> None:
        lease = incoming._lease
        assert lease is not None
        shown = "".join(each if each.isprintable() else " " for each in why)
        lease.quarantine(incoming._borrower, why=shown[:256])

    def _finish(self, incoming: Incoming, failure: TransferError | None) -> None:
        """The peer writes nothing of it any more: lets go."""
        was = incoming._state
        if was is State.ENDED:
            return
        incoming._state = State.ENDED
        self._open.pop(incoming._tag, None)
        if was is State.OFFERED:
            self._offered.drop(incoming)
        failure = self._reasons.pop(incoming._serial, failure)
        if incoming._lease is not None:
            if failure is not None and was is State.COMING:
                self._quarantine(incoming, failure.cause)
            self.pool.let_go(incoming._borrower)
        incoming._took = time.monotonic() - incoming._began
        if failure is not None:
            self._totals[1] += 1
        incoming._outcome.set(failure)
        incoming._ring()
        self._ring()

    def _ended(self, failure: DmaplaneError) -> None:
        if self._look is not None:
            self._look.cancel()
        for incoming in list(self._open.values()):
            if incoming._state is State.COMING:
                incoming._state = State.ENDING
                self._quarantine(incoming, str(failure))
        for room in self._rooms.values():
            room.lease.quarantine(room, why="the connection has ended")
        self._fence(failure)
        for incoming in list(
            self._open.values()
        ):  # the peer may still write, and is not waited for
            told = failure_of(incoming.request, failure)
            incoming._outcome.set(self._reasons.get(incoming._serial, told))
            incoming._ring()
        self._offered.end(self._stops(failure))

    def _fence(self, failure: DmaplaneError) -> None:
        """Lets go of all blocks once nothing of the peer is in flight on them, whenever that is.

        A process that was stopped in the middle of a write finishes it when it goes on: until then,
        or until it is dead, the blocks stay in quarantine.
        """
        if not self._is_fenced():
            if not self._loop.is_closed():
                self._loop.call_later(_FENCE_S, self._fence, failure)
            return
        for incoming in list(self._open.values()):
            self._finish(incoming, failure_of(incoming.request, failure))
        for room in self._rooms.values():
            self.pool.let_go(room)
        self._rooms.clear()
        self._fenced.set()

    def _is_fenced(self) -> bool:
        if not self._region.closed:
            with contextlib.suppress(TimedOutError):
                self._region.destroy(drain=True, timeout=_FENCE_S)
        return self._region.gone

    async def _leave(self) -> None:
        await super()._leave()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._fenced.wait(), _LEAVE_S)


def _end_of(lease: Lease | None) -> str:
    """How it ended, if it has."""
    if lease is None or (lease.state == "live" and not lease.expired):
        return ""
    return "expired" if lease.expired else f"ended ({lease.state})"

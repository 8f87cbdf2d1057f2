# SPDX-License-Identifier: MIT
"""Sender: the end of a connection where KV caches are; it announces them and writes them.

What may come for a transfer, and what becomes of it (states in _outgoing.py):

              ACCEPT, room   REFUSE     DONE               ABORT
  ANNOUNCED   -> GOING       -> ENDED   broken             -> ENDING
  GOING       broken         broken     -> ENDED when all  -> ENDING
                                        was posted, else
                                        broken
  ENDING      passed over    passed     passed over        passed over
  ENDED       passed over, as long as the serial was ever given out

room: the receiver has said with its ASK where the transfer goes, and ACCEPT never comes: it is
GOING at once, and its ANNOUNCE leaves ahead of its chunks.

broken: the peer does not keep to the protocol, and the connection ends. Whatever state it is
in, the end of the connection ends it, after the endpoint is closed: so nothing is in flight.

A turn posts chunks until `window` of them are under way. Transfers of the highest priority there is
take turns, a chunk each; one alone posts what there is room for in one go.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import itertools
import time
from typing import TYPE_CHECKING, Final

import numpy as np

from dmaplane._endpoint import Endpoint
from dmaplane._errors import (
    ClosedError,
    DmaplaneError,
    InvalidError,
    NotFoundError,
    ProtocolError,
    TimedOutError,
    TransferError,
    error_from,
)
from dmaplane.kv import _pieces, _sums, _wire
from dmaplane.kv._ask import Ask, Asks, Offer
from dmaplane.kv._conversation import SENDS, Conversation
from dmaplane.kv._outgoing import Outgoing, State, announce_of
from dmaplane.kv._plan import compile_plan
from dmaplane.kv._pool import Pool
from dmaplane.kv._route import Routes
from dmaplane.kv._transfer import SenderStatistics, failure_of
from dmaplane.kv._window import Window
from dmaplane.kv._wire import Hello, Kind, Message, Reason, Role

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import numpy.typing as npt
    from typing_extensions import Self

    from dmaplane._region import RemoteRegion
    from dmaplane.kv._lease import Lease
    from dmaplane.kv._plan import Plan

CHUNK_BYTES: Final = 1 << 20
WINDOW: Final = 16
_SHARE_OF_WINDOW: Final = 4
"""A chunk is at most this part of the bytes the peer grants at once, so that several can go."""
_REFILL: Final = 4
"""More is posted when this part of the window is free: a turn each chunk would cost more."""
_CANCEL_S: Final = 2.0


class Sender(Conversation):
    """The end that has the caches. `async with await Sender.open(endpoint, pool) as sender`."""

    role = Role.SENDER

    def __init__(
        self, endpoint: Endpoint, pool: Pool, *, window: int, chunk_bytes: int, transfers: int
    ) -> None:
        super().__init__(endpoint, pool, transfers=transfers)
        self.plan: Plan | None = None
        self.chunk_bytes = chunk_bytes
        self._is_ready = False
        self._routes: Routes | None = None
        self._arrivals = itertools.count()
        self._next_tag = 0
        self._newest = 0
        self._queue: list[tuple[int, int, Outgoing]] = []
        self._open: dict[int, Outgoing] = {}
        """By tag: from ANNOUNCED to ENDED."""
        self._announced = 0
        """Messages up to the last ANNOUNCE whose chunks are not to be ahead of it."""
        self._turns: list[Outgoing] = []
        """Of these, the ones that are GOING; whose turn it is comes first."""
        self._window = Window(self._channel, window)
        self._asks = Asks()
        self._totals = [0, 0, 0, 0]  # transfers, failed, bytes, chunks

    @classmethod
    async def open(
        cls,
        endpoint: Endpoint,
        pool: Pool,
        *,
        timeout: float | None = 10.0,
        window: int = WINDOW,
        chunk_bytes: int = CHUNK_BYTES,
        transfers: int = 64,
    ) -> Self:
        """Meets the Receiver at the other end of @endpoint, which is this object's from here on.

        @window: chunks under way at once. @chunk_bytes: of a chunk, or less where the peer's
        window_bytes are few. @transfers: how many may be open at once; the rest wait here.
        LayoutError, at both ends, with all differences, if no plan leads from layout to layout.
        TimedOutError if nobody says hello.
        """
        if window < 1:
            raise InvalidError("window", f"{window}", fix="1 or more chunks")
        if not _wire.CHUNK_BYTES_MIN <= chunk_bytes <= _wire.CHUNK_BYTES_MAX:
            raise InvalidError(
                "chunk_bytes",
                f"{chunk_bytes}",
                fix=f"{_wire.CHUNK_BYTES_MIN} .. {_wire.CHUNK_BYTES_MAX}",
            )
        made = cls(endpoint, pool, window=window, chunk_bytes=chunk_bytes, transfers=transfers)
        hello = Hello(
            role=Role.SENDER,
            layout=pool.layout,
            blocks=pool.blocks,
            transfers=transfers,
            layer_bytes=pool.layout.layer_bytes(pool.blocks),
            first_byte=pool.offset(0),
            window_bytes=endpoint.window_bytes,
            key=b"",
        )
        await made._begin(hello, timeout)
        return made

    def _met(self, hello: Hello) -> None:
        self.plan = compile_plan(self.pool.layout, hello.layout, here="source")
        granted = max(hello.window_bytes // _SHARE_OF_WINDOW, _wire.CHUNK_BYTES_MIN)
        self.chunk_bytes = min(self.chunk_bytes, granted)
        self._start_job(lambda: self.endpoint.region(hello.key), self._imported)

    def _imported(self, remote: RemoteRegion) -> None:
        hello = self.peer
        assert hello is not None
        if len(remote) < hello.first_byte + hello.layer_bytes * hello.layout.layers:
            raise ProtocolError("HELLO with a region that is shorter than its layers")
        assert self.plan is not None
        self._routes = Routes(self.endpoint, self.pool, self.plan, hello, remote)
        self._is_ready = True
        self._greet_if_ready()

    # ---- for callers

    def send(
        self,
        request: str,
        lease: Lease,
        tokens: int,
        *,
        metadata: bytes = b"",
        trace: str = "",
        priority: int = 0,
        checksum: bool = True,
        ready: bool = True,
        source_sums: bool = False,
    ) -> Outgoing:
        """Announces the cache of @tokens in the first blocks of @lease; gives it at once.

        @metadata: opaque bytes, at most 64 KiB, for who receives. @priority: higher goes first.
        @checksum: CRC32C of every chunk, compared there with what landed. @ready: False if
        layers go out as outgoing.ready(layer) says; then @source_sums may have each summed at that
        moment and compared after it was copied. By the loop's thread.
        """
        self._check()
        plan, peer = self.plan, self.peer
        assert plan is not None
        assert peer is not None
        announce = announce_of(
            plan,
            peer,
            request,
            tokens,
            chunk_bytes=self.chunk_bytes,
            metadata=metadata,
            trace=trace,
            priority=priority,
            checksum=checksum,
        )
        if len(lease) < self.pool.layout.blocks_for(tokens):
            raise InvalidError(
                "lease",
                f"{len(lease)} blocks for {tokens} tokens",
                fix=f"{self.pool.layout.blocks_for(tokens)} blocks",
            )
        if source_sums and (ready or not checksum):
            raise InvalidError("source_sums", "nothing to compare", fix="ready=False, checksum")
        outgoing = Outgoing(self, lease, announce, source_sums=source_sums)
        lease.lend(outgoing)
        self._totals[0] += 1
        if ready:
            outgoing._is_ready[:] = True
            outgoing._ready.extend(range(announce.layers))
        heapq.heappush(self._queue, (-priority, next(self._arrivals), outgoing))
        self._ring()
        return outgoing

    async def asks(self) -> AsyncIterator[Ask]:
        """What the peer asks for, in order, until it closes. Unread, 256 of them make it wait."""
        while True:
            try:
                asked = await self._asks.waiting.get()
            except StopAsyncIteration:
                return
            self._was_read(0)
            yield asked

    def statistics(self) -> SenderStatistics:
        """Since it was opened."""
        return SenderStatistics(
            transfers=self._totals[0],
            failed=self._totals[1],
            bytes=self._totals[2],
            chunks=self._totals[3],
            queued=len(self._queue),
            open=len(self._open),
            chunks_under_way=self._window.chunks,
        )

    # ---- what the peer says

    def _landed(self, immediates: npt.NDArray[np.uint32]) -> None:
        raise ProtocolError("immediates at the side that sends them")

    def _heard(self, message: Message) -> None:
        if message.kind in (Kind.ASK, Kind.WITHDRAW):
            self._heard_ask(message)
            return
        if message.kind not in (Kind.ACCEPT, Kind.REFUSE, Kind.DONE, Kind.ABORT):
            raise ProtocolError(f"{message.kind.name} is not the receiver's to say")
        outgoing = self._open.get(message.tag)
        if outgoing is None or outgoing._serial != message.serial:
            if not 0 < message.serial <= self._newest:
                raise ProtocolError(f"{message.kind.name} about a transfer that never was")
            return  # it has ended here while this was on its way
        if message.kind is Kind.ABORT:
            self._stop(outgoing, Reason.decode(message.kind, message.body))
        elif outgoing._state is State.ENDING:
            return
        elif message.kind is Kind.DONE:
            self._heard_done(outgoing, message.body)
        elif outgoing._state is not State.ANNOUNCED:
            raise ProtocolError(f"{message.kind.name} of a transfer that goes on already")
        elif message.kind is Kind.ACCEPT:
            self._heard_accept(outgoing, message.body)
        else:
            reason = Reason.decode(message.kind, message.body)
            self._finish(outgoing, TransferError(outgoing.request, f"refused: {reason.cause}"))

    def _heard_ask(self, message: Message) -> None:
        request, payload, room = _wire.decode_ask(message.kind, message.body)
        if message.kind is Kind.ASK:
            self._bounded(self._asks.waiting, "asks")
            if message.serial:
                assert self.peer is not None
                offer = Offer(message.serial, room)
                self._asks.offer(request, offer, blocks_max=self.peer.blocks)
            self._asks.put(Ask(request, payload))
            return
        if self._asks.withdraw(request):
            self._was_read(0)
        offered = self._asks.take(request)
        if offered is not None:
            self._say(Kind.GONE, serial=offered.number)

    def _heard_done(self, outgoing: Outgoing, body: bytes) -> None:
        if body or outgoing._unposted or outgoing._heard_done:
            raise ProtocolError(f"DONE of {outgoing} that is not")
        outgoing._heard_done = True
        self._finish_if_done(outgoing)

    def _heard_accept(self, outgoing: Outgoing, body: bytes) -> None:
        plan, peer = self.plan, self.peer
        assert plan is not None
        assert peer is not None
        first, total, blocks = _wire.decode_accept(body)
        parts = outgoing._blocks
        if (
            total != peer.layout.blocks_for(outgoing._announce.tokens)
            or first != sum(map(len, parts))
            or int(blocks.max()) >= peer.blocks
        ):
            raise ProtocolError("ACCEPT of other blocks than were asked for")
        parts.append(blocks)
        if first + len(blocks) < total:
            return
        chosen = np.concatenate(parts)
        parts.clear()
        if (chosen[1:] <= chosen[:-1]).any():
            raise ProtocolError("ACCEPT of blocks that are not rising")
        assert self._routes is not None
        outgoing._route = self._routes.of(outgoing, chosen)
        self._goes(outgoing)

    def _goes(self, outgoing: Outgoing) -> None:
        """It has a route, and the peer knows of it."""
        outgoing._stalls = -self.endpoint.ledger().stalls
        outgoing._state = State.GOING
        self._turns.append(outgoing)

    # ---- turns

    def _pump(self) -> None:
        self._announce_queued()
        for outgoing in self._turns:
            self._take_ready(outgoing)
        self._push()
        window = self._window
        if not window.chunks or window.room >= window.chunks_max // _REFILL:
            self._fill()
            self._push()

    def _push(self) -> None:
        """ANNOUNCE leaves when its first chunks are made: so these are right behind."""
        if self._flushed < self._announced and self._window.waiting:
            self._flush()
        if self._flushed >= self._announced:  # else a completion rings
            self._window.push()

    def _fill(self) -> None:
        """Chunks go into the window until it is full."""
        window = self._window
        while self._turns and window.room > 0 and self.peer is not None:
            ready = [each for each in self._turns if each._postable]
            if not ready:
                return
            highest = max(each.priority for each in ready)
            contenders = [each for each in ready if each.priority == highest]
            chosen = contenders[0]
            if len(contenders) > 1:
                self._turns.remove(chosen)
                self._turns.append(chosen)
            if chosen._lease.expired:
                self._stop(chosen, Reason("the lease of its source has expired"))
                continue
            chunks_max = window.room if len(contenders) == 1 else 1
            is_first = not window.rows
            window.add(chosen._post(window.number(), chunks_max, self.peer.layer_bytes))
            if is_first:  # it is under way while the others are made
                self._push()

    def _patience(self) -> int:
        rows = self._window.rows
        if not rows:
            return SENDS
        if not any(each._unposted or each._announce.checksum for each in self._turns):
            return rows + 1  # they may wait for DONE
        return max(1, min(rows, max(rows // 2, _REFILL)))

    def _announce_queued(self) -> None:
        limit = min(self._transfers, self.peer.transfers if self.peer else 0)
        while self._queue and len(self._open) < limit:
            outgoing = heapq.heappop(self._queue)[2]
            while self._next_tag in self._open:
                self._next_tag = (self._next_tag + 1) % _wire.TAGS_MAX
            outgoing._tag = self._next_tag
            self._next_tag = (self._next_tag + 1) % _wire.TAGS_MAX
            self._open[outgoing._tag] = outgoing
            self._newest += 1
            outgoing._serial = self._newest
            outgoing._state = State.ANNOUNCED
            room = self._enter_room(outgoing)
            self._tell(outgoing, Kind.ANNOUNCE, outgoing._announce.encode(room))
            if room:
                self._announced = self._flushed + len(self._outbox)
                self._goes(outgoing)
            else:
                self._loop.call_soon(self._draft, outgoing)  # when that is on its way

    def _enter_room(self, outgoing: Outgoing) -> int:
        """Its number, if the peer has made room for it; else 0, and it waits for ACCEPT."""
        offer = self._asks.take(outgoing.request)
        if offer is None:
            return 0
        assert self.peer is not None
        needed = self.peer.layout.blocks_for(outgoing._announce.tokens)
        if needed > len(offer.blocks):
            self._say(Kind.GONE, serial=offer.number)
            return 0
        assert self._routes is not None
        outgoing._route = self._routes.of(outgoing, offer.blocks[:needed].astype(np.int64))
        return offer.number

    def _draft(self, outgoing: Outgoing) -> None:
        if outgoing._state is State.ANNOUNCED:
            assert self._routes is not None
            outgoing._draft = self._routes.draft(outgoing)

    def _tell(self, outgoing: Outgoing, kind: Kind, body: bytes = b"") -> None:
        self._say(kind, body, tag=outgoing._tag, serial=outgoing._serial)

    def _take_ready(self, outgoing: Outgoing) -> None:
        """Layers that are ready go to those that can be posted; by way of the stage, if any."""
        route = outgoing._route
        assert route is not None
        while outgoing._ready and (route.stage is None or route.free_slots):
            layer = outgoing._ready.popleft()
            if route.stage is None:
                outgoing._going.append((layer, 0, self.pool.offset(layer)))
            else:
                self._gather(outgoing, layer, route.free_slots.pop())

    def _gather(self, outgoing: Outgoing, layer: int, slot: int) -> None:
        route, plan = outgoing._route, self.plan
        assert route is not None
        assert route.stage is not None
        assert plan is not None
        stage, base, length = route.stage, slot * route.stage_bytes, route.stage_bytes
        tokens = outgoing._announce.tokens
        blocks = outgoing._lease.blocks[: self.pool.layout.blocks_for(tokens)]
        outgoing._slots[layer] = slot
        outgoing._busy += 1

        def gather() -> float:
            began = time.monotonic()
            plan.gather(self.pool.layer(layer), tokens, blocks, stage.numpy()[base : base + length])
            return time.monotonic() - began

        def gathered(seconds: float) -> None:
            outgoing._busy -= 1
            outgoing._gather_seconds += seconds
            outgoing._going.append((layer, 0, base))
            self._finish_if_stopped(outgoing)
            self._ring()

        self._start_job(gather, gathered)

    # ---- what was written

    def _wrote(self, rows: npt.NDArray[np.void]) -> None:
        sums: dict[Outgoing, list[npt.NDArray[np.void]]] = {}
        for written in self._window.complete(rows):
            posting, chunks = written.posting, written.chunks
            outgoing = posting.outgoing
            if written.result:
                self._failed(outgoing, posting.first + written.failed, written.result)
            if outgoing._state is State.GOING and len(chunks):
                if outgoing._announce.checksum:
                    some = posting.told(chunks)
                    if outgoing._source_sums is None:
                        sums.setdefault(outgoing, []).append(some)
                    else:
                        layer = posting.first // outgoing._announce.layer_chunks
                        outgoing._held.setdefault(layer, []).append(some)
                self._totals[3] += len(chunks)
                for layer in outgoing._written(posting.first + chunks):
                    self._layer_written(outgoing, layer)
            self._finish_if_done(outgoing)
            self._finish_if_stopped(outgoing)
        for outgoing, parts in sums.items():
            if outgoing._state is State.GOING:
                self._tell_sums(outgoing, np.concatenate(parts))

    def _failed(self, outgoing: Outgoing, ordinal: int, result: int) -> None:
        """A write did not go well: that ends the transfer, if nothing has yet."""
        if result == -errno.EBADMSG:
            way = f"on the way to {self.endpoint.peer_address} by {self.endpoint.path}"
            cause = f"its CRC32C does not match: it changed {way}"
        else:
            cause = f"it could not be written: {error_from(result, 'write')}"
        self._stop(outgoing, Reason(cause, ordinal))

    def _tell_sums(self, outgoing: Outgoing, sums: npt.NDArray[np.void]) -> None:
        for first in range(0, len(sums), _wire.SUMS_MAX):
            self._tell(outgoing, Kind.SUMS, sums[first : first + _wire.SUMS_MAX].tobytes())

    def _layer_written(self, outgoing: Outgoing, layer: int) -> None:
        route, sums = outgoing._route, outgoing._source_sums
        assert route is not None
        slot = outgoing._slots.pop(layer, None)
        if slot is not None:
            route.free_slots.append(slot)
        if sums is None:
            return
        outgoing._busy += 1

        def compared(found: int) -> None:
            outgoing._busy -= 1
            if found != sums[layer]:
                cause = f"layer {layer} changed in the sender's memory after it was ready"
                self._stop(outgoing, Reason(cause, layer * outgoing._announce.layer_chunks))
            elif outgoing._state is State.GOING:
                self._tell_sums(outgoing, np.concatenate(outgoing._held.pop(layer)))
            self._finish_if_done(outgoing)
            self._finish_if_stopped(outgoing)

        self._start_job(lambda: self._source_sum(outgoing, layer), compared)

    def _source_sum(self, outgoing: Outgoing, layer: int) -> int:
        """CRC32C of what @outgoing takes from that layer; from any thread."""
        plan = self.plan
        assert plan is not None
        began = time.monotonic()
        tokens = outgoing._announce.tokens
        blocks = outgoing._lease.blocks[: self.pool.layout.blocks_for(tokens)]
        near, length = _pieces.source_runs(plan, tokens, blocks)
        memory = self.pool.buffer.numpy()
        address = memory.ctypes.data + self.pool.offset(layer)
        found = _sums.of_memory(address, near, length, np.zeros(1, dtype=np.int64))
        outgoing._checksum_seconds += time.monotonic() - began
        return int(found[0])

    # ---- the end of one

    def _finish_if_done(self, outgoing: Outgoing) -> None:
        if (
            outgoing._state is State.GOING
            and outgoing._heard_done
            and not outgoing._chunks_left
            and not outgoing._busy
        ):
            self._totals[2] += outgoing.statistics.bytes
            self._finish(outgoing, None)

    def _stop(self, outgoing: Outgoing, reason: Reason) -> None:
        """Begins to end it; nothing, if that has begun."""
        if outgoing._state in (State.ENDING, State.ENDED):
            return
        if outgoing._state is State.QUEUED:
            self._queue = [each for each in self._queue if each[2] is not outgoing]
            heapq.heapify(self._queue)
            self._finish(outgoing, failure_of(outgoing.request, reason))
            return
        outgoing._state, outgoing._reason = State.ENDING, reason
        outgoing._going.clear()
        under_way = self._window.drop(outgoing)
        if under_way:
            self._cancel(outgoing, under_way)
        self._finish_if_stopped(outgoing)
        self._ring()

    def _cancel(self, outgoing: Outgoing, under_way: list[int]) -> None:
        """Cancels rows; each completes all the same, and that is waited for."""

        def cancel() -> None:
            for user_data in under_way:
                with contextlib.suppress(NotFoundError, TimedOutError, ClosedError):
                    self._channel.cancel(user_data, timeout=_CANCEL_S)

        def cancelled(_: None) -> None:
            outgoing._busy -= 1
            self._finish_if_stopped(outgoing)

        outgoing._busy += 1
        self._start_job(cancel, cancelled)

    def _finish_if_stopped(self, outgoing: Outgoing) -> None:
        if outgoing._state is State.ENDING and not outgoing._busy and not outgoing._postings:
            assert outgoing._reason is not None
            self._tell(outgoing, Kind.ABORTED, outgoing._reason.encode())
            self._finish(outgoing, failure_of(outgoing.request, outgoing._reason))

    def _finish(self, outgoing: Outgoing, failure: TransferError | None) -> None:
        """Nothing of it is in flight: lets go of everything."""
        if outgoing._state is State.ENDED:
            return
        outgoing._state = State.ENDED
        self._open.pop(outgoing._tag, None)
        if outgoing in self._turns:
            self._turns.remove(outgoing)
        route = outgoing._route
        if route is not None:
            if not self.endpoint.closed:
                outgoing._stalls += self.endpoint.ledger().stalls
            assert self._routes is not None
            self._routes.end(route)
            outgoing._route = None
        outgoing._draft = None
        outgoing._took = time.monotonic() - outgoing._began
        outgoing._lease.let_go(outgoing)
        if failure is not None:
            self._totals[1] += 1
        outgoing._outcome.set(failure)
        self._ring()

    def _ended(self, failure: DmaplaneError) -> None:
        self._asks.waiting.end(self._stops(failure))
        for outgoing in [each[2] for each in self._queue] + list(self._open.values()):
            self._finish(outgoing, failure_of(outgoing.request, outgoing._reason or failure))
        self._queue.clear()
        if self._routes is not None:
            self._routes.close()

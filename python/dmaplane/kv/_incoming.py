# SPDX-License-Identifier: MIT
"""Incoming: one transfer on its way in, from its announcement until it is published or gone.

    OFFERED   announced; waits for accept() or refuse(); not if it was asked for with a room
    COMING    chunks land in the blocks of the lease, whose generations are odd
    ENDING    aborted here: ABORT is said, the blocks are in quarantine until the peer says ABORTED
    ENDED     published, refused, or gone: the lease is let go

A chunk is there when its immediate is; it counts when its bytes were read here and have the
CRC32C that the sender's copy had. A layer is there when all of its chunks count, the
transfer when all layers do: then the lease is published, and only then is DONE said.

Who owns what. The Receiver owns every Incoming and changes its state; the caller owns the lease,
which is lent to the Incoming from accept() to ENDED, or to its room from ask() on (_room.py).
"""

from __future__ import annotations

import asyncio
import enum
import time
from typing import TYPE_CHECKING

import numpy as np

from dmaplane._errors import InvalidError
from dmaplane.kv import _pieces, _wire
from dmaplane.kv._transfer import Outcome, Transferred

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Hashable

    import numpy.typing as npt

    from dmaplane.kv._lease import Lease
    from dmaplane.kv._pieces import Pieces
    from dmaplane.kv._receiver import Receiver
    from dmaplane.kv._room import Room
    from dmaplane.kv._wire import Announce


class State(enum.Enum):
    """See above."""

    OFFERED = enum.auto()
    COMING = enum.auto()
    ENDING = enum.auto()
    ENDED = enum.auto()


class Incoming:
    """A transfer the peer has announced. Given by iterating a Receiver."""

    def __init__(self, receiver: Receiver, announce: Announce, *, tag: int, serial: int) -> None:
        self.request = announce.request
        self.tokens = announce.tokens
        self.trace = announce.trace
        self.metadata = announce.metadata
        self.priority = announce.priority
        self._receiver = receiver
        self._announce = announce
        self._tag = tag
        self._serial = serial
        self._state = State.OFFERED
        self._outcome = Outcome()
        self._lease: Lease | None = None
        self._borrower: Hashable = self
        """Who the lease is lent to: this, or the room it came to."""
        self._publish = True
        self._pieces: Pieces | None = None
        self._landed = np.zeros(announce.chunks, dtype=np.bool_)
        self._summed = np.zeros(announce.chunks, dtype=np.bool_)
        self._sums = np.zeros(announce.chunks, dtype=np.uint32)
        self._unchecked: list[npt.NDArray[np.int64]] = []
        self._is_checking = False
        self._layer_left = np.full(announce.layers, announce.layer_chunks, dtype=np.int64)
        self._chunks_left = announce.chunks
        self._bell = asyncio.Event()
        self._began = time.monotonic()
        self._took: float | None = None
        self._first_layer: float | None = None
        self._checksum_seconds = 0.0
        self._waits = 0
        self._awaited: list[int] = []
        """Layers somebody waits for."""

    @property
    def blocks(self) -> int:
        """How many of the pool it needs."""
        return self._receiver.pool.layout.blocks_for(self.tokens)

    async def accept(self, lease: Lease, *, publish: bool = True) -> None:
        """It goes to the first blocks of @lease, which may have more.

        The blocks count as being filled from here on. @publish: they are published when all of
        it is there; False if other transfers fill the same blocks (other heads), and
        whoever gathers them publishes. Nothing is left to do where it was asked for with @lease.
        """
        receiver = self._receiver
        if self._borrower is not self and lease is self._lease:
            return
        receiver._check()
        if self._state is not State.OFFERED:
            self._raise_if_failed()
            raise InvalidError("incoming", "it was accepted or refused already", fix="once")
        if lease.pool is not receiver.pool:
            raise InvalidError("lease", "it is of another pool", fix="this receiver's")
        if len(lease) < self.blocks:
            raise InvalidError(
                "lease",
                f"{len(lease)} blocks",
                fix=f"{self.blocks} or more for {self.tokens} tokens",
            )
        chosen = lease.blocks[: self.blocks]
        lease.lend(self)
        try:
            lease.fill()
        except BaseException:
            lease.let_go(self)
            raise
        self._lease, self._publish = lease, publish
        self._state = State.COMING
        for body in _wire.encode_accept(chosen):
            receiver._tell(self, _wire.Kind.ACCEPT, body)
        receiver._flush()  # at once: the sender begins while pieces are cut here
        self._cut(chosen)

    def refuse(self, reason: str) -> None:
        """It is not wanted: the sender's done() raises TransferError with @reason.

        abort() is for what was accepted; what was asked for with a lease can be refused, too.
        """
        if self._state is State.OFFERED or self._borrower is not self:
            self._receiver._stop(self, _wire.Reason(reason))

    async def layer(self, layer: int) -> None:
        """Until that layer is here and checked; TransferError if it never will be."""
        if not 0 <= layer < self._announce.layers:
            raise InvalidError("layer", f"{layer}", fix=f"0 .. {self._announce.layers - 1}")
        if not self._layer_left[layer]:
            return
        self._waits += 1
        before = self._missing()
        self._awaited.append(layer)
        if self._missing() < before:
            self._receiver._ring()  # it is more patient than we are
        try:
            while self._layer_left[layer]:
                self._raise_if_failed()
                await self._bell.wait()
        finally:
            self._awaited.remove(layer)

    async def layers(self) -> AsyncIterator[int]:
        """Numbers of the layers, in order, each once it is here and checked."""
        for layer in range(self._announce.layers):
            await self.layer(layer)
            yield layer

    async def complete(self) -> Lease:
        """Until all of it is here, checked, and published; gives the lease it is in."""
        await self._outcome.get()
        assert self._lease is not None
        return self._lease

    async def abort(self, reason: str) -> None:
        """Ends it, at any stage; returns when the peer writes none of the blocks any more.

        The lease has ended then ("aborted"). One that is complete stays as it is.
        """
        self._receiver._stop(self, _wire.Reason(reason))
        await self._outcome.wait()

    @property
    def ended(self) -> bool:
        """True once complete() would not wait."""
        return self._outcome.is_set

    @property
    def statistics(self) -> Transferred:
        """So far."""
        announce = self._announce
        done = announce.chunks - self._chunks_left
        return Transferred(
            bytes=announce.layer_bytes * announce.layers * done // announce.chunks,
            chunks=done,
            rows=0,
            seconds=time.monotonic() - self._began if self._took is None else self._took,
            first_layer_seconds=self._first_layer or 0.0,
            checksum_seconds=self._checksum_seconds,
            gather_seconds=0.0,
            stalls=self._waits,
            path=self._receiver.endpoint.path,
        )

    def __str__(self) -> str:
        return f"transfer {self.request} from {self._receiver.endpoint.peer_address}"

    def __repr__(self) -> str:
        return f"<{self}, {self._state.name.lower()}>"

    # ---- for the receiver

    def _enter(self, room: Room) -> None:
        """It comes to @room, and may have begun to."""
        self._lease, self._publish, self._borrower = room.lease, room.publish, room
        self._state = State.COMING
        self._cut(room.lease.blocks[: self.blocks])

    def _cut(self, chosen: npt.NDArray[np.int64]) -> None:
        """Finds what each chunk is here, if that will be asked."""
        plan = self._receiver.plan
        assert plan is not None
        if self._announce.checksum:
            self._pieces = _pieces.staged(plan, self.tokens, chosen, self._announce.chunk_bytes)

    def _raise_if_failed(self) -> None:
        if self._outcome.failure is not None:
            raise self._outcome.failure
        reason = self._receiver._reason_of(self)
        if reason is not None:
            raise reason

    def _missing(self) -> int:
        """Chunks still to land until who waits for the nearest layer, or for all, can go on.

        Until the first of them has landed somebody is taken to wait for the first layer.
        """
        end = len(self._landed)
        nearest = min(self._awaited) if self._awaited else None
        if nearest is None and self._chunks_left == self._announce.chunks:
            nearest = 0
        if nearest is not None:
            end = (nearest + 1) * self._announce.layer_chunks
        return end - int(np.count_nonzero(self._landed[:end]))

    def _ring(self) -> None:
        self._bell.set()
        self._bell = asyncio.Event()

    def _count(self, ordinals: npt.NDArray[np.int64]) -> bool:
        """These chunks count from here on; True if that was all of them."""
        layers = ordinals // self._announce.layer_chunks
        np.subtract.at(self._layer_left, layers, 1)
        self._chunks_left -= len(ordinals)
        if not self._layer_left[layers].all():
            if self._first_layer is None:
                self._first_layer = time.monotonic() - self._began
            self._ring()
        return self._chunks_left == 0

    def _runs(
        self, ordinals: npt.NDArray[np.int64], *, first_byte: int, layer_step: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Where these chunks lie in the pool's buffer: offsets, lengths, where each begins."""
        pieces = self._pieces
        assert pieces is not None
        layer, chunk = np.divmod(ordinals, self._announce.layer_chunks)
        begin = pieces.starts[chunk]
        counts = pieces.starts[chunk + 1] - begin
        starts = np.cumsum(counts) - counts
        which = np.repeat(begin - starts, counts) + np.arange(int(counts.sum()))
        base = np.repeat(first_byte + layer * layer_step, counts)
        return pieces.far[which] + base, pieces.length[which], starts

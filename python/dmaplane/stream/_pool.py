# SPDX-License-Identifier: MIT
"""A host pool: memory of a plane on the node of a device, registered with it, cut into extents.

The memory is several buffers of the plane (memfds: they can be shared, and registered with a
network card), each allocated, touched and registered by one of a few threads. A page is touched
before it is registered, so registering never waits for page faults.

Who owns what: the pool owns its pieces (buffer and registration) and the book of spans; an
extent owns its span until it ends. close() ends the registrations, then the buffers.

Costs: the page faults of all of it, and what the driver takes to register it.
"""

from __future__ import annotations

import bisect
import concurrent.futures
import contextlib
import dataclasses
import itertools
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, Final, Literal

from dmaplane._errors import BusyError, ClosedError, InvalidError, NotFoundError
from dmaplane._scope import HeldScope
from dmaplane._storage import Holders
from dmaplane.stream._extents import ALIGNMENT_BYTES, Extent, SpanAccount, Spans, rounded
from dmaplane.stream._registration import PIECE_BYTES, PIECE_BYTES_MAX, Registration

if TYPE_CHECKING:
    from collections.abc import Callable

    from dmaplane import kv
    from dmaplane._buffer import Buffer, BufferRange
    from dmaplane._plane import Plane
    from dmaplane._region import Region
    from dmaplane.stream._device import Device

PIECE_BYTES_MIN: Final = 2 << 20
PIECES_MAX: Final = 4096
THREADS_MAX: Final = 64


@dataclasses.dataclass(frozen=True, slots=True)
class PoolStatistics:
    """What a pool is made of, and who has how much of it."""

    account: SpanAccount
    node: int | None
    """The node asked for; None: any."""
    pieces: int
    pages: int
    misplaced_pages: int
    """Pages that are on another node than asked for (L6)."""
    seconds: float
    """What allocating, touching and registering it took."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Piece:
    buffer: Buffer
    registration: Registration
    regions: list[Region] = dataclasses.field(default_factory=list)
    """Of its extents, those that are closed among them."""

    def close(self) -> None:
        self.registration.close()
        self.buffer.close()


class HostPool(HeldScope):
    """@length bytes of host memory for copies to and from @device. Use it in a `with` block.

    @node: where the pages are wanted, the device's own node if None. @huge: as of
    Plane.buffer(); None for small pages. @piece: bytes allocated and registered at a time, and
    the most an extent can have. @threads: how many pieces at a time. @progress: told bytes done
    and bytes in all, in the calling thread.
    Raises InvalidError, NoMemoryError, LimitError and what the device answers; then nothing
    stays allocated.
    """

    __slots__ = (
        "__weakref__",
        "_begins",
        "_extents",
        "_lock",
        "_pieces",
        "_process",
        "_refusal",
        "_seconds",
        "_spans",
        "device",
        "length",
        "node",
        "piece",
        "plane",
    )

    def __init__(
        self,
        plane: Plane,
        device: Device,
        length: int,
        *,
        node: int | None = None,
        huge: Literal["prefer", "require"] | None = "prefer",
        piece: int = PIECE_BYTES,
        threads: int = 4,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        began = time.monotonic()
        lengths = piece_lengths(length=length, piece=piece)
        if not 1 <= threads <= THREADS_MAX:
            raise InvalidError("threads", f"{threads}", fix=f"1 .. {THREADS_MAX}")
        self.plane = plane
        self.device = device
        self.node = device.node if node is None else node
        self.piece = max(lengths)
        self.length = sum(lengths)
        self._process = os.getpid()  # a fork may inherit the lock as somebody else held it
        self._lock = threading.Lock()  # closing, and nobody takes an extent meanwhile
        self._refusal: str | None = None
        self._extents: weakref.WeakSet[Extent] = weakref.WeakSet()
        self._spans = Spans(lengths, self._copied)
        self._begins = [0, *itertools.accumulate(lengths[:-1])]
        self._pieces = _made(
            lambda size: _piece(plane, device, size, node=self.node, huge=huge),
            lengths,
            threads=threads,
            progress=progress,
        )
        self._seconds = time.monotonic() - began

    @staticmethod
    def of_kv(
        pool: kv.Pool,
        device: Device,
        *,
        piece: int = PIECE_BYTES,
        progress: Callable[[int], None] | None = None,
    ) -> Registration:
        """Registers the memory of a pool of KV cache ahead of its use; no block crosses a piece.

        The result holds the pool's buffer: close it before the pool. Block b of a layer is at
        `registration.address + pool.offset(layer) + b * pool.layout.block_bytes`.
        """
        pool._check()
        unit = pool.layout.block_bytes
        return Registration(device, pool.buffer, piece=piece, unit=unit, progress=progress)

    def _check(self) -> None:
        if self._refusal is not None:
            raise ClosedError(self._refusal)
        self.plane._check()

    @property
    def closed(self) -> bool:
        """True after close(), or once the plane is closed."""
        return self._refusal is not None or self.plane.closed

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        """The pieces as buffers of the plane, in order."""
        return tuple(piece.buffer for piece in self._pieces)

    def extent(self, length: int) -> Extent:
        """Takes @length contiguous bytes, at most a piece; to be used in a `with` block.

        LimitError, with the account in its text, if no piece has so many in a row. The bytes
        are whatever the last holder left.
        """
        wanted = rounded(length, self.piece)
        self._check()
        with self._lock:
            self._check()
            offset = self._spans.take(wanted)
            try:
                at = bisect.bisect(self._begins, offset) - 1
                inside = offset - self._begins[at]
                piece = self._pieces[at]
                made = Extent(
                    self._spans,
                    piece.buffer[inside : inside + length],
                    address=piece.registration.address + inside,
                    offset=offset,
                    length=length,
                    known=piece.regions,
                )
                self._extents.add(made)
            except BaseException:
                self._spans.give(offset)
                raise
            return made

    def _copied(self, offset: int, length: int) -> bool:
        """Does a copy touch these bytes of the pool?"""
        at = bisect.bisect(self._begins, offset) - 1
        if at >= len(self._pieces):
            return False  # the pool is closed, and with it that piece
        address = self._pieces[at].registration.address + offset - self._begins[at]
        return self.device.registry.touches(address, length)

    def range_at(self, address: int, length: int) -> BufferRange:
        """The range of a buffer of the plane that these bytes of the pool are.

        For who needs a buffer where a copy names an address: a region for a network card.
        """
        self._check()
        for piece in self._pieces:
            start = address - piece.registration.address
            if 0 <= start < piece.buffer.length_bytes and length > 0:
                if start + length > piece.buffer.length_bytes:
                    raise InvalidError(
                        "length", f"{length} bytes go beyond their piece", fix="stay in an extent"
                    )
                return piece.buffer[start : start + length]
        raise NotFoundError(f"address {address:#x} is not in this pool; take extent().address")

    def account(self) -> SpanAccount:
        """Bytes by state."""
        return self._spans.account()

    def audit(self) -> SpanAccount:
        """account(), after comparing the books; AssertionError is a bug of this package."""
        return self._spans.audit()

    def statistics(self) -> PoolStatistics:
        """A snapshot; one command a piece."""
        self._check()
        placements = [piece.buffer.placement for piece in self._pieces]
        return PoolStatistics(
            account=self._spans.account(),
            node=self.node,
            pieces=len(self._pieces),
            pages=sum(one.pages for one in placements),
            misplaced_pages=sum(one.misplaced for one in placements),
            seconds=self._seconds,
        )

    def _holders(self) -> Holders:
        """Extents and other views of the pieces; our own registrations do not count."""
        open_ = [one for one in self._extents if not one.closed or one.views]
        names = [f"extent of {one.length} bytes at {one.offset}" for one in open_[:8]]
        taken = self._spans.account().extents
        holders = [piece.buffer.holders for piece in self._pieces if not piece.buffer.closed]
        views = sum(one.views - 1 for one in holders) - sum(one.views for one in open_)
        return Holders(
            views=taken + max(0, views),
            mappings=sum(one.mappings for one in holders),
            regions=sum(one.regions for one in holders),
            exports=sum(one.exports for one in holders),
            operations=sum(one.operations for one in holders),
            view_names=tuple(names),
        )

    def close(self) -> None:
        """Unregisters and frees all of it; idempotent.

        BusyError, and nothing has changed, while extents, views, regions, exports or operations
        hold it; BusyError of the device while a copy uses it: then the pool takes no new use,
        and close() may be called again. In a forked child it does nothing: all is the parent's.
        """
        if os.getpid() != self._process:
            return
        with self._lock:
            if not self._pieces:
                self._refusal = self._refusal or "this pool is closed"
                return
            if not self.plane.closed:
                holders = self._holders()
                if holders:
                    raise BusyError("the host pool", holders)
            self._refusal, self._spans.ended = "this pool is closed", True
            while self._pieces:
                self._pieces[-1].close()
                self._pieces.pop()

    def _abandon(self) -> None:
        with self._lock:
            self._refusal, self._spans.ended = "this pool is closed", True
            for piece in self._pieces:
                try:
                    piece.close()
                except BusyError:
                    continue  # a copy is under way: that piece stays until the plane is closed
            self._pieces.clear()

    def __repr__(self) -> str:
        state = "closed" if self.closed else str(self._spans.account())
        return f"<host pool of {self.device.name}, {state}>"


def piece_lengths(*, length: int, piece: int) -> list[int]:
    """@length in whole ALIGNMENT_BYTES, cut into pieces of @piece bytes."""
    if not PIECE_BYTES_MIN <= piece <= PIECE_BYTES_MAX or piece % PIECE_BYTES_MIN:
        raise InvalidError(
            "piece",
            f"{piece} bytes",
            fix=f"a multiple of {PIECE_BYTES_MIN}, at most {PIECE_BYTES_MAX}",
        )
    if not 0 < length <= piece * PIECES_MAX:
        raise InvalidError(
            "length", f"{length} bytes", fix=f"1 .. {piece * PIECES_MAX}, or larger pieces"
        )
    length = -(-length // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    whole, rest = divmod(length, piece)
    return [piece] * whole + ([rest] if rest else [])


def _piece(
    plane: Plane,
    device: Device,
    length: int,
    *,
    node: int | None,
    huge: Literal["prefer", "require"] | None,
) -> _Piece:
    """One piece: allocated and touched by the plane, then registered whole."""
    buffer = plane.buffer(length, node=node, huge=huge)
    try:
        return _Piece(buffer, Registration(device, buffer, piece=PIECE_BYTES_MAX))
    except BaseException:
        buffer.close()
        raise


def _undo(future: concurrent.futures.Future[_Piece]) -> None:
    """Gives back what @future came to, once it has."""
    if not future.cancelled() and future.exception() is None:
        future.result().close()


def _made(
    make: Callable[[int], _Piece],
    lengths: list[int],
    *,
    threads: int,
    progress: Callable[[int, int], None] | None,
) -> list[_Piece]:
    """All pieces in order, some at a time; none if one of them fails."""
    total, done = sum(lengths), 0
    with concurrent.futures.ThreadPoolExecutor(min(threads, len(lengths)), "pool") as workers:
        futures = [workers.submit(make, length) for length in lengths]
        try:
            sizes = dict(zip(futures, lengths, strict=True))
            for future in concurrent.futures.as_completed(futures):
                future.result()
                done += sizes[future]
                if progress is not None:
                    progress(done, total)
        except BaseException:
            with contextlib.ExitStack() as undoing:  # all of it, whatever one of them raises
                for future in futures:
                    future.cancel()
                    undoing.callback(_undo, future)
            raise
    return [future.result() for future in futures]

# SPDX-License-Identifier: MIT
"""Outgoing: one transfer on its way out, from send() until both sides are done with it.

States, in order; ENDED can follow on any of them.

    QUEUED     known here only; the peer has as many open as it wants
    ANNOUNCED  ANNOUNCE is said; waits for ACCEPT (all parts of it) or REFUSE
    GOING      blocks are known: layers that are ready are posted, chunk by chunk
    ENDING     aborted by either side: nothing more is posted; what was is cancelled, and ABORTED
               is said when all of it has completed, so when nothing touches memory any more
    ENDED      done, refused or aborted: the lease is let go, the tag is free

Who owns what. The Sender owns every Outgoing and changes its state; callers wait for it, abort it
and say which layers are ready. It borrows the lease (lend) from send() to ENDED.
What it has under way is in _window.py.
"""

from __future__ import annotations

import collections
import enum
import threading
import time
from typing import TYPE_CHECKING

import numpy as np

from dmaplane._errors import InvalidError
from dmaplane.kv import _pieces, _wire
from dmaplane.kv._transfer import Outcome, Transferred
from dmaplane.kv._window import Posting, user_data_of

if TYPE_CHECKING:
    import numpy.typing as npt

    from dmaplane.kv._lease import Lease
    from dmaplane.kv._plan import Plan
    from dmaplane.kv._route import Route
    from dmaplane.kv._sender import Sender
    from dmaplane.kv._wire import Announce, Hello, Reason


class State(enum.Enum):
    """See above."""

    QUEUED = enum.auto()
    ANNOUNCED = enum.auto()
    GOING = enum.auto()
    ENDING = enum.auto()
    ENDED = enum.auto()


class Outgoing:
    """A transfer to the peer. Made by Sender.send(); wait for it with done()."""

    def __init__(
        self, sender: Sender, lease: Lease, announce: Announce, *, source_sums: bool
    ) -> None:
        self.request = announce.request
        self.priority = announce.priority
        self._sender = sender
        self._lease = lease
        self._announce = announce
        self._serial = 0
        self._tag = -1
        self._state = State.QUEUED
        self._outcome = Outcome()
        self._reason: Reason | None = None
        self._source_sums: dict[int, int] | None = {} if source_sums else None
        self._lock = threading.Lock()  # about what ready() changes
        self._is_ready = np.zeros(announce.layers, dtype=np.bool_)
        self._ready: collections.deque[int] = collections.deque()
        self._going: collections.deque[tuple[int, int, int]] = collections.deque()
        self._held: dict[int, list[npt.NDArray[np.void]]] = {}
        self._blocks: list[npt.NDArray[np.int64]] = []
        self._draft: Route | None = None
        self._route: Route | None = None
        self._slots: dict[int, int] = {}
        self._first: int | None = None
        self._postings: dict[int, Posting] = {}
        self._layer_left = np.full(announce.layers, announce.layer_chunks, dtype=np.int64)
        self._chunks_left = announce.chunks
        self._unposted = announce.chunks
        self._heard_done = False
        self._busy = 0
        self._rows = 0
        self._stalls = 0
        self._began = time.monotonic()
        self._took: float | None = None
        self._checksum_seconds = 0.0
        self._gather_seconds = 0.0

    # ---- for callers

    def ready(self, layer: int) -> None:
        """Layer @layer is complete and goes out; from any thread, once for each layer.

        With source_sums its bytes are read once, here.
        """
        if not 0 <= layer < self._announce.layers:
            raise InvalidError("layer", f"{layer}", fix=f"0 .. {self._announce.layers - 1}")
        if self._source_sums is not None:
            self._source_sums[layer] = self._sender._source_sum(self, layer)
        with self._lock:
            if self._is_ready[layer]:
                raise InvalidError("layer", f"{layer} is ready already", fix="each layer once")
            self._is_ready[layer] = True
            self._ready.append(layer)
        self._sender._ring()

    async def done(self) -> None:
        """Until the peer has all of it, checked and published; TransferError if it failed.

        Afterwards nothing touches the lease's blocks any more, either way.
        """
        await self._outcome.get()

    async def abort(self, reason: str) -> None:
        """Ends it, at any stage; returns when nothing of it is on the way any more.

        done() raises TransferError with @reason, here and at the peer. One that has ended stays
        as it is.
        """
        self._sender._stop(self, _wire.Reason(reason))
        await self._outcome.wait()

    @property
    def ended(self) -> bool:
        """True once done() would not wait."""
        return self._outcome.is_set

    @property
    def statistics(self) -> Transferred:
        """So far."""
        announce = self._announce
        done = announce.chunks - self._chunks_left
        share = done / announce.chunks
        return Transferred(
            bytes=int(announce.layer_bytes * announce.layers * share),
            chunks=done,
            rows=self._rows,
            seconds=time.monotonic() - self._began if self._took is None else self._took,
            first_layer_seconds=0.0,
            checksum_seconds=self._checksum_seconds,
            gather_seconds=self._gather_seconds,
            stalls=self._stalls,
            path=self._sender.endpoint.path,
        )

    def __str__(self) -> str:
        return f"transfer {self.request} to {self._sender.endpoint.peer_address}"

    def __repr__(self) -> str:
        return f"<{self}, {self._state.name.lower()}>"

    # ---- for the sender

    @property
    def _postable(self) -> bool:
        """There is something to post, and it is its time.

        Sums follow chunks on one connection, in order. So that those of the first layer are not
        behind a whole window of others, it goes alone.
        """
        if not self._going or self._state is not State.GOING:
            return False
        first = self._first
        if first is None or not self._announce.checksum or self._going[0][0] == first:
            return True
        return not self._layer_left[first]

    def _post(self, number: int, chunks_max: int, layer_step: int) -> Posting:
        """The next chunks of the layer whose turn it is and of those behind it, at most so many."""
        route, per = self._route, self._announce.layer_chunks
        assert route is not None
        template = route.template
        layer, chunk, near = self._going.popleft()
        if self._first is None:
            self._first = layer
        end, reached, last, base = chunk + chunks_max, per, layer, near
        if not self._announce.checksum or layer != self._first:
            while (
                reached < end
                and reached < template.chunks
                and self._going
                and self._going[0][:2] == (last + 1, 0)
            ):
                last, _, base = self._going.popleft()
                reached += per
        if end < reached:
            self._going.appendleft((last, end - reached + per, base))
        end = min(end, reached)
        ordinal = layer * per + chunk
        begin, behind = int(template.starts[chunk]), int(template.starts[end])
        rows = template.cut(
            chunk,
            end,
            near=near,
            far=layer * layer_step,
            immediate=_wire.immediate_of(self._tag, ordinal),
            user_data=user_data_of(number, behind - begin),
        )
        posting = Posting(
            self,
            number,
            first=ordinal,
            rows=rows,
            counts=template.counts[chunk:end].copy(),
            of_chunk=template.of_chunk[begin:behind] - chunk,
        )
        self._postings[number] = posting
        self._unposted -= end - chunk
        self._rows += len(rows)
        return posting

    def _written(self, ordinals: npt.NDArray[np.int64]) -> set[int]:
        """These chunks are; of which layers all are now."""
        layers = ordinals // self._announce.layer_chunks
        np.subtract.at(self._layer_left, layers, 1)
        self._chunks_left -= len(ordinals)
        return set(layers[self._layer_left[layers] == 0].tolist())


def announce_of(
    plan: Plan,
    peer: Hello,
    request: str,
    tokens: int,
    *,
    chunk_bytes: int,
    metadata: bytes,
    trace: str,
    priority: int,
    checksum: bool,
) -> _wire.Announce:
    """What will be said of it; InvalidError for what cannot be said."""
    _wire.checked_text("request", request, _wire.REQUEST_BYTES_MAX, empty=False)
    _wire.checked_text("trace", trace, _wire.TRACE_BYTES_MAX)
    if len(metadata) > _wire.METADATA_BYTES_MAX:
        raise InvalidError(
            "metadata", f"{len(metadata)} bytes", fix=f"{_wire.METADATA_BYTES_MAX} at most"
        )
    if not -(1 << 31) <= priority < 1 << 31:
        raise InvalidError("priority", f"{priority}", fix="a number of 32 bits")
    needed = peer.layout.blocks_for(tokens) if 0 < tokens <= _wire.TOKENS_MAX else 0
    if not 0 < needed <= peer.blocks:
        most = min(_wire.TOKENS_MAX, peer.blocks * peer.layout.block_tokens)
        raise InvalidError("tokens", f"{tokens}", fix=f"1 .. {most}: the peer has no more")
    layer_bytes = _pieces.layer_bytes(plan, tokens)
    layer_chunks = -(-layer_bytes // chunk_bytes)
    layers = plan.source.layers
    if layers * layer_chunks > _wire.CHUNKS_MAX:
        least = -(-layer_bytes // (_wire.CHUNKS_MAX // layers))
        raise InvalidError(
            "tokens",
            f"{tokens} make {layers * layer_chunks} chunks; an immediate counts to "
            f"{_wire.CHUNKS_MAX}",
            fix=f"Sender.open(chunk_bytes={least}) or more, and window_bytes to match",
        )
    return _wire.Announce(
        request=request,
        trace=trace,
        metadata=bytes(metadata),
        tokens=tokens,
        layers=layers,
        layer_chunks=layer_chunks,
        chunk_bytes=chunk_bytes,
        layer_bytes=layer_bytes,
        priority=priority,
        checksum=checksum,
    )

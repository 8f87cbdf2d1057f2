# SPDX-License-Identifier: MIT
"""A way through a network card and back: a plane's connection to itself.

Both ends are endpoints of one plane in this process, and the address they meet at is the card's: so
the card's own engine reads what is written from one and writes it into what the other was granted.
A batch of copies is an array of WRITEs, in whichever direction: of a copy through the card both
halves are its own, and a WRITE needs no answer before the next one starts.

Invariants: write() returns when no byte of it moves any more, done or failed; after a failure
nothing else of that call is started. Once lost, a way stays lost, and says why.
Who owns what. The way owns both endpoints, their channels, and what it has imported from its other
end. One thread uses it at a time: it belongs to a lane, which has one thread.
"""

from __future__ import annotations

import concurrent.futures
import secrets
import time
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import numpy as np

from dmaplane import _abi
from dmaplane._errors import (
    ClosedError,
    DmaplaneError,
    NotFoundError,
    PeerLostError,
    UnsupportedError,
    error_from,
)
from dmaplane._scope import Scope

if TYPE_CHECKING:
    import numpy.typing as npt

    from dmaplane._endpoint import Endpoint
    from dmaplane._plane import Plane
    from dmaplane._region import Region, RemoteRegion

SLOTS: Final = 4096
_BATCH: Final = SLOTS // 2
_MEETING_S: Final = 10.0
PATIENCE_S: Final = 30.0
"""A WRITE has so long, and the time its bytes take at _SLOWEST, before it counts as stuck."""
_SLOWEST_BYTES_PER_S: Final = 20e6
Fabric = Literal["verbs", "tcp"]


class Moves(NamedTuple):
    """What to write: one entry of each array a block."""

    buffers: npt.NDArray[np.uint32]
    """Ids of buffers of this plane."""
    buffer_offsets: npt.NDArray[np.uint64]
    regions: npt.NDArray[np.uint32]
    """Ids that region() gave."""
    region_offsets: npt.NDArray[np.uint64]
    lengths: npt.NDArray[np.uint64]


class FailedMoveError(DmaplaneError):
    """One of the moves failed: `index` says which; `cause` why."""

    def __init__(self, index: int, cause: DmaplaneError) -> None:
        super().__init__(str(cause), errno=cause.errno)
        self.index = index
        self.cause = cause


class Way(Scope):
    """A connection of @plane with itself at @address, by @fabric and nothing else."""

    def __init__(self, plane: Plane, address: str, *, fabric: Fabric = "verbs") -> None:
        self.plane = plane
        self.address = address
        self._imported: dict[int, tuple[Region, RemoteRegion]] = {}
        self._channels = [plane.channel(SLOTS)]
        self._channel = self._channels[0]
        self._refusal: str | None = None
        self.lost: DmaplaneError | None = None
        try:
            self._channels.append(plane.channel(8, completion_slots=256))
            self._near, self._far = self._meet(address, fabric)
        except BaseException:
            self._leave()
            raise

    def _meet(self, address: str, fabric: Fabric) -> tuple[Endpoint, Endpoint]:
        """Both ends; a handshake takes two who wait for each other, so two threads."""
        secret = secrets.token_bytes(32)
        near_channel, far_channel = self._channels
        with (
            self.plane.listen(address, secret=secret, require=fabric) as listener,
            concurrent.futures.ThreadPoolExecutor(1, "dmaplane-nic-meet") as caller,
        ):
            calling = caller.submit(
                self.plane.connect,
                listener.address,
                secret=secret,
                require=fabric,
                timeout=_MEETING_S,
                channel=near_channel,
            )
            try:
                far = listener.accept(timeout=_MEETING_S, channel=far_channel)
            except DmaplaneError as failure:
                refused = calling.exception()
                if refused is not None:
                    raise refused from failure
                calling.result().close()
                raise
            near = calling.result()
        if near.path != fabric:
            raise UnsupportedError(f"a way by {fabric} over {address}", f"more than {near.path}")
        return near, far

    def _check(self) -> None:
        if self._refusal is not None:
            raise ClosedError(self._refusal)
        if self.lost is not None:
            raise self.lost

    def region(self, region: Region) -> int:
        """The id by which moves name @region of this plane; registered with the card at once."""
        self._check()
        known = self._imported.get(region.id)
        if known is None or known[1].closed:
            for identity in [key for key, (given, _) in self._imported.items() if given.closed]:
                self._imported.pop(identity)[1].close()
            known = self._imported[region.id] = (region, self._near.region(region.key))
        return known[1].id

    def write(self, moves: Moves) -> None:
        """All of @moves, in no order. FailedMoveError names the first that failed.

        PeerLostError: the card or its connection is gone, and with it this way.
        """
        self._check()
        rows = self._rows(moves, _abi.OP_WRITE)
        try:
            self._run(rows)
        except PeerLostError as lost:
            self.lost = lost
            raise

    def _stop(self, why: BaseException) -> None:
        """Something else ended a call half way: what is on its way ends before this returns.

        Its completions would be taken for another call's, so there is none.
        """
        self.lost = PeerLostError(f"a call of this way was interrupted: {why!r}")
        try:
            self._channel.cancel(everything=True)
        except (ClosedError, NotFoundError):
            pass  # the plane has ended all of it; or nothing is on its way

    def settle(self, buffer_id: int, region_id: int) -> None:
        """Reads one byte back from a region that was written.

        A read of a device's memory is answered behind the writes that are on their way to it over
        the same bus: when it is answered they are there, for the device's own processors too.
        """
        rows = np.zeros(1, dtype=_abi.SUBMISSION)
        rows["operation"], rows["endpoint_id"] = _abi.OP_READ, self._near.id
        rows["source_id"], rows["target_id"], rows["length_bytes"] = region_id, buffer_id, 1
        rows["deadline_ns"] = time.monotonic_ns() + int(PATIENCE_S * 1e9)
        self._run(rows)

    def _rows(self, moves: Moves, operation: int) -> npt.NDArray[np.void]:
        count = len(moves.lengths)
        patience_s = PATIENCE_S + float(moves.lengths.sum()) / _SLOWEST_BYTES_PER_S
        rows = np.zeros(count, dtype=_abi.SUBMISSION)
        rows["operation"] = operation
        rows["endpoint_id"] = self._near.id
        rows["user_data"] = np.arange(count, dtype=np.uint64)
        rows["deadline_ns"] = time.monotonic_ns() + int(patience_s * 1e9)
        rows["source_id"], rows["source_offset"] = moves.buffers, moves.buffer_offsets
        rows["target_id"], rows["target_offset"] = moves.regions, moves.region_offsets
        rows["length_bytes"] = moves.lengths
        return rows

    def _run(self, rows: npt.NDArray[np.void]) -> None:
        try:
            self._push_all(rows)
        except (FailedMoveError, PeerLostError):
            raise
        except BaseException as interrupted:
            self._stop(interrupted)
            raise

    def _push_all(self, rows: npt.NDArray[np.void]) -> None:
        """Two batches on their way; when one fails, waits for what is and starts no more."""
        channel, pushed, taken = self._channel, 0, 0
        first: tuple[int, int] | None = None
        while taken < pushed or (pushed < len(rows) and first is None):
            if pushed < len(rows) and first is None:
                some = rows[pushed : pushed + _BATCH]
                channel.push(some)
                pushed += len(some)
            more = pushed < len(rows) and first is None
            done = channel.completions(wait=max(0, pushed - taken - (_BATCH if more else 0)))
            taken += len(done)
            failed = done[done["result"] != 0]
            if len(failed) and first is None:
                first = int(failed["user_data"][0]), int(failed["result"][0])
        if first is not None:
            lost = self._near.lost
            cause = lost if lost is not None else error_from(first[1], "write")
            if isinstance(cause, PeerLostError):
                raise cause
            raise FailedMoveError(first[0], cause)

    def close(self) -> None:
        """Ends both endpoints and what they imported; idempotent."""
        if self._refusal is None:
            self._refusal = f"the way over {self.address} is closed"
            self._leave()

    def _leave(self) -> None:
        self._imported.clear()  # they end with their endpoint
        while self._channels:
            self._channels.pop().close()  # and endpoints with their channel

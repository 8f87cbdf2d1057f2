# SPDX-License-Identifier: MIT
"""A pool: blocks of KV cache in one pinned buffer, who has them, and views of them.

The pool owns the buffer, the books (_blocks.py) and the table of tenures (_lease.py). Its lock
protects the last two and is held for no longer than some array operations over the blocks of
one lease. Views go past it: memory is the holders', and generations tell who came too late.

Costs: taking, publishing and freeing are O(blocks of the lease), a renewal is O(1), and
sweep() is O(log leases) for each lease that has expired.
"""

from __future__ import annotations

import heapq
import math
import threading
import time
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dmaplane._errors import (
    ClosedError,
    InvalidError,
    LimitError,
    StaleEpochError,
)
from dmaplane._scope import HeldScope
from dmaplane.kv._blocks import Account, Blocks
from dmaplane.kv._lease import Lease, LeaseRow, LeaseState, Tenure, seconds_of, text_of
from dmaplane.kv._views import Views, keys_of, values_of

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    import numpy.typing as npt

    from dmaplane._buffer import Buffer
    from dmaplane._plane import Plane
    from dmaplane.kv._layout import Layout


class Pool(HeldScope):
    """So many blocks of a layout, in one buffer of a plane. Use it in a `with` block.

    @blocks: how many; the memory is `layout.pool_bytes(blocks)`. @node, @huge: as of
    Plane.buffer(). @clock: seconds; leases expire by it.
    Raises InvalidError, NoMemoryError, LimitError. Costs the page faults of all of it.
    """

    __slots__ = (
        "__weakref__",
        "_blocks",
        "_borrowers",
        "_clock",
        "_due",
        "_lock",
        "_next",
        "_refusal",
        "_tenures",
        "_views",
        "blocks",
        "buffer",
        "layout",
        "plane",
    )

    def __init__(
        self,
        plane: Plane,
        layout: Layout,
        blocks: int,
        *,
        node: int | None = None,
        huge: Literal["prefer", "require"] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        length = layout.pool_bytes(blocks) if blocks > 0 else 0
        if not 0 < length <= plane.limits.buffer_bytes_max:
            most = plane.limits.buffer_bytes_max // layout.pool_bytes(1)
            raise InvalidError("blocks", f"{blocks} cannot be had", fix=f"1 .. {most}")
        self.plane = plane
        self.layout = layout
        self.blocks = blocks
        self._blocks = Blocks(blocks)
        self.buffer: Buffer = plane.buffer(length, node=node, huge=huge)
        self._views = Views(self.buffer, layout, blocks)
        self._clock = clock
        self._lock = threading.Lock()
        self._refusal: str | None = None
        self._tenures: dict[int, Tenure] = {}
        self._borrowers: dict[Hashable, set[int]] = {}
        # (time, lease id) once for each lease that may expire; late if it was renewed since.
        self._due: list[tuple[float, int]] = []
        self._next = 1

    def _check(self) -> None:
        if self._refusal is not None:
            raise ClosedError(self._refusal)
        self.plane._check()

    @property
    def closed(self) -> bool:
        """True after close(), or once the plane is closed."""
        return self._refusal is not None or self.plane.closed

    # ---- memory

    def offset(self, layer: int) -> int:
        """Bytes into `buffer` where @layer begins; block b of it is b * layout.block_bytes on."""
        return self._views.offset(layer)

    def layer(self, layer: int) -> npt.NDArray[Any]:
        """A layer as [blocks, *layout.block_shape], without a copy; a holder while it lives."""
        self._check()
        return self._views.layer(layer)

    def block(self, layer: int, block: int) -> npt.NDArray[Any]:
        """One block of a layer as [*layout.block_shape], without a copy; a holder too."""
        self._check()
        return self._views.block(layer, block)

    def tensor(self, layer: int) -> Any:
        """layer() as a PyTorch tensor of the layout's own type. Imports torch."""
        self._check()
        return self._views.tensor(layer)

    def keys(self, layer: int) -> npt.NDArray[Any]:
        """K of a layer as [blocks, tokens, heads, size] in either order, without a copy."""
        return keys_of(self.layout, self.layer(layer))

    def values(self, layer: int) -> npt.NDArray[Any]:
        """V of a layer as [blocks, tokens, heads, size] in either order, without a copy."""
        return values_of(self.layout, self.layer(layer))

    # ---- leases

    def lease(
        self, count: int, *, holder: str, trace: str = "", seconds: float | None = None
    ) -> Lease:
        """Takes @count blocks for @holder, until released or for @seconds.

        @trace: a trace or request id, for who looks at the books. The blocks are unpublished,
        and their bytes are whatever the last tenant left.
        Raises LimitError, with the account in its text, if so many are not free.
        """
        if not 0 < count <= self.blocks:
            raise InvalidError("count", f"{count} blocks", fix=f"1 .. {self.blocks}")
        holder, trace = text_of("holder", holder), text_of("trace", trace)
        lasting = math.inf if seconds is None else seconds_of(seconds)
        with self._lock:
            self._check()
            now = self._clock()
            self._expire_due(now)
            account = self._blocks.account
            if account.free < count:
                raise LimitError(
                    f"{holder} asks for {count} blocks and {account.free} are free ({account});"
                    " wait for a release, ask for fewer, or make a larger pool"
                )
            blocks = self._blocks.take(count)
            tenure = Tenure(
                id=self._next,
                holder=holder,
                trace=trace,
                blocks=blocks,
                began=now,
                until=now + lasting,
                stamp=self._blocks.generations(blocks),
            )
            self._next += 1
            self._tenures[tenure.id] = tenure
            if seconds is not None:
                heapq.heappush(self._due, (tenure.until, tenure.id))
        return Lease(self, tenure)

    def account(self) -> Account:
        """Blocks by state."""
        with self._lock:
            return self._blocks.account

    def audit(self) -> Account:
        """account(), after comparing every book with every other; O(blocks).

        AssertionError says which do not agree: that is a bug of this package.
        """
        with self._lock:
            self._blocks.audit()
            account = self._blocks.account
            live = sum(len(one.blocks) for one in self._tenures.values() if one.state == "live")
            ended = sum(len(one.blocks) for one in self._tenures.values() if one.state != "live")
            if (live, ended) != (account.leased, account.quarantined):
                raise AssertionError(f"leases have {live} + {ended} blocks, but {account}")
            for who, ids in self._borrowers.items():
                if any(who not in self._tenures[one].borrowers for one in ids):
                    raise AssertionError(f"{who} is down for a lease that is not lent to it")
            return account

    def leases(self) -> tuple[LeaseRow, ...]:
        """Every lease whose blocks are not free, the oldest first."""
        return self.books()[1]

    def books(self) -> tuple[Account, tuple[LeaseRow, ...]]:
        """account() and leases() of one moment."""
        with self._lock:
            now = self._clock()
            return self._blocks.account, tuple(one.row(now) for one in self._tenures.values())

    def leaks(self, older_than: float) -> tuple[LeaseRow, ...]:
        """The rows of leases() that are older than so many seconds."""
        return tuple(row for row in self.leases() if row.age_seconds > older_than)

    def sweep(self) -> int:
        """Ends the leases whose time has passed; gives how many. To be called now and then.

        Their blocks go into quarantine until the holder, and whoever they are lent to, let go.
        """
        with self._lock:
            return self._expire_due(self._clock())

    def let_go(self, who: Hashable) -> int:
        """@who touches no block of this pool any more; gives how many became free by it.

        For the end of a connection, or a fence: it ends all that was lent to @who.
        """
        freed = 0
        with self._lock:
            for identity in self._borrowers.pop(who, ()):
                tenure = self._tenures[identity]
                del tenure.borrowers[who]
                freed += self._settle(tenure)
        return freed

    # ---- generations

    def stamp(self, blocks: npt.ArrayLike) -> npt.NDArray[np.uint32]:
        """Generations of @blocks now, for check() after they have been read.

        StaleEpochError if one of them is not published.
        """
        chosen = self._chosen(blocks)
        with self._lock:
            found = self._blocks.generations(chosen)
        if (found % 2).any():
            raise StaleEpochError(
                f"block {chosen[np.argmax(found % 2)]} is not published; wait for publish()"
            )
        return found

    def check(self, blocks: npt.ArrayLike, stamp: npt.NDArray[np.uint32]) -> None:
        """StaleEpochError if one of @blocks was filled, ended or leased again since @stamp."""
        chosen = self._chosen(blocks)
        if stamp.shape != chosen.shape:
            raise InvalidError("stamp", f"{stamp.shape} for {chosen.shape} blocks", fix="as given")
        with self._lock:
            found = self._blocks.generations(chosen)
        if (found != stamp).any():
            at = int(np.argmax(found != stamp))
            raise StaleEpochError(
                f"block {chosen[at]} changed while it was read: generation {found[at]},"
                f" was {stamp[at]}; read it again or drop what was read"
            )

    def _chosen(self, blocks: npt.ArrayLike) -> npt.NDArray[np.int64]:
        chosen = np.asarray(blocks, np.int64)
        if chosen.ndim != 1 or (chosen < 0).any() or (chosen >= self.blocks).any():
            raise InvalidError("blocks", "not of this pool", fix=f"a row of 0 .. {self.blocks - 1}")
        return chosen

    # ---- what leases ask for; each takes the lock

    def _is_past(self, tenure: Tenure) -> bool:
        if tenure.state != "live":
            return tenure.state == "expired"
        return tenure.until <= self._clock()

    def _check_lease(self, tenure: Tenure) -> None:
        with self._lock:
            self._live(tenure)
            if (self._blocks.generations(tenure.blocks) != tenure.stamp).any():
                raise AssertionError(f"blocks of lease {tenure.id} changed under it")

    def _renew(self, tenure: Tenure, seconds: float) -> None:
        with self._lock:
            tenure.until = max(tenure.until, self._live(tenure) + seconds)

    def _fill(self, tenure: Tenure) -> None:
        with self._lock:
            self._live(tenure)
            tenure.stamp = self._blocks.fill(tenure.blocks)
            tenure.published = False

    def _publish(self, tenure: Tenure) -> None:
        with self._lock:
            self._live(tenure)
            if tenure.published:
                raise InvalidError(
                    "publish", f"lease {tenure.id} is published already", fix="fill() it first"
                )
            tenure.stamp = self._blocks.publish(tenure.blocks)
            tenure.published = True

    def _lend(self, tenure: Tenure, who: Hashable) -> None:
        with self._lock:
            self._live(tenure)
            self._note(tenure, who)

    def _return(self, tenure: Tenure, who: Hashable) -> int:
        with self._lock:
            left = tenure.borrowers.get(who, 0) - 1
            if left > 0:
                tenure.borrowers[who] = left
            if left != 0:
                return 0
            del tenure.borrowers[who]
            theirs = self._borrowers[who]
            theirs.discard(tenure.id)
            if not theirs:
                del self._borrowers[who]
            return self._settle(tenure)

    def _abort(self, tenure: Tenure, who: Hashable, why: str) -> None:
        with self._lock:
            if self._refusal is not None:
                return  # nobody gets these blocks any more
            if tenure.id not in self._tenures:
                raise StaleEpochError(
                    f"lease {tenure.id} has ended ({tenure.state}) and its blocks are free;"
                    " lend() it to whoever may write before that"
                )
            self._note(tenure, who)
            if tenure.state == "live":
                self._end(tenure, "aborted", why)

    def _release(self, tenure: Tenure) -> None:
        with self._lock:
            if not tenure.held:
                return
            tenure.held = False
            if tenure.state == "live":
                self._end(tenure, "released", "released by its holder")
            else:
                self._settle(tenure)

    # ---- with the lock held

    def _live(self, tenure: Tenure) -> float:
        """The time now, at which @tenure is live; StaleEpochError if it is not."""
        if self._refusal is not None:
            raise ClosedError(self._refusal)
        now = self._clock()
        if tenure.state == "live" and tenure.until <= now:
            self._expire(tenure, now)
        if tenure.state != "live":
            raise StaleEpochError(
                f"lease {tenure.id} of {tenure.holder} has ended: {tenure.why};"
                " nothing read or written through it counts; take a new one"
            )
        return now

    def _note(self, tenure: Tenure, who: Hashable) -> None:
        tenure.borrowers[who] = tenure.borrowers.get(who, 0) + 1
        self._borrowers.setdefault(who, set()).add(tenure.id)

    def _expire(self, tenure: Tenure, now: float) -> None:
        self._end(tenure, "expired", f"expired {now - tenure.until:.3f} s ago, not renewed")

    def _expire_due(self, now: float) -> int:
        ended = 0
        while self._due and self._due[0][0] <= now:
            _, identity = heapq.heappop(self._due)
            tenure = self._tenures.get(identity)
            if tenure is None or tenure.state != "live":
                continue
            if tenure.until > now:
                heapq.heappush(self._due, (tenure.until, identity))
            else:
                self._expire(tenure, now)
                ended += 1
        return ended

    def _end(self, tenure: Tenure, state: LeaseState, why: str) -> None:
        """A live lease ends; its blocks are free, or quarantined while somebody has them."""
        tenure.state, tenure.why, tenure.published = state, why, False
        self._blocks.end(tenure.blocks, quarantined=tenure.touched)
        if not tenure.touched:
            self._forget(tenure)

    def _settle(self, tenure: Tenure) -> int:
        """Somebody let go: blocks of an ended lease that nobody has are free; how many."""
        if tenure.state == "live" or tenure.touched or tenure.id not in self._tenures:
            return 0
        self._blocks.free(tenure.blocks)
        self._forget(tenure)
        return len(tenure.blocks)

    def _forget(self, tenure: Tenure) -> None:
        del self._tenures[tenure.id]
        if len(self._due) > 64 + 2 * len(self._tenures):  # mostly of leases that are gone
            self._due = [one for one in self._due if one[1] in self._tenures]
            heapq.heapify(self._due)

    # ---- the end

    def close(self) -> None:
        """Ends every lease and frees the memory; idempotent.

        BusyError, and nothing has changed, while views, regions or operations hold it.
        """
        if self._refusal is not None:
            return
        if not self.buffer.closed:
            self.buffer.destroy()
        self._abandon()

    def _abandon(self) -> None:
        with self._lock:
            self._refusal = "this pool is closed"
            for tenure in self._tenures.values():
                if tenure.state == "live":
                    tenure.state, tenure.why = "closed", "its pool was closed"
                    self._blocks.end(tenure.blocks, quarantined=False)
                else:
                    self._blocks.free(tenure.blocks)
                tenure.held = False
                tenure.borrowers.clear()
            self._tenures.clear()
            self._borrowers.clear()
            self._due.clear()
        self.buffer.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else str(self._blocks.account)
        return f"<pool of {state}>"

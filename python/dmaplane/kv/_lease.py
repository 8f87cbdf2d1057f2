# SPDX-License-Identifier: MIT
"""Leases: who has which blocks of a pool, since when, until when, and who else may touch them.

A `Lease` is the holder's handle. What the pool knows of it is its `Tenure`, which stays in the
pool's table until the blocks are free again, whatever became of the handle.

Whoever may touch the memory says when he no longer does, and only then is it free:
  the holder     has the lease until he releases it, even if it expired or was aborted meanwhile;
  a borrower     (a transfer, a connection) from lease.lend(who) until let_go(who).
A lease that ends while one of them has not let go puts its blocks into quarantine. A clock ends
leases and frees nothing. The pool's lock protects every Tenure; handles hold only the number.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from dmaplane._errors import InvalidError
from dmaplane._scope import Scope

if TYPE_CHECKING:
    from collections.abc import Hashable

    import numpy.typing as npt

    from dmaplane.kv._pool import Pool

LeaseState = Literal["live", "released", "expired", "aborted", "closed"]
TEXT_MAX: Final = 256
"""Characters in the name of a holder, a trace id, a reason."""
SECONDS_MAX: Final = 1e9


@dataclasses.dataclass(frozen=True, slots=True)
class LeaseRow:
    """A lease whose blocks are not free, as `dmaplane kv leaks` shows it."""

    id: int
    holder: str
    trace: str
    age_seconds: float
    expires_in: float | None
    """Seconds; negative if it is past its time; None if it does not expire or has ended."""
    blocks: int
    state: LeaseState
    who: tuple[str, ...] = ()
    """Who has not let go of it: the holder by his name, and whoever it is lent to."""
    why: str = ""
    """Why it ended, if it has."""


@dataclasses.dataclass(slots=True)
class Tenure:
    """What the pool knows of a lease."""

    id: int
    holder: str
    trace: str
    blocks: npt.NDArray[np.int64]
    began: float
    until: float
    """Time of the pool's clock; infinite if it does not expire."""
    stamp: npt.NDArray[np.uint32]
    """Generations of its blocks, as it left them itself."""
    published: bool = False
    state: LeaseState = "live"
    why: str = ""
    held: bool = True
    """The holder has not released it."""
    borrowers: dict[Hashable, int] = dataclasses.field(default_factory=dict)
    """Who it is lent to, and how often."""

    @property
    def touched(self) -> bool:
        """Somebody may still read or write its blocks."""
        return self.held or bool(self.borrowers)

    def row(self, now: float) -> LeaseRow:
        """As it is at that time."""
        bounded = self.state == "live" and self.until != math.inf
        who = (self.holder,) if self.held else ()
        return LeaseRow(
            id=self.id,
            holder=self.holder,
            trace=self.trace,
            age_seconds=now - self.began,
            expires_in=self.until - now if bounded else None,
            blocks=len(self.blocks),
            state=self.state,
            who=who + tuple(str(one)[:TEXT_MAX] for one in self.borrowers),
            why=self.why,
        )


class Lease(Scope):
    """Blocks of a pool, for a time. Made by `pool.lease()`; the end of its `with` releases it."""

    __slots__ = ("__weakref__", "_tenure", "pool")

    def __init__(self, pool: Pool, tenure: Tenure) -> None:
        self.pool = pool
        self._tenure = tenure

    @property
    def id(self) -> int:
        """Names it in its pool; never reused there."""
        return self._tenure.id

    @property
    def blocks(self) -> npt.NDArray[np.int64]:
        """Numbers of its blocks, rising: they hold tokens in this order. Read-only."""
        return self._tenure.blocks

    @property
    def holder(self) -> str:
        """Who asked for it."""
        return self._tenure.holder

    @property
    def trace(self) -> str:
        """What it is for: a trace or request id."""
        return self._tenure.trace

    @property
    def state(self) -> LeaseState:
        """ "live" until it was released, aborted, or seen to have expired."""
        return self._tenure.state

    @property
    def expired(self) -> bool:
        """True once its time has passed, whether or not anybody has looked yet."""
        return self.pool._is_past(self._tenure)

    @property
    def is_consecutive(self) -> bool:
        """True if its blocks lie one after the other: `pool.layer(n)[first : first + count]`."""
        blocks = self._tenure.blocks
        return bool(blocks[-1] - blocks[0] == len(blocks) - 1)

    @property
    def stamp(self) -> npt.NDArray[np.uint32]:
        """Generations of its blocks since its last fill() or publish(); for pool.check()."""
        return self._tenure.stamp

    def _check(self) -> None:
        self.check()

    def check(self) -> None:
        """StaleEpochError unless the lease is live and its blocks are as it left them.

        For who has just read or written through a view: what happened was the lease's own.
        """
        self.pool._check_lease(self._tenure)

    def renew(self, seconds: float) -> None:
        """It lasts at least @seconds from now; never shorter than before.

        StaleEpochError if it has ended: an ended lease does not come back.
        """
        self.pool._renew(self._tenure, seconds_of(seconds))

    def fill(self) -> None:
        """Its blocks are written from here on: whoever reads them meanwhile finds out."""
        self.pool._fill(self._tenure)

    def publish(self) -> None:
        """All of its blocks are filled and checked: readable from here on, all at once.

        InvalidError if they are published already: fill() comes first.
        """
        self.pool._publish(self._tenure)

    def lend(self, who: Hashable) -> None:
        """@who may touch the blocks too, until let_go(@who); as often as it was lent.

        Until then they are not free, whatever becomes of the lease. StaleEpochError if it has
        ended.
        """
        self.pool._lend(self._tenure, who)

    def let_go(self, who: Hashable) -> int:
        """One lend(@who) is over; gives how many blocks became free by it."""
        return self.pool._return(self._tenure, who)

    def quarantine(self, who: Hashable, *, why: str) -> None:
        """Ends it ("aborted"): its blocks wait for let_go(@who), and for release().

        StaleEpochError if the blocks are free already: then it is too late to say so.
        """
        self.pool._abort(self._tenure, who, text_of("why", why))

    def release(self) -> None:
        """The holder no longer touches it; idempotent. Free unless somebody else may."""
        self.pool._release(self._tenure)

    def close(self) -> None:
        """release()."""
        self.release()

    def __len__(self) -> int:
        return len(self._tenure.blocks)

    def __del__(self) -> None:
        tenure = getattr(self, "_tenure", None)
        if tenure is not None and tenure.held:
            warnings.warn(
                f"{self!r} was never released; its blocks stay taken until the pool closes",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )

    def __repr__(self) -> str:
        tenure = self._tenure
        return (
            f"<lease {tenure.id} of {tenure.holder}, {len(tenure.blocks)} blocks, {tenure.state}>"
        )


def seconds_of(seconds: float) -> float:
    """A time a lease may last, checked."""
    if not 0 < seconds <= SECONDS_MAX:
        raise InvalidError("seconds", f"{seconds} is no time", fix=f"above 0, to {SECONDS_MAX:g}")
    return float(seconds)


def text_of(field: str, text: str) -> str:
    """A name or reason, checked: bounded and on one line."""
    if not isinstance(text, str) or len(text) > TEXT_MAX or not text.isprintable():
        raise InvalidError(
            field, f"{text!r:.60} is no name", fix=f"printable, at most {TEXT_MAX} characters"
        )
    return text

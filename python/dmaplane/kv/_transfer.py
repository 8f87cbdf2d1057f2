# SPDX-License-Identifier: MIT
"""What both ends of a transfer have in common: its figures, and its outcome.

A transfer is named by the request it is for. On the wire it has a serial, which never comes
twice on a connection, and a tag, which does. Values, and one outcome that is set once.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

from dmaplane._errors import DmaplaneError, TransferError

if TYPE_CHECKING:
    from dmaplane._plane import Path
    from dmaplane.kv._wire import Reason


@dataclasses.dataclass(frozen=True, slots=True)
class Transferred:
    """Figures of one transfer, so far."""

    bytes: int
    chunks: int
    rows: int
    """Writes they were made of; 0 at the receiver, to whom they are one."""
    seconds: float
    """From the announcement to the end, or until now."""
    first_layer_seconds: float
    """From the announcement until the first layer was there and checked; 0 at the sender."""
    checksum_seconds: float
    """Time the thread needed to read bytes for checksums. A copy's own are not in it."""
    gather_seconds: float
    """Time the thread needed to bring layers into the destination's form."""
    stalls: int
    """Sender: waits of its endpoint for credit meanwhile. Receiver: waits of who reads layers."""
    path: Path

    @property
    def gb_per_s(self) -> float:
        """10**9 bytes a second."""
        return self.bytes / self.seconds / 1e9 if self.seconds else 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class SenderStatistics:
    """Figures of a sender since it was opened."""

    transfers: int
    failed: int
    bytes: int
    chunks: int
    queued: int
    """Waiting until the peer takes more at once."""
    open: int
    chunks_under_way: int


@dataclasses.dataclass(frozen=True, slots=True)
class ReceiverStatistics:
    """Figures of a receiver since it was opened."""

    transfers: int
    failed: int
    bytes: int
    chunks: int
    waiting: int
    """Announced, and neither accepted nor refused."""
    open: int


class Outcome:
    """How a transfer ended: set once, asked for by anybody."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.failure: TransferError | None = None

    @property
    def is_set(self) -> bool:
        """True once it has ended."""
        return self._event.is_set()

    def set(self, failure: TransferError | None) -> None:
        """It has; the first word counts."""
        if not self._event.is_set():
            self.failure = failure
            self._event.set()

    async def wait(self) -> None:
        """Until it has."""
        await self._event.wait()

    async def get(self) -> None:
        """Until it has, and raises its failure."""
        await self._event.wait()
        if self.failure is not None:
            raise self.failure


def failure_of(request: str, reason: Reason | DmaplaneError) -> TransferError:
    """What everybody is told who asks about that transfer."""
    if isinstance(reason, TransferError):
        return reason
    if isinstance(reason, DmaplaneError):
        failure = TransferError(request, str(reason), errno=reason.errno)
        failure.__cause__ = reason
        return failure
    return TransferError(request, reason.cause, chunk=reason.chunk)

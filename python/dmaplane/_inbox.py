# SPDX-License-Identifier: MIT
"""What came for one endpoint or listener without being asked for, until somebody takes it.

Completions of a channel are taken by whoever waits for any of them, so an event can be
popped long before its endpoint is asked. The taker (_taking.py) puts it here; readers of the
endpoint take it away, each once, in the order the peer sent them.

Who owns what. The endpoint owns its inbox, the taker finds it by the endpoint's user_data.
An inbox knows neither of them. The lock is about `parts`.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

import numpy as np

from dmaplane import _abi
from dmaplane._completion import ENTRY, Completion
from dmaplane._errors import ClosedError
from dmaplane._operation import wake

if TYPE_CHECKING:
    import asyncio

    import numpy.typing as npt

ENTRY_BYTES: Final = ENTRY.size
_new: Final = tuple.__new__


class Inbox:
    """Immediates of a peer not yet read, the end of the connection, and who waits for either."""

    __slots__ = ("bells", "futures", "lock", "lost", "parts", "refusal", "told")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.parts: dict[int, bytes | memoryview] = {}
        """Entries of the completion ring, under the position they were popped at."""
        self.told: int | None = None
        """Position behind the newest part: who hands out once more after a raise sees it."""
        self.lost: tuple[int, int] | None = None
        """Reason (0, or a negative errno) and path of a connection that ended."""
        self.bells = 0
        """Callers a listener was told of."""
        self.refusal: str | None = None
        self.futures: list[asyncio.Future[None]] = []

    def __len__(self) -> int:
        parts = self.parts
        return sum(map(len, list(parts.values()))) // ENTRY_BYTES if parts else 0

    def settled(self) -> bool:
        """True if who waits here has something to look at."""
        return bool(self.parts) or self.lost is not None or self.refusal is not None

    def check(self) -> None:
        """ClosedError if its endpoint or listener is closed."""
        if self.refusal is not None:
            raise ClosedError(self.refusal)

    def put(self, entries: bytes | memoryview, position: int, behind: int) -> None:
        """Entries that lay at @position in the ring; once, however often it is called."""
        with self.lock:
            if self.told != behind:
                # Two plain stores: no signal handler runs between them.
                self.parts[position] = entries
                self.told = behind
        if self.futures:
            self.wake()

    def take_one(self) -> Completion | None:
        """The oldest, or None."""
        if not self.parts:
            return None
        with self.lock:
            for position, entries in self.parts.items():
                if len(entries) == ENTRY_BYTES:
                    del self.parts[position]
                else:
                    self.parts[position] = memoryview(entries)[ENTRY_BYTES:]
                return _new(Completion, ENTRY.unpack_from(entries))
        return None

    def take(self, limit: int | None) -> npt.NDArray[np.void]:
        """At most @limit of them, oldest first, as an array of COMPLETION."""
        taken: list[bytes | memoryview] = []
        with self.lock:
            room = None if limit is None else limit * ENTRY_BYTES
            for position, entries in list(self.parts.items()):
                if room is not None:
                    if not room:
                        break
                    if len(entries) > room:
                        self.parts[position] = memoryview(entries)[room:]
                        taken.append(memoryview(entries)[:room])
                        break
                    room -= len(entries)
                del self.parts[position]
                taken.append(entries)
        return np.frombuffer(bytearray(b"".join(taken)), dtype=_abi.COMPLETION)

    def end(self, refusal: str) -> None:
        """Nothing more is given; everybody who waits is woken."""
        self.refusal = refusal
        self.wake()

    def wake(self) -> None:
        """Every task that waits looks again."""
        for future in list(self.futures):
            try:
                future.get_loop().call_soon_threadsafe(wake, future)
            except RuntimeError:
                pass  # that loop is closed, and nobody waits in it

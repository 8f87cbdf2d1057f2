# SPDX-License-Identifier: MIT
"""Failures of a stream that nobody was told yet: of copies nobody asked about, of callbacks.

Invariants: what is told is told once; what is not told by one call stays for the next; of a copy
whose error somebody asked for nothing is told. At most 64 of each kind are kept whole; of the
copies beyond that the numbers, of the callbacks how many there were.

Who owns what. A schedule owns it, and its lock is held around each call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dmaplane._errors import CallbackError, CopyError

if TYPE_CHECKING:
    from dmaplane.stream._operation import Operation

_KEPT: Final = 64


class Failures:
    """What has failed, and nobody knows."""

    __slots__ = ("_copies", "_more", "_raised", "callbacks")

    def __init__(self) -> None:
        self._copies: list[Operation] = []
        self._more: set[int] = set()  # numbers of those beyond
        self._raised: list[BaseException] = []
        self.callbacks = 0
        """Callbacks that raised, ever."""

    def add(self, step: Operation) -> None:
        """@step has failed."""
        if len(self._copies) >= _KEPT:
            self._copies = [each for each in self._copies if not each._told]
        if len(self._copies) >= _KEPT:
            self._more.add(step.number)
        else:
            self._copies.append(step)

    def told(self, step: Operation) -> None:
        """Somebody has asked @step for its error, which has noted that."""
        self._more.discard(step.number)

    def add_raised(self, error: BaseException) -> None:
        """A callback raised @error."""
        self.callbacks += 1
        if len(self._raised) < _KEPT:
            self._raised.append(error)

    def raised(self) -> CallbackError | None:
        """What callbacks raised, to be told now."""
        if not self._raised:
            return None
        raised, self._raised = tuple(self._raised), []
        made = CallbackError(raised)
        made.__cause__ = raised[0]
        return made

    def of_copies(self) -> CopyError | None:
        """That copies failed, to be told now: the first one's error, and how many more."""
        untold = [each for each in self._copies if not each._told]
        numbers = [each.number for each in untold] + sorted(self._more)
        self._copies, self._more = [], set()
        if not numbers:
            return None
        more = f", and {len(numbers) - 1} more" if len(numbers) > 1 else ""
        first = untold[0]._error if untold else None
        made = CopyError(f"copy {numbers[0]} failed{more}: {first or 'it has its error'}")
        made.__cause__ = first
        return made

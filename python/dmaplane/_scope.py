# SPDX-License-Identifier: MIT
"""What a program opens and has to close: the end of a `with` block closes it."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING

from dmaplane._errors import BusyError

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self


class Scope(abc.ABC):
    """Open from when it was made until close()."""

    __slots__ = ()

    @abc.abstractmethod
    def _check(self) -> None:
        """ClosedError, with the reason, if it was closed."""

    @abc.abstractmethod
    def close(self) -> None:
        """Ends it; once more does nothing."""

    def __enter__(self) -> Self:
        self._check()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class HeldScope(Scope):
    """One whose close() is BusyError while somebody holds it."""

    __slots__ = ()

    @abc.abstractmethod
    def _abandon(self) -> None:
        """Ends it all the same: the last holder frees the memory."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except BusyError:
            # The block is left, so nobody can try again. An error on its way out is what
            # matters, and its traceback may be what holds a view.
            self._abandon()
            if error is None:
                raise

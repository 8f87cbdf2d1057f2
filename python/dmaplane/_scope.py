# SPDX-License-Identifier: MIT
"""What a program opens and has to close: the end of a `with` block closes it."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING

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

# SPDX-License-Identifier: MIT
"""Exports: an fd that shares a buffer with other processes.

An Export owns its fd until it is closed or detached. The memory behind the fd is the
plane's: it stays while any fd of it is open, in whatever process.
"""

from __future__ import annotations

import os
import warnings

from dmaplane._errors import ClosedError
from dmaplane._scope import Scope


class Export(Scope):
    """An fd of a buffer. Owns it: close(), a `with` block, or detach() to take it over."""

    __slots__ = ("__weakref__", "_fd", "length_bytes", "read_only")

    def __init__(self, fd: int, *, length_bytes: int, read_only: bool) -> None:
        self._fd = fd
        self.length_bytes = length_bytes
        self.read_only = read_only

    def fileno(self) -> int:
        """The fd; ClosedError if it is closed or detached."""
        if self._fd < 0:
            raise ClosedError("this export is closed or detached")
        return self._fd

    @property
    def fd(self) -> int:
        """The fd."""
        return self.fileno()

    def detach(self) -> int:
        """The fd, which the caller closes from here on."""
        fd, self._fd = self.fileno(), -1
        return fd

    def close(self) -> None:
        """Closes the fd; idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _check(self) -> None:
        self.fileno()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            warnings.warn(f"{self!r} was never closed", ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        return f"<export of {self.length_bytes} bytes, fd {self._fd}>"

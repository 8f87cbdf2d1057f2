# SPDX-License-Identifier: MIT
"""Everything dmaplane raises, and the one place where an errno becomes an exception.

    DmaplaneError
    ├── InvalidError(ValueError)          a wrong argument: .field, .fix
    ├── UnsupportedError                  not offered here: .feature, .needs
    ├── ClosedError                       the object, its parent, or a forked parent's plane
    ├── NotFoundError(LookupError)        no object with this id
    ├── BusyError                         something can still reach it: .holders
    ├── WouldBlock(BlockingIOError)       no slot or credit now; the same call can succeed later
    ├── StaleEpochError                   draining, revoked, or of an earlier epoch
    ├── NoMemoryError(MemoryError)        no memory, or none on the required node
    ├── LimitError                        a limit of the plane is reached
    ├── NotAllowedError(PermissionError)  rights, seals, memlock
    ├── ProtocolError                     impossible ring indices or frames
    ├── TimedOutError(TimeoutError)       the given time passed first
    ├── OperationCancelledError           cancelled, or an earlier link of its chain failed
    ├── ChecksumError                     the bytes do not match the checksum asked for
    └── SystemCallError(OSError)          any other errno: .command

Where the standard library has an exception of the same meaning, ours is also
one of those, so that `except TimeoutError` and `except MemoryError` do what a
reader expects. `errno` is the number the plane answered, or None when Python
refused before asking it.
"""

from __future__ import annotations

import errno as numbers
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from dmaplane._storage import Holders


class DmaplaneError(Exception):
    """Root of all exceptions of this package."""

    errno: int | None

    def __init__(self, message: str, *, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno


class InvalidError(DmaplaneError, ValueError):
    """An argument is wrong. `field` names it, `fix` says what would be right."""

    def __init__(
        self, field: str, problem: str, *, fix: str = "", errno: int | None = None
    ) -> None:
        self.field = field
        self.fix = fix
        super().__init__(f"{field}: {problem}" + (f"; {fix}" if fix else ""), errno=errno)


class UnsupportedError(DmaplaneError):
    """Understood, but not offered here. `needs` says what would bring it."""

    def __init__(self, feature: str, needs: str, *, errno: int | None = None) -> None:
        self.feature = feature
        self.needs = needs
        super().__init__(f"{feature} is not available here; it needs {needs}", errno=errno)


class ClosedError(DmaplaneError):
    """Used after close, after its parent's close, or in a forked child."""


class NotFoundError(DmaplaneError, LookupError):
    """No object with this id, or nothing in flight with this user_data."""


class BusyError(DmaplaneError):
    """Something can still reach the object. `holders` says what and how many."""

    def __init__(self, what: str, holders: Holders, *, errno: int | None = None) -> None:
        self.holders = holders
        super().__init__(
            f"{what} is still held by {holders}; release them, or destroy(drain=True) to wait",
            errno=errno,
        )


class WouldBlock(DmaplaneError, BlockingIOError):  # noqa: N818 - the style guide names it so
    """No slot or credit now; the same call can succeed later."""


class StaleEpochError(DmaplaneError):
    """The object is draining or revoked, or belongs to an earlier epoch."""


class NoMemoryError(DmaplaneError, MemoryError):
    """No memory, or none where the placement requires it."""


class LimitError(DmaplaneError):
    """A limit of the plane is reached; see Plane.limits."""


class NotAllowedError(DmaplaneError, PermissionError):
    """Not allowed to this caller: rights, seals, or a limit such as memlock."""


class ProtocolError(DmaplaneError):
    """The other side broke the protocol: impossible ring indices or frames."""


class TimedOutError(DmaplaneError, TimeoutError):
    """The given time passed first."""


class OperationCancelledError(DmaplaneError):
    """The operation was cancelled, or an earlier link of its chain failed."""


class ChecksumError(DmaplaneError):
    """The bytes do not match the checksum that was asked for."""


class SystemCallError(DmaplaneError, OSError):
    """An errno that has no exception of its own. `command` is what was asked."""

    def __init__(self, command: str, errno: int) -> None:
        self.command = command
        super().__init__(f"{command}: {errno_text(errno)}", errno=errno)


def errno_text(errno: int) -> str:
    """'EBUSY (Device or resource busy)' for 16."""
    return f"{numbers.errorcode.get(errno, str(errno))} ({os.strerror(errno)})"


def _invalid(command: str, errno: int, detail: str) -> DmaplaneError:
    return InvalidError(
        command,
        f"the plane refused a value: {errno_text(errno)}{detail}",
        fix="ranges must lie inside the object and flags must not contradict each other",
        errno=errno,
    )


def _unsupported(command: str, errno: int, detail: str) -> DmaplaneError:
    needs = {
        numbers.ENOTTY: "a newer plane: this one does not know the command",
        numbers.E2BIG: "a newer plane: the struct uses what was added after this one",
        numbers.ENODEV: "the device, NIC or fabric named in the request",
    }.get(errno, "another plane; see Plane.capabilities")
    return UnsupportedError(f"{command}{detail}", needs, errno=errno)


_PLAIN: Final[dict[int, tuple[type[DmaplaneError], str]]] = {
    numbers.ENOENT: (NotFoundError, "no such id on this plane; ids are never reused"),
    numbers.EAGAIN: (WouldBlock, "no slot or credit now; take completions and try again"),
    numbers.ESTALE: (StaleEpochError, "the object is draining or revoked and takes no new use"),
    numbers.ENOMEM: (
        NoMemoryError,
        "no memory, or none where it was required; free some, name other nodes, or drop strict",
    ),
    numbers.ENOSPC: (LimitError, "a limit of the plane is reached; see Plane.limits"),
    numbers.EPERM: (
        NotAllowedError,
        "not allowed to this caller; look at seals, access rights and `ulimit -l`",
    ),
    numbers.EACCES: (NotAllowedError, "refused: wrong key, right or secret"),
    numbers.EPROTO: (ProtocolError, "impossible ring indices or frames"),
    numbers.ETIMEDOUT: (TimedOutError, "the given time passed first"),
    numbers.ECANCELED: (
        OperationCancelledError,
        "cancelled, or an earlier link of its chain failed",
    ),
    numbers.EBADMSG: (ChecksumError, "the bytes do not match the checksum that was asked for"),
}

_BUILT: Final = {
    numbers.EINVAL: _invalid,
    numbers.EFAULT: _invalid,
    numbers.EOVERFLOW: _invalid,
    numbers.ENOTTY: _unsupported,
    numbers.E2BIG: _unsupported,
    numbers.EOPNOTSUPP: _unsupported,
    numbers.ENODEV: _unsupported,
}


def error_from(errno: int, command: str, detail: str = "") -> DmaplaneError:
    """The exception for what @command answered; one errno, one class.

    EBUSY has no entry: whoever asks knows the object and raises BusyError with
    its holders.
    """
    errno = abs(errno)
    suffix = f" ({detail})" if detail else ""
    if errno in _PLAIN:
        kind, text = _PLAIN[errno]
        return kind(f"{command}: {text}{suffix}", errno=errno)
    if errno in _BUILT:
        return _BUILT[errno](command, errno, suffix)
    return SystemCallError(command + suffix, errno)

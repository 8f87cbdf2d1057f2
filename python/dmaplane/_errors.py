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
    ├── UnreachableError(ConnectionError) nobody listens there, or no way leads there
    ├── AddressInUseError(OSError)        somebody listens there already
    ├── PeerLostError(ConnectionResetError)  the connection ended: .peer, .path, .cause
    ├── LayoutError(ValueError)           KV caches that no plan bridges: .differences
    ├── TransferError                     a KV transfer ended early: .transfer, .chunk, .cause
    ├── CopyError                         a copy of a stream failed; the stream goes on
    ├── CallbackError                     callbacks of a stream raised: .failures
    ├── DeviceLostError                   a device is gone, and all that was to run on it: .device
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
    from dmaplane._plane import Path
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


class UnreachableError(DmaplaneError, ConnectionError):
    """Nobody listens at that address, or no way leads there."""


class AddressInUseError(DmaplaneError, OSError):
    """Somebody listens at that address already."""


class PeerLostError(DmaplaneError, ConnectionResetError):
    """The connection to a peer ended. Connect again; region keys have to be imported again.

    `peer` is its address, `path` what carried the bytes, `cause` why it ended.
    """

    def __init__(
        self,
        message: str,
        *,
        errno: int | None = None,
        peer: str = "",
        path: Path = "none",
        cause: str = "",
    ) -> None:
        super().__init__(message, errno=errno)
        self.peer = peer
        self.path: Path = path
        self.cause = cause


class LayoutError(DmaplaneError, ValueError):
    """Two KV layouts that no plan bridges. `differences`: (field, ours, theirs), all of them."""

    def __init__(
        self, problem: str, *, differences: tuple[tuple[str, object, object], ...] = ()
    ) -> None:
        self.differences = differences
        told = ", ".join(
            f"{field} is {ours} here, {theirs} there" for field, ours, theirs in differences
        )
        super().__init__(f"{problem}: {told}" if told else problem)


class TransferError(DmaplaneError):
    """A KV transfer ended before it was complete.

    `transfer` is its request id, `chunk` the ordinal it is about or None, `cause` why.
    """

    def __init__(
        self, transfer: str, cause: str, *, chunk: int | None = None, errno: int | None = None
    ) -> None:
        self.transfer = transfer
        self.chunk = chunk
        self.cause = cause
        where = "" if chunk is None else f", chunk {chunk}"
        super().__init__(f"transfer {transfer}{where}: {cause}", errno=errno)


class CopyError(DmaplaneError):
    """A copy of a stream failed. It is about that call alone; what it had copied is undefined."""


class CallbackError(DmaplaneError):
    """Callbacks of a stream raised. `failures` is what, in order; the first is the cause."""

    def __init__(self, failures: tuple[BaseException, ...]) -> None:
        self.failures = failures
        count = f"{len(failures)} callbacks" if len(failures) > 1 else "a callback"
        super().__init__(f"{count} raised; the first: {failures[0]!r}")


class DeviceLostError(DmaplaneError):
    """A device does not answer any more: its streams end, and so does what was to run on them.

    `device` is its name, `cause` what it said. Open the device again.
    """

    def __init__(self, device: str, cause: str, *, errno: int | None = None) -> None:
        self.device = device
        self.cause = cause
        super().__init__(f"device {device} is lost: {cause}; open it again", errno=errno)


class SystemCallError(DmaplaneError, OSError):
    """An errno that has no exception of its own. `command` is what was asked."""

    def __init__(self, command: str, errno: int) -> None:
        self.command = command
        super().__init__(f"{command}: {errno_text(errno)}", errno=errno)


def errno_text(errno: int) -> str:
    """'EBUSY (Device or resource busy)' for 16."""
    return f"{numbers.errorcode.get(errno, str(errno))} ({os.strerror(errno)})"


_NO_ROOM: Final = (
    "no completion slot of the channel is left for this endpoint and its window, or the plane has "
    "limits.endpoints_max endpoints: plane.channel(completion_slots=...), or a smaller window"
)
_SECRET: Final = (
    "beyond loopback and unix: paths, and to encrypt, a secret is mandatory: secret= on both sides"
)
_GONE: Final = "the peer destroyed that region, or its buffer was revoked; ask it for a new key"
_NO_RIGHT: Final = "the peer's region does not grant this, or is not its own: plane.region(access=)"
_NO_CREDIT: Final = "the peer has granted no credit now, or no slot is free; try again"
_LONG: Final = "it is longer than the whole window of the peer: a larger window_bytes there"
_RESET: Final = "the connection ended first; connect again"
_TEXTS: Final[dict[tuple[str, int], str]] = {
    ("LISTEN", numbers.EADDRINUSE): "somebody listens there; another port, or 0 for a free one",
    ("LISTEN", numbers.EPERM): _SECRET,
    ("LISTEN", numbers.EHOSTUNREACH): "this machine has no such address",
    ("LISTEN", numbers.EINVAL): 'an address is "host:port", "[host]:port" or "unix:/path"',
    ("CONNECT", numbers.EINVAL): 'an address is "host:port", "[host]:port" or "unix:/path"',
    ("CONNECT", numbers.EPERM): _SECRET,
    ("CONNECT", numbers.EACCES): "the peer has another secret; give both sides the same secret=",
    ("CONNECT", numbers.ECONNREFUSED): "nobody listens there; start the listener, look at the port",
    ("CONNECT", numbers.EHOSTUNREACH): "no way leads there; look at name, routes and firewalls",
    ("CONNECT", numbers.ETIMEDOUT): "nobody let us in before the time passed; does it accept()?",
    ("CONNECT", numbers.ECONNRESET): "the peer hung up in the handshake; look at its secret, log",
    ("CONNECT", numbers.EPROTO): "what listens there is no plane of this protocol version",
    ("CONNECT", numbers.ENOSPC): _NO_ROOM,
    ("CONNECT", numbers.ESTALE): "the peer still ends an older connection of ours; try again",
    ("ACCEPT", numbers.ENOSPC): _NO_ROOM,
    ("ACCEPT", numbers.EACCES): "who called could not prove the secret",
    ("ACCEPT", numbers.EAGAIN): "nobody is waiting at the door now",
    ("ACCEPT", numbers.ETIMEDOUT): "nobody came before the time passed",
    ("REGION_IMPORT", numbers.EACCES): "this peer has no region with that key",
    ("REGION_IMPORT", numbers.ESTALE): _GONE,
    ("REGION_IMPORT", numbers.EINVAL): "this is no key; give the bytes of the peer's Region.key",
    ("REGION_IMPORT", numbers.ECONNRESET): _RESET,
    ("REGION_IMPORT", numbers.EOPNOTSUPP): (
        "a region of memory that has a descriptor: over shared memory a buffer of kind user has "
        'none; take another buffer there, or require="tcp"'
    ),
    ("send", numbers.EAGAIN): _NO_CREDIT,
    ("send", numbers.EOVERFLOW): _LONG,
    ("recv", numbers.EOVERFLOW): "the message is longer; it waits for a recv() with room for it",
    ("write", numbers.EACCES): _NO_RIGHT,
    ("write", numbers.ESTALE): _GONE,
    ("write_imm", numbers.EACCES): _NO_RIGHT,
    ("write_imm", numbers.ESTALE): _GONE,
    ("write_imm", numbers.EAGAIN): _NO_CREDIT,
    ("write_imm", numbers.EOVERFLOW): _LONG,
    ("read", numbers.EACCES): _NO_RIGHT,
    ("read", numbers.ESTALE): _GONE,
}
"""Where a command or operation knows better than the errno alone what would help."""


def _invalid(command: str, errno: int, detail: str) -> DmaplaneError:
    return InvalidError(
        command,
        f"the plane refused a value: {errno_text(errno)}{detail}",
        fix=_TEXTS.get((command, errno))
        or "ranges must lie inside the object and flags must not contradict each other",
        errno=errno,
    )


def _unsupported(command: str, errno: int, detail: str) -> DmaplaneError:
    needs = _TEXTS.get((command, errno)) or {
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
    numbers.ECONNRESET: (PeerLostError, "the endpoint or its peer is gone; connect again"),
    numbers.ECONNREFUSED: (UnreachableError, "nobody listens there"),
    numbers.EHOSTUNREACH: (UnreachableError, "no way leads there"),
    numbers.EADDRINUSE: (AddressInUseError, "somebody listens there already"),
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
        return kind(f"{command}: {_TEXTS.get((command, errno), text)}{suffix}", errno=errno)
    if errno in _BUILT:
        return _BUILT[errno](command, errno, suffix)
    return SystemCallError(command + suffix, errno)

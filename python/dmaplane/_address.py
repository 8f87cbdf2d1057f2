# SPDX-License-Identifier: MIT
"""Addresses, secrets and required paths as LISTEN and CONNECT take them.

What is wrong by itself is refused here. A secret goes into a request and is wiped from it as
soon as the plane has answered; no text of an error and no repr shows it.
"""

from __future__ import annotations

import ctypes
import errno
import ipaddress
import socket
from typing import TYPE_CHECKING, Final, Literal, NoReturn

from dmaplane import _abi
from dmaplane._errors import DmaplaneError, InvalidError, UnsupportedError
from dmaplane._library import verbs_missing
from dmaplane._plane import PATHS

if TYPE_CHECKING:
    from dmaplane._plane import Plane

Require = Literal["shm", "tcp", "verbs"]
_REQUIRED: Final[dict[Require, int]] = {
    "shm": _abi.PATH_SHM,
    "tcp": _abi.PATH_TCP,
    "verbs": _abi.PATH_VERBS,
}


def describe(
    request: _abi.Listen | _abi.Connect,
    *,
    address: str,
    secret: str | bytes | None,
    require: Require | None,
    encrypt: bool,
) -> None:
    """Fills in what LISTEN and CONNECT have in common."""
    if not isinstance(address, str):
        raise InvalidError(
            "address", f"{type(address).__name__} is no text", fix='e.g. "10.0.0.2:7471"'
        )
    place = address.encode()
    if not 0 < len(place) < _abi.ADDRESS_BYTES or b"\0" in place:
        raise InvalidError(
            "address", f"{len(place)} bytes", fix=f"1 .. {_abi.ADDRESS_BYTES - 1}, no NUL"
        )
    if not address.startswith("unix:/") and not address.rpartition(":")[2].isdecimal():
        raise InvalidError(
            "address", f"{address!r} has no port", fix='"host:port", "[host]:port" or "unix:/path"'
        )
    if require is not None and require not in _REQUIRED:
        raise InvalidError(
            "require", f"{require!r} is no path", fix='"shm", "tcp", "verbs" or None'
        )
    known = secret.encode() if isinstance(secret, str) else bytes(secret or b"")
    if len(known) > _abi.SECRET_BYTES:
        raise InvalidError(
            "secret", f"{len(known)} bytes", fix=f"at most {_abi.SECRET_BYTES}; hash a longer one"
        )
    if secret is not None and not known:
        raise InvalidError("secret", "it is empty", fix="at least one byte, or None")
    request.flags = (_abi.REQUIRE_PATH if require else 0) | (_abi.ENCRYPT if encrypt else 0)
    request.path = _REQUIRED[require] if require else 0
    ctypes.memmove(request.address, place, len(place))
    ctypes.memmove(request.secret, known, len(known))
    request.secret_bytes = len(known)


def forget_secret(request: _abi.Listen | _abi.Connect) -> None:
    """The plane has answered."""
    ctypes.memset(request.secret, 0, _abi.SECRET_BYTES)


def refuse(failure: DmaplaneError, plane: Plane, request: _abi.Listen | _abi.Connect) -> NoReturn:
    """Raises @failure, or a better one where the request says more than the errno."""
    address = bytes(request.address).partition(b"\0")[0].decode()
    if failure.errno == errno.ENODEV and request.flags & _abi.REQUIRE_PATH:
        raise UnsupportedError(
            f'require="{PATHS[request.path]}" for {address}',
            _broken_link(plane, request.path, address),
            errno=failure.errno,
        ) from failure
    if failure.errno == errno.EOPNOTSUPP and request.flags & _abi.ENCRYPT:
        raise UnsupportedError(
            f"encrypt=True for {address}",
            "a kernel with TLS on both sides (as root: modprobe tls), and encrypt=True on both",
            errno=failure.errno,
        ) from failure
    if failure.errno == errno.EOPNOTSUPP and isinstance(request, _abi.Connect):
        raise UnsupportedError(
            f"a connection to {address} in the clear",
            "encrypt=True: who listens there takes encrypted connections only",
            errno=failure.errno,
        ) from failure
    raise failure


def _broken_link(plane: Plane, path: int, address: str) -> str:
    """What is missing first on the way to that path."""
    if path == _abi.PATH_VERBS:
        return (
            verbs_missing() or f"a tcp address with an RDMA device on the way; {address} has none"
        )
    if PATHS[path] not in plane.paths:
        return f"a plane with that path; this one has {', '.join(plane.paths)}"
    if path == _abi.PATH_TCP:
        return "a tcp address; a unix: path is shared memory"
    host = address.rpartition(":")[0].strip("[]")
    if not address.startswith("unix:") and not _is_here(host):
        return f"a peer on this host; {host} is no address of it"
    return (
        "a peer of the same user and network namespace that offers shared memory there; "
        "who listens answers tcp only, or belongs to somebody else"
    )


def _is_here(host: str) -> bool:
    """Does this machine have that address? One that can be bound to is its own."""
    try:
        if ipaddress.ip_address(host).is_loopback:
            return True
    except ValueError:
        pass  # a name
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except OSError:
        return False
    for family, kind, _, _, where in found:
        with socket.socket(family, kind) as probe:
            try:
                probe.bind(where)
            except OSError:
                continue
            return True
    return False

# SPDX-License-Identifier: MIT
"""Regions: ranges of buffers that peers may read or write, and those of peers.

A Region holds its buffer until it is closed: the buffer's memory cannot be freed while a
peer may touch it. Its key is all that a peer needs, and all that it gets; whoever has the key
and a connection has the right. Closing a region ends the right at once and for good: a key
never becomes valid again (L7).

A RemoteRegion is what a key became on one endpoint. It dies with that connection.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import warnings
from typing import TYPE_CHECKING, Final, Literal

from dmaplane import _abi, _buffer
from dmaplane._errors import (
    BusyError,
    ClosedError,
    InvalidError,
    TimedOutError,
    error_from,
)
from dmaplane._plane import Capability, Visit, deadline_of, slice_of
from dmaplane._scope import Scope
from dmaplane._storage import Holders, free_retired

if TYPE_CHECKING:
    from dmaplane._buffer import Buffer, BufferRange
    from dmaplane._endpoint import Endpoint
    from dmaplane._plane import Plane

Access = Literal["read", "write", "rw"]
State = Literal["none", "live", "draining", "dead", "revoked"]
_ACCESS: Final[dict[Access, int]] = {
    "read": _abi.ACCESS_REMOTE_READ,
    "write": _abi.ACCESS_REMOTE_WRITE,
    "rw": _abi.ACCESS_REMOTE_READ | _abi.ACCESS_REMOTE_WRITE,
}
_STATES: Final[dict[int, State]] = {
    _abi.STATE_LIVE: "live",
    _abi.STATE_DRAINING: "draining",
    _abi.STATE_DEAD: "dead",
    _abi.STATE_REVOKED: "revoked",
}


def access_of(bits: int) -> Access:
    """The name of what a peer may do."""
    reads, writes = bits & _abi.ACCESS_REMOTE_READ, bits & _abi.ACCESS_REMOTE_WRITE
    return "rw" if reads and writes else "write" if writes else "read"


def state_of(number: int) -> State:
    """The name of a STATE_ number."""
    return _STATES.get(number, "none")


@dataclasses.dataclass(frozen=True, slots=True)
class Registration:
    """What the plane says of a region."""

    state: State
    access: Access
    generation: int
    offset: int
    """Where it starts in its buffer."""
    length_bytes: int
    operations: int
    """In flight on it."""


class Registered(Scope):
    """An id that REGION_QUERY and REGION_DESTROY take, and its end."""

    __slots__ = ("__weakref__", "_refusal", "access", "id", "length_bytes", "plane")

    def __init__(self, plane: Plane, identity: int, access: Access, length_bytes: int) -> None:
        self.plane = plane
        self.id = identity
        self.access: Access = access
        self.length_bytes = length_bytes
        self._refusal: str | None = None

    def __len__(self) -> int:
        return self.length_bytes

    @property
    def closed(self) -> bool:
        """True after close() or destroy(), or once what it belongs to is closed."""
        return self._refusal is not None or self.plane.closed

    def _check(self) -> None:
        self.plane._check()
        if self._refusal is not None:
            raise ClosedError(self._refusal)

    def query(self) -> Registration:
        """What the plane says of it now; one command."""
        self._check()
        answer = _abi.RegionQuery(region_id=self.id)
        self.plane.call("REGION_QUERY", _abi.REGION_QUERY, answer)
        return Registration(
            state=state_of(answer.state),
            access=access_of(answer.access),
            generation=answer.generation,
            offset=answer.offset,
            length_bytes=answer.length_bytes,
            operations=answer.operations,
        )

    def destroy(self, *, drain: bool = False, timeout: float | None = None) -> None:
        """Ends it now, or says why not: BusyError while an operation in flight uses it.

        With @drain: refuses new use at once and waits up to @timeout seconds for what is in
        flight; TimedOutError leaves it draining: it can be used for nothing, and goes with
        the last operation.
        """
        self._check()
        if timeout is not None and not drain:
            raise InvalidError("timeout", "only waiting has a limit", fix="destroy(drain=True)")
        if not drain:
            answer = self._command(0, 0)
            if answer == -errno.EBUSY:
                operations = self.query().operations
                raise BusyError(
                    f"region {self.id}", Holders(0, 0, 0, 0, operations), errno=errno.EBUSY
                )
            if answer:
                raise error_from(answer, "REGION_DESTROY", f"region {self.id}")
            self._refusal = f"region {self.id} is destroyed"
            self._ended()
            return
        self._refusal = f"region {self.id} is draining or destroyed"
        deadline, answer, last = deadline_of(timeout), -errno.ETIMEDOUT, False
        while answer == -errno.ETIMEDOUT and not last:
            until, last = slice_of(deadline)
            self.plane._check()
            answer = self._command(_abi.DESTROY_DRAIN, until)
        if answer == -errno.ETIMEDOUT:
            self.plane._leaving[self.id] = self
            raise TimedOutError(
                f"operations on region {self.id} are still in flight; it stays draining",
                errno=errno.ETIMEDOUT,
            )
        if answer:
            raise error_from(answer, "REGION_DESTROY", f"region {self.id}")
        self._ended()

    def _command(self, flags: int, deadline_ns: int) -> int:
        request = _abi.Destroy(
            size=ctypes.sizeof(_abi.Destroy), flags=flags, id=self.id, deadline_ns=deadline_ns
        )
        answer = -errno.EINTR
        with Visit(self.plane):
            if self.plane._ended:
                return 0
            while answer == -errno.EINTR:
                answer = self.plane._command(_abi.REGION_DESTROY, request)
        return answer

    def _ended(self) -> None:
        """It is gone from the plane."""

    def close(self) -> None:
        """Ends the right to it; idempotent. What is in flight finishes, nothing new begins."""
        if self._refusal is not None:
            return
        self._refusal = f"region {self.id} is closed"
        if not self.plane.closed:
            self._leave()

    @property
    def gone(self) -> bool:
        """True once nobody reaches the memory by it: it has ended, and what was in flight has."""
        if self.plane.closed:
            return True
        if self._refusal is None:
            return False
        return self.id not in self.plane._leaving or self._leave()

    def _leave(self) -> bool:
        """Destroys it, or leaves it draining for end_leaving(); True once it is gone."""
        answer = self._command(0, 0)
        if answer == -errno.EBUSY:
            answer = self._command(_abi.DESTROY_DRAIN, 1)
        if answer == -errno.ETIMEDOUT:
            self.plane._leaving[self.id] = self
            return False
        self.plane._leaving.pop(self.id, None)
        self._ended()
        if answer not in (0, -errno.ENOENT):
            raise error_from(answer, "REGION_DESTROY", f"region {self.id}")
        return True

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.length_bytes} bytes, {self.access}"
        return f"<region {self.id}, {state}>"


class Region(Registered):
    """A range of a buffer that peers may use. Made by `plane.region()`; close() revokes it.

    Give `key` to the peer, who makes a RemoteRegion of it with `endpoint.region(key)`. The
    key is a secret: it is all that is needed besides a connection.
    """

    __slots__ = ("buffer", "generation", "key", "offset")

    def __init__(self, part: BufferRange, access: Access, made: _abi.RegionCreate) -> None:
        super().__init__(part.buffer.plane, made.region_id, access, part.length_bytes)
        self.buffer: Buffer = part.buffer
        self.offset: int = part.offset
        self.generation: int = made.generation
        self.key = bytes(made.key[: made.key_bytes])

    def _ended(self) -> None:
        if not self.plane.closed:
            free_retired(self.plane)  # the buffer may have waited for this

    def __del__(self) -> None:
        if getattr(self, "_refusal", "") is None and not self.plane.closed:
            warnings.warn(
                f"{self!r} was never closed; peers may use it until the plane closes",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )


class RemoteRange:
    """A part of a peer's region: `remote[a:b]`. Names bytes, holds nothing."""

    __slots__ = ("length_bytes", "offset", "region")

    def __init__(self, region: RemoteRegion, offset: int, length_bytes: int) -> None:
        self.region = region
        self.offset = offset
        self.length_bytes = length_bytes

    def __len__(self) -> int:
        return self.length_bytes

    def __getitem__(self, part: slice) -> RemoteRange:
        start, length = _buffer.part_of(part, self.length_bytes)
        return RemoteRange(self.region, self.offset + start, length)

    def __repr__(self) -> str:
        return f"{self.region!r}[{self.offset}:{self.offset + self.length_bytes}]"


class RemoteRegion(Registered):
    """A peer's region on one endpoint: target of write() and write_imm(), source of read()."""

    __slots__ = ("all", "endpoint")

    def __init__(self, endpoint: Endpoint, made: _abi.RegionImport) -> None:
        super().__init__(endpoint.plane, made.region_id, access_of(made.access), made.length_bytes)
        self.endpoint = endpoint
        self.all = RemoteRange(self, 0, self.length_bytes)

    def _check(self) -> None:
        self.endpoint._check()
        super()._check()

    def __getitem__(self, part: slice) -> RemoteRange:
        start, length = _buffer.part_of(part, self.length_bytes)
        return RemoteRange(self, start, length)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.length_bytes} bytes, {self.access}"
        return f"<region {self.id} of peer {self.endpoint.peer_address}, {state}>"


def end_leaving(plane: Plane) -> None:
    """Destroys regions closed while something was in flight on them, where that has ended."""
    for region in list(plane._leaving.values()):
        region._leave()


def create(plane: Plane, source: Buffer | BufferRange, access: Access) -> Region:
    """Plane.region()."""
    end_leaving(plane)
    free_retired(plane)
    plane.require(Capability.REGION)
    if access not in _ACCESS:
        raise InvalidError("access", f"{access!r} is none", fix='"read", "write" or "rw"')
    part = _buffer.range_of(plane, source, "source")
    if part.buffer.read_only and access != "read":
        raise InvalidError("access", "this buffer is read-only", fix='access="read"')
    request = _abi.RegionCreate(
        buffer_id=part.buffer.id,
        access=_ACCESS[access],
        offset=part.offset,
        length_bytes=part.length_bytes,
    )
    plane.call("REGION_CREATE", _abi.REGION_CREATE, request)
    return Region(part, access, request)


def import_from(endpoint: Endpoint, key: bytes) -> RemoteRegion:
    """Endpoint.region()."""
    if not isinstance(key, bytes | bytearray | memoryview):
        raise InvalidError("key", f"{type(key).__name__} is no key", fix="bytes: Region.key")
    if not 0 < len(key) <= _abi.KEY_BYTES:
        raise InvalidError("key", f"{len(key)} bytes", fix=f"Region.key, 1 .. {_abi.KEY_BYTES}")
    end_leaving(endpoint.plane)
    request = _abi.RegionImport(endpoint_id=endpoint.id, key_bytes=len(key))
    ctypes.memmove(request.key, bytes(key), len(key))
    endpoint._call("REGION_IMPORT", _abi.REGION_IMPORT, request)
    return RemoteRegion(endpoint, request)

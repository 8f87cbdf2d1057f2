# SPDX-License-Identifier: MIT
"""A plane: who serves requests, and the parent of every buffer and channel.

`Plane` holds all that is the same for any plane; what differs is the six
methods that start with an underscore and are abstract here. A plane of another
kind is another subclass, and nobody above asks which one it is.

Who owns what. The plane owns every `Storage` (a buffer of the plane and its
mapping), however its `Buffer` handle ended, and knows its channels. close()
ends channels, then storage; if views of memory are still alive, the plane
itself is ended by the last of them, so that no view ever dangles.
"""

from __future__ import annotations

import abc
import ctypes
import dataclasses
import enum
import errno
import functools
import operator
import os
import time
import warnings
import weakref
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

from dmaplane import _abi
from dmaplane._errors import ClosedError, InvalidError, UnsupportedError, error_from
from dmaplane._scope import Scope
from dmaplane._statistics import Statistics, read_statistics
from dmaplane._topology import Topology, read_topology, text_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dmaplane._address import Require
    from dmaplane._buffer import Buffer, BufferRange
    from dmaplane._channel import Channel
    from dmaplane._endpoint import Endpoint
    from dmaplane._library import Client, Library
    from dmaplane._listener import Listener
    from dmaplane._placement import Kind, Policy
    from dmaplane._region import Access, Region, Registered
    from dmaplane._storage import Storage

Path = Literal["none", "local", "shm", "tcp", "verbs", "peer"]
SLICE_NS: Final = 200_000_000
PATHS: tuple[Path, ...] = ("none", "local", "shm", "tcp", "verbs", "peer")


class Capability(enum.IntFlag):
    """What a plane offers beyond buffers of kind pages and channels."""

    HUGE = _abi.CAP_HUGE
    COHERENT = _abi.CAP_COHERENT
    USER = _abi.CAP_USER
    PEER = _abi.CAP_PEER
    WRITE_COMBINE = _abi.CAP_WRITE_COMBINE
    EXPORT = _abi.CAP_EXPORT
    EXPORT_DMABUF = _abi.CAP_EXPORT_DMABUF
    IMPORT = _abi.CAP_IMPORT
    IMPORT_DMABUF = _abi.CAP_IMPORT_DMABUF
    EXPORT_TRACKED = _abi.CAP_EXPORT_TRACKED
    PLACEMENT = _abi.CAP_PLACEMENT
    BIND = _abi.CAP_BIND
    CHECKSUM = _abi.CAP_CHECKSUM
    REGION = _abi.CAP_REGION
    ENDPOINT = _abi.CAP_ENDPOINT
    REVOKE = _abi.CAP_REVOKE


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """How far a plane goes."""

    page_bytes: int
    huge_page_bytes: int
    """0 if there are none."""
    buffer_bytes_max: int
    buffers_max: int
    channels_max: int
    slots_max: int
    endpoints_max: int
    regions_max: int


def deadline_of(timeout: float | None, field: str = "timeout") -> int:
    """Seconds from now as an absolute time: 0 is no limit, 1 is long past (do not wait)."""
    if timeout is None:
        return 0
    if timeout != timeout or timeout < 0:
        raise InvalidError(field, f"{timeout} is not a time to wait", fix="seconds >= 0, or None")
    if timeout == 0:
        return 1
    if timeout > 1e9:
        return 0
    return time.monotonic_ns() + int(timeout * 1e9)


def slice_of(deadline_ns: int) -> tuple[int, bool]:
    """A nearer time to wait until, so that a wait notices a close; is it the last one?"""
    if deadline_ns == 1:
        return 1, True
    near = time.monotonic_ns() + SLICE_NS
    return (near, False) if not deadline_ns or near < deadline_ns else (deadline_ns, True)


class Visit:
    """Somebody is inside the plane: it is not ended under them, but by the last who leaves."""

    __slots__ = ("plane",)

    def __init__(self, plane: Plane) -> None:
        self.plane = plane

    def __enter__(self) -> None:
        self.plane._inside[self] = True

    def __exit__(self, *_: object) -> None:
        del self.plane._inside[self]
        if self.plane._refusal is not None:
            self.plane.end_if_unused()


class Plane(Scope):
    """A plane that is open. Use it in a `with` block; made by `dmaplane.open()`."""

    name: ClassVar[str]

    def __init__(self, reason: str) -> None:
        self.reason = reason
        self._refusal: str | None = None
        self._ended = False
        self._inside: dict[Visit, bool] = {}
        self._last = [True]  # popped by whoever ends it: list.pop() happens once
        self._storages: dict[int, Storage] = {}
        self._retired: dict[int, Storage] = {}  # of these, closed but still held
        self._channels: weakref.WeakValueDictionary[int, Channel] = weakref.WeakValueDictionary()
        self._leaving: dict[int, Registered] = {}  # regions closed, operations on them in flight
        self._eventfds: dict[int, int] = {}  # of channels, by id; left behind if one is forgotten
        self._process = os.getpid()
        _planes.add(self)
        answer = _abi.Query()
        try:
            self.call("QUERY", _abi.QUERY, answer)
        except BaseException:
            self.close()
            raise
        if answer.abi_major != _abi.ABI_MAJOR:
            self.close()
            raise UnsupportedError(
                f"a plane of ABI {answer.abi_major}.{answer.abi_minor}",
                f"a dmaplane package for that version; this one speaks "
                f"{_abi.ABI_MAJOR}.{_abi.ABI_MINOR}",
            )
        self.capabilities = Capability(answer.capabilities)
        self.nodes: int = answer.nodes
        self.incarnation: int = answer.incarnation
        self.version = text_of(answer.version)
        self.paths: tuple[Path, ...] = tuple(
            path for bit, path in enumerate(PATHS) if answer.fabrics >> bit & 1
        )
        self.limits = Limits(
            **{field.name: getattr(answer, field.name) for field in dataclasses.fields(Limits)}
        )

    # What differs from plane to plane. Each returns a negative errno on failure.

    @abc.abstractmethod
    def _command(self, number: int, struct: ctypes.Structure | ctypes.Array[ctypes.c_char]) -> int:
        """One command with its struct."""

    @abc.abstractmethod
    def _map(self, length_bytes: int, protection: int, map_offset: int) -> int:
        """Maps; returns the address."""

    @abc.abstractmethod
    def _unmap(self, address: int, length_bytes: int) -> int:
        """Takes back what _map gave."""

    @abc.abstractmethod
    def _poll(self, deadline_ns: int) -> int:
        """1 if any channel has an unread completion, 0 if the time passed."""

    @abc.abstractmethod
    def _end(self) -> int:
        """Returns all of the plane to the system."""

    @abc.abstractmethod
    def _attach(self, client: Client) -> Library:
        """Tells a ring client how to enter this plane."""

    def _leave_to_parent(self) -> None:
        """In a forked child: lets go of what was inherited and would keep the parent's alive."""

    # What is the same for all of them.

    @property
    def path(self) -> Path:
        """The path a copy between two buffers of this plane takes."""
        return "local" if "local" in self.paths else "none"

    @property
    def closed(self) -> bool:
        """True after close(), and in a forked child."""
        return self._refusal is not None

    def _check(self) -> None:
        if self._refusal is not None:
            raise ClosedError(self._refusal)

    def command(self, number: int, struct: ctypes.Structure | ctypes.Array[ctypes.c_char]) -> int:
        """A command of the contract as it stands: 0, or a negative errno.

        For tools and tests; @struct is passed unchanged, `size` included.
        """
        with Visit(self):
            self._check()
            return self._command(number, struct)

    def call(self, name: str, number: int, struct: ctypes.Structure, detail: str = "") -> None:
        """A command with its size filled in, repeated after signals, its errno raised."""
        struct.size = ctypes.sizeof(struct)
        while True:
            answer = self.command(number, struct)
            if answer >= 0:
                return
            if answer != -errno.EINTR:
                self._check()  # closed meanwhile: that is the reason
                raise error_from(answer, name, detail)

    def require(self, capability: Capability) -> None:
        """UnsupportedError, naming what is missing, unless the plane has all of @capability."""
        missing = capability & ~self.capabilities
        if missing:
            raise UnsupportedError(
                f"{missing.name or missing} on the {self.name} plane",
                "another plane or machine; `dmaplane doctor` says what is missing and why",
            )

    def wait(self, timeout: float | None = None) -> bool:
        """True when any channel has an unread completion; False if @timeout seconds passed."""
        deadline = deadline_of(timeout)
        while True:
            until, last = slice_of(deadline)
            with Visit(self):
                self._check()
                answer = self._poll(until)
            if answer > 0:
                return True
            if answer not in (0, -errno.EINTR):
                raise error_from(answer, "poll")
            if answer == 0 and last:
                return False

    def topology(self) -> Topology:
        """NUMA nodes, NICs and GPUs; one command a row."""
        self._check()
        return read_topology(self)

    def statistics(self) -> Statistics:
        """Counters of all that this plane did; one command."""
        return read_statistics(self, _abi.SCOPE_PLANE, 0)

    def buffer(
        self,
        length_bytes: int | None = None,
        *,
        kind: Kind | None = None,
        node: int | None = None,
        nodes: Iterable[int] | None = None,
        policy: Policy | None = None,
        strict: bool = False,
        huge: Literal["prefer", "require"] | None = None,
        user: Any = None,
        read_only: bool = False,
        write_combine: bool = False,
        peer: str | None = None,
        peer_bar: int | None = None,
        peer_address: int = 0,
    ) -> Buffer:
        """Allocates pinned, zeroed, resident memory; or, with @user, takes memory of yours.

        @length_bytes: usable bytes; the plane rounds the allocation up to whole pages.
        @kind: "pages" (default), "huge", "user", ... ; @huge is the short way to "huge".
        @node: the node preferred (with @strict: required). @nodes: the nodes @policy
        "bind" or "interleave" is about; "bind" if no policy is named.
        @strict: every page where it was asked for, verified, or NoMemoryError.
        @user: any object with the buffer protocol; @read_only: the plane never writes there.
        @write_combine: views gather writes and are slow to read: for what a device reads.
        @peer: the PCI address of a device ("0000:3b:00.0") whose memory it is: of its
        BAR @peer_bar from @peer_address on; or without @peer_bar, what its driver knows by
        that address (for a GPU, a pointer of its own).
        Raises InvalidError, UnsupportedError, NoMemoryError, LimitError. Costs the
        page faults of the whole length.
        """
        from dmaplane import _buffer

        self._check()
        return _buffer.create(
            self,
            length_bytes,
            kind=kind,
            node=node,
            nodes=nodes,
            policy=policy,
            strict=strict,
            huge=huge,
            user=user,
            read_only=read_only,
            write_combine=write_combine,
            peer=peer,
            peer_bar=peer_bar,
            peer_address=peer_address,
        )

    def import_buffer(self, source: Any, *, read_only: bool = False) -> Buffer:
        """A buffer from an fd (or an object with fileno()) that BUFFER_EXPORT or memfd gave.

        The fd stays the caller's and may be closed afterwards.
        """
        from dmaplane import _buffer

        self._check()
        return _buffer.import_from(self, source, read_only=read_only)

    def channel(
        self,
        slots: int = 256,
        *,
        completion_slots: int | None = None,
        cpu: int | None = None,
        node: int | None = None,
        workers: int = 1,
        spin_us: int | None = None,
    ) -> Channel:
        """A pair of rings and a worker.

        @slots: submissions the ring holds, a power of two. @completion_slots: by default
        twice that. @cpu, @node: where the worker runs. @workers: threads that share large
        copies. @spin_us: microseconds worker and waiters poll before they sleep; None lets
        the plane adapt.
        """
        from dmaplane import _channel

        self._check()
        return _channel.create(
            self,
            slots=slots,
            completion_slots=completion_slots,
            cpu=cpu,
            node=node,
            workers=workers,
            spin_us=spin_us,
        )

    def region(self, source: Buffer | BufferRange, access: Access = "rw") -> Region:
        """Registers a buffer, or a range of one, for peers to "read", to "write" or both.

        Give Region.key to a peer. The region holds the buffer until it is closed.
        """
        from dmaplane import _region

        self._check()
        return _region.create(self, source, access)

    def listen(
        self,
        address: str = "127.0.0.1:0",
        *,
        secret: str | bytes | None = None,
        require: Require | None = None,
        encrypt: bool = False,
        backlog: int = 16,
        channel: Channel | None = None,
    ) -> Listener:
        """Waits for peers at "host:port" (port 0: any free one), "[host]:port", "unix:/path".

        @secret: up to 64 bytes that both sides must know; mandatory beyond loopback.
        @require: the only path peers may come by, "shm", "tcp" or "verbs". @encrypt: bytes on a
        wire are encrypted, or UnsupportedError. @backlog: callers kept until accept(). @channel:
        which one is told that somebody has come; by default one of the listener's own.
        """
        from dmaplane import _listener

        self._check()
        return _listener.listen(
            self,
            address,
            secret=secret,
            require=require,
            encrypt=encrypt,
            backlog=backlog,
            channel=channel,
        )

    def connect(
        self,
        address: str,
        *,
        secret: str | bytes | None = None,
        window: int = 64,
        window_bytes: int = 4 << 20,
        timeout: float | None = 10.0,
        require: Require | None = None,
        encrypt: bool = False,
        detect: float | None = None,
        channel: Channel | None = None,
    ) -> Endpoint:
        """A connection to a peer that listens; `endpoint.path` says what carries the bytes.

        Shared memory on one host with one user, else tcp; or what @require says, or
        UnsupportedError with what is missing. @window: messages and immediates the peer may
        send before they are read here, and @window_bytes their bytes. @detect: seconds after
        which a silent peer is lost. @channel: by default one of the endpoint's own.
        Raises UnreachableError, NotAllowedError (another secret), TimedOutError.
        """
        from dmaplane import _seat

        self._check()
        return _seat.connect(
            self,
            address,
            secret=secret,
            window=window,
            window_bytes=window_bytes,
            timeout=timeout,
            require=require,
            encrypt=encrypt,
            detect=detect,
            channel=channel,
        )

    async def connect_async(self, address: str, **options: Any) -> Endpoint:
        """connect() for asyncio, with the same arguments; a thread of the loop's own waits."""
        from dmaplane import _seat

        self._check()
        return await _seat.connect_async(self, address, options)

    @property
    def buffers(self) -> int:
        """Buffers of this plane not yet freed, retired ones included."""
        return len(self._storages)

    def close(self) -> None:
        """Ends channels, then buffers, then the plane. Idempotent.

        Memory that numpy arrays or other views still show stays until they are gone.
        """
        if self._refusal is not None:
            return
        with Visit(self):  # nobody ends it before all of this is done
            # First, so that what is made meanwhile is either seen here or sees it.
            self._refusal = f"the {self.name} plane is closed"
            for reference in self._channels.valuerefs():
                channel = reference()
                if channel is not None:
                    channel.close()
            for storage in list(self._storages.values()):
                storage.retire()

    def end_if_unused(self) -> None:
        """Ends a closed plane once no view shows its memory any more."""
        if self._refusal is None or self._ended or self._process != os.getpid():
            return
        if any(storage.views for storage in list(self._storages.values())):
            return
        while True:
            self._ended = True  # first, so that who comes in now sees it
            if not self._inside:
                break
            self._ended = False
            if self._inside:
                return  # the last of them ends it
        try:
            self._last.pop()
        except IndexError:
            return
        self._storages.clear()
        self._retired.clear()
        answer = self._end()
        while self._eventfds:
            os.close(self._eventfds.popitem()[1])
        if answer:
            raise error_from(answer, "close")

    def __del__(self) -> None:
        if getattr(self, "_refusal", "") is None:
            warnings.warn(
                f"{self!r} was never closed; use `with dmaplane.open() as plane:`",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self._storages)} buffers"
        return f"<dmaplane {self.name} plane, {state}>"


_planes: weakref.WeakSet[Plane] = weakref.WeakSet()


def _after_fork() -> None:
    for plane in list(_planes):
        if plane._refusal is None:
            plane._refusal = (
                "this plane belongs to the process that opened it; "
                "a forked child opens its own with dmaplane.open()"
            )
        plane._leave_to_parent()
        for channel in list(plane._channels.values()):
            channel._forked()


os.register_at_fork(after_in_child=_after_fork)


def mask_of(nodes: Iterable[int]) -> int:
    """A node mask; InvalidError names the node that does not fit."""
    listed = list(nodes)
    for node in listed:
        if not 0 <= node < _abi.NODES_MAX:
            raise InvalidError("nodes", f"{node} is no node", fix=f"0 .. {_abi.NODES_MAX - 1}")
    return functools.reduce(operator.or_, (1 << node for node in listed), 0)

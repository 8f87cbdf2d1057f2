# SPDX-License-Identifier: MIT
"""Two planes and a connection between them, through the raw commands of the contract.

The connector is `near`, the acceptor is `far`. Each Side has a plane and a channel of its
own, so that what one of them forgets to do cannot be done by the other.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import threading
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dmaplane import _abi
from dmaplane._plane import PATHS
from dmaplane.testing import _rig
from dmaplane.testing._rig import MIB, Mapped, Rings, ask, expect, later, name_of, rows_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    from dmaplane._plane import Path, Plane
    from dmaplane.testing._case import MakePlane

LOOPBACK: Final = os.environ.get("DMAPLANE_CONFORMANCE_ADDRESS", "127.0.0.1:0")
"""Where cases listen. RDMA has no loopback: there it is an address of a device."""

ANYBODY: Final = b"" if LOOPBACK.startswith("127.") else b"whoever runs the suite"
"""The secret of a case that is not about secrets: off loopback there has to be one."""

REMOTE: Final = _abi.ACCESS_REMOTE_READ | _abi.ACCESS_REMOTE_WRITE
DETECT_MS: Final = int(500 * _rig.SLOWNESS)
"""Where a case waits for a silent peer to be found out."""

DETECTED_S: Final = 8 * DETECT_MS / 1000
"""A silent peer counts as never found out after this: eight times what was asked for."""

WINDOW: Final = {"window_slots": 16, "window_bytes": MIB, "detect_ms": 600_000}
"""So patient that no ping comes to the rescue of a plane that forgot to wake somebody."""


def blob(room: Any, content: bytes) -> None:
    """Puts @content into a byte field of a struct."""
    ctypes.memmove(ctypes.addressof(room), content, min(len(content), ctypes.sizeof(room)))


def text(field: Any) -> str:
    """A printable field; it has an end."""
    content = bytes(field)
    assert 0 in content, "no NUL ends the text"
    return content[: content.index(0)].decode()


def _require(path: Path | None) -> dict[str, int]:
    return {"flags": _abi.REQUIRE_PATH, "path": PATHS.index(path)} if path else {}


def try_listen(
    plane: Plane,
    channel: int,
    address: str = LOOPBACK,
    *,
    path: Path | None = None,
    secret: bytes = ANYBODY,
    fields: dict[str, int] | None = None,
) -> tuple[int, _abi.Listen]:
    """LISTEN and its answer."""
    request = _abi.Listen(channel_id=channel, **{**_require(path), **(fields or {})})
    request.secret_bytes = len(secret)
    blob(request.secret, secret)
    blob(request.address, address.encode())
    return ask(plane, _abi.LISTEN, request), request


def listen(
    plane: Plane,
    channel: int,
    address: str = LOOPBACK,
    *,
    path: Path | None = None,
    secret: bytes = ANYBODY,
) -> tuple[int, str]:
    """LISTEN that must succeed: the listener, and where it is."""
    answer, made = try_listen(plane, channel, address, path=path, secret=secret)
    expect(answer, 0)
    return made.listener_id, text(made.bound_address)


def try_connect(
    plane: Plane,
    channel: int,
    address: str,
    *,
    path: Path | None = None,
    secret: bytes = ANYBODY,
    deadline_ns: int | None = None,
    fields: dict[str, int] | None = None,
) -> tuple[int, _abi.Connect]:
    """CONNECT and its answer; PATIENCE_S unless there is a deadline."""
    limit = later() if deadline_ns is None else deadline_ns
    every = {**WINDOW, "deadline_ns": limit, **_require(path), **(fields or {})}
    request = _abi.Connect(channel_id=channel, **every)
    request.secret_bytes = len(secret)
    blob(request.secret, secret)
    blob(request.address, address.encode())
    return ask(plane, _abi.CONNECT, request), request


def try_accept(plane: Plane, listener: int, channel: int, **fields: int) -> tuple[int, _abi.Accept]:
    """ACCEPT and its answer; PATIENCE_S unless @fields have a deadline."""
    fields = {**WINDOW, "deadline_ns": later(), **fields}
    request = _abi.Accept(listener_id=listener, channel_id=channel, **fields)
    return ask(plane, _abi.ACCEPT, request), request


def accept(plane: Plane, listener: int, channel: int, **fields: int) -> _abi.Accept:
    """ACCEPT until somebody who may come in has come; those who may not are passed over."""
    limit = later()
    while True:
        answer, made = try_accept(plane, listener, channel, deadline_ns=limit, **fields)
        if answer not in (-errno.EACCES, -errno.ECONNRESET, -errno.EPROTO):
            expect(answer, 0)
            return made


class Meanwhile:
    """A call in a thread of its own. Leaving the block waits for it."""

    def __init__(self, body: Callable[[], Any]) -> None:
        self._answer: Any = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(body,), daemon=True)
        self._thread.start()

    def _run(self, body: Callable[[], Any]) -> None:
        try:
            self._answer = body()
        except BaseException as failure:
            self._failure = failure

    @property
    def running(self) -> bool:
        """Has it not returned yet?"""
        return self._thread.is_alive()

    def answer(self) -> Any:
        """What it returned, or what it raised."""
        self._thread.join(2 * _rig.PATIENCE_S)
        assert not self._thread.is_alive(), "a call in another thread never returned"
        if self._failure is not None:
            raise self._failure
        return self._answer

    def __enter__(self) -> Meanwhile:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(2 * _rig.PATIENCE_S)


class Memory:
    """A buffer with its bytes, mapped until the plane is closed."""

    def __init__(self, plane: Plane, length_bytes: int, fill: int = 0) -> None:
        made = _rig.create_buffer(plane, length_bytes)
        self.id: int = made.buffer_id
        self.mapped = Mapped(plane, made)
        self.bytes = self.mapped.bytes
        if fill:
            self.bytes[:] = fill

    def scramble(self, seed: int) -> None:
        """Bytes that no other place or seed has."""
        self.bytes[:] = np.random.default_rng(seed).integers(
            0, 256, len(self.bytes), dtype=np.uint8
        )


class Side:
    """One end of a connection: its plane, its channel, its endpoint."""

    def __init__(self, plane: Plane, rings: Rings, made: Any) -> None:
        self.plane, self.rings = plane, rings
        self.endpoint: int = made.endpoint_id
        self.path: int = made.path_taken
        self.epoch: int = made.epoch
        self.events: list[np.void] = []
        self._done: list[np.void] = []

    def memory(self, length_bytes: int, fill: int = 0) -> Memory:
        """A buffer of this side."""
        return Memory(self.plane, length_bytes, fill)

    def submit(self, *entries: dict[str, int]) -> None:
        """Submits to the endpoint; all are accepted. user_data counts from 1 unless given."""
        rows = rows_of(*({"endpoint_id": self.endpoint, **entry} for entry in entries))
        self.rings.put(rows)
        accepted = self.rings.enter(len(rows)).accepted
        assert accepted == len(rows), f"{accepted} of {len(rows)} accepted"

    def sort(self) -> None:
        """Takes what is unread, events to one side."""
        for entry in self.rings.take():
            is_event = int(entry["flags"]) & _abi.COMPLETE_EVENT
            (self.events if is_event else self._done).append(entry.copy())

    def completed(self) -> int:
        """Completions that are here and were not handed out."""
        self.sort()
        return len(self._done)

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        limit = later()
        while not condition():
            _, answer = self.rings.try_enter(0, 1, limit)
            assert answer == 0, f"{what}: {name_of(answer)}"
            self.sort()

    def wait(self, count: int = 1) -> npt.NDArray[np.void]:
        """The next @count completions; fails if they never come."""
        self.sort()
        self._until(lambda: len(self._done) >= count, f"{count} completions never came")
        taken, self._done = self._done[:count], self._done[count:]
        return np.array(taken, dtype=_abi.COMPLETION)

    def wait_for(self, user_data: int) -> np.void:
        """The next completion with this number, whatever else has come before it."""

        def place() -> int:
            numbers = [int(entry["user_data"]) for entry in self._done]
            return numbers.index(user_data) if user_data in numbers else -1

        self.sort()
        self._until(lambda: place() >= 0, f"number {user_data} never completed")
        return self._done.pop(place())

    def event(self, kind: int) -> np.void:
        """The next event of @kind; fails if it never comes."""
        self.sort()

        def first() -> int:
            kinds = [int(entry["operation"]) for entry in self.events]
            return kinds.index(kind) if kind in kinds else -1

        self._until(lambda: first() >= 0, f"event {kind} never came")
        return self.events.pop(first())

    def run(self, *entries: dict[str, int]) -> npt.NDArray[np.void]:
        """Submits, and waits for as many completions."""
        self.submit(*entries)
        return self.wait(len(entries))

    def results(self, *entries: dict[str, int]) -> dict[int, int]:
        """user_data -> result of what is run; each came once (L1)."""
        return _rig.results(self.run(*entries))

    def result(self, entry: dict[str, int]) -> int:
        """The result of one."""
        return int(self.run(entry)["result"][0])

    def try_query(self) -> tuple[int, _abi.EndpointQuery]:
        """ENDPOINT_QUERY and its answer."""
        request = _abi.EndpointQuery(endpoint_id=self.endpoint)
        return ask(self.plane, _abi.ENDPOINT_QUERY, request), request

    def query(self) -> _abi.EndpointQuery:
        """ENDPOINT_QUERY that must succeed."""
        answer, made = self.try_query()
        expect(answer, 0)
        return made

    def cancel(self, user_data: int = 0, flags: int = 0) -> tuple[int, int]:
        """CANCEL: its answer, and how many were cancelled."""
        request = _abi.Cancel(
            channel_id=self.rings.id, user_data=user_data, flags=flags, deadline_ns=later()
        )
        return ask(self.plane, _abi.CANCEL, request), request.cancelled

    def destroy(self, drain_until: int | None = None) -> int:
        """ENDPOINT_DESTROY and its answer."""
        return _rig.destroy(
            self.plane, _abi.ENDPOINT_DESTROY, self.endpoint, drain_until=drain_until
        )

    def try_region(
        self, memory: int, access: int, offset: int, length_bytes: int
    ) -> tuple[int, _abi.RegionCreate]:
        """REGION_CREATE and its answer."""
        request = _abi.RegionCreate(
            buffer_id=memory, access=access, offset=offset, length_bytes=length_bytes
        )
        return ask(self.plane, _abi.REGION_CREATE, request), request

    def region(
        self, memory: Memory, access: int = REMOTE, offset: int = 0, length_bytes: int = 0
    ) -> _abi.RegionCreate:
        """REGION_CREATE that must succeed; to the end of the buffer unless a length is given."""
        length = length_bytes or len(memory.bytes) - offset
        answer, made = self.try_region(memory.id, access, offset, length)
        expect(answer, 0)
        return made

    def try_import(self, key: bytes) -> tuple[int, _abi.RegionImport]:
        """REGION_IMPORT and its answer."""
        request = _abi.RegionImport(endpoint_id=self.endpoint, key_bytes=len(key))
        blob(request.key, key)
        return ask(self.plane, _abi.REGION_IMPORT, request), request

    def import_region(self, made: _abi.RegionCreate) -> int:
        """REGION_IMPORT that must succeed: the id."""
        answer, imported = self.try_import(key_of(made))
        expect(answer, 0)
        identity: int = imported.region_id
        return identity

    def destroy_region(self, identity: int, drain_until: int | None = None) -> int:
        """REGION_DESTROY and its answer."""
        return _rig.destroy(self.plane, _abi.REGION_DESTROY, identity, drain_until=drain_until)

    def revoke(self, made: _abi.RegionCreate) -> None:
        """Ends a grant. An answer the peer has read may still be leaving here, so it waits."""
        expect(self.destroy_region(made.region_id, drain_until=later()), 0)


def key_of(made: _abi.RegionCreate) -> bytes:
    """What a peer is told of a region."""
    assert 0 < made.key_bytes <= _abi.KEY_BYTES
    return bytes(made.key)[: made.key_bytes]


def send(memory: Memory, length_bytes: int, offset: int = 0, **fields: int) -> dict[str, int]:
    """A SEND entry."""
    return {
        "operation": _abi.OP_SEND,
        "source_id": memory.id,
        "source_offset": offset,
        "length_bytes": length_bytes,
        **fields,
    }


def recv(memory: Memory, length_bytes: int, offset: int = 0, **fields: int) -> dict[str, int]:
    """A RECV entry."""
    return {
        "operation": _abi.OP_RECV,
        "target_id": memory.id,
        "target_offset": offset,
        "length_bytes": length_bytes,
        **fields,
    }


def write(memory: Memory, remote: int, length_bytes: int, **fields: int) -> dict[str, int]:
    """A WRITE entry."""
    return {
        "operation": _abi.OP_WRITE,
        "source_id": memory.id,
        "target_id": remote,
        "length_bytes": length_bytes,
        **fields,
    }


def write_imm(
    memory: Memory, remote: int, length_bytes: int, immediate: int, **fields: int
) -> dict[str, int]:
    """A WRITE_IMM entry."""
    return {
        **write(memory, remote, length_bytes, **fields),
        "operation": _abi.OP_WRITE_IMM,
        "immediate": immediate,
    }


def read(memory: Memory, remote: int, length_bytes: int, **fields: int) -> dict[str, int]:
    """A READ entry."""
    return {
        "operation": _abi.OP_READ,
        "source_id": remote,
        "target_id": memory.id,
        "length_bytes": length_bytes,
        **fields,
    }


def join(
    near: tuple[Plane, Rings],
    far: tuple[Plane, Rings],
    path: Path | None,
    *,
    address: str = LOOPBACK,
    secret: bytes = ANYBODY,
    near_fields: dict[str, int] | None = None,
    far_fields: dict[str, int] | None = None,
) -> tuple[Side, Side]:
    """Connects @near to @far; the listener is gone afterwards."""
    with Rings(far[0], slots=1) as door:  # what it says of the listener is not for @far
        listener, bound = listen(far[0], door.id, address, path=path, secret=secret)
        try:
            return meet(near, far, path, listener, bound, secret, near_fields, far_fields)
        finally:
            expect(_rig.destroy(far[0], _abi.LISTENER_DESTROY, listener), 0)


def meet(
    near: tuple[Plane, Rings],
    far: tuple[Plane, Rings],
    path: Path | None,
    listener: int,
    bound: str,
    secret: bytes = ANYBODY,
    near_fields: dict[str, int] | None = None,
    far_fields: dict[str, int] | None = None,
) -> tuple[Side, Side]:
    """Connects @near to @far through a listener that there is."""

    def dial() -> tuple[int, _abi.Connect]:
        return try_connect(near[0], near[1].id, bound, path=path, secret=secret, fields=near_fields)

    with Meanwhile(dial) as dialling:
        accepted = accept(far[0], listener, far[1].id, **(far_fields or {}))
        answer, made = dialling.answer()
    expect(answer, 0)
    return Side(near[0], near[1], made), Side(far[0], far[1], accepted)


@contextlib.contextmanager
def connected(
    make_plane: MakePlane,
    path: Path | None,
    *,
    slots: int = 64,
    secret: bytes = ANYBODY,
    near_fields: dict[str, int] | None = None,
    far_fields: dict[str, int] | None = None,
    channel_fields: dict[str, int] | None = None,
) -> Iterator[tuple[Side, Side]]:
    """(near, far), each on a plane of its own; both planes are closed afterwards."""
    fields = channel_fields or {}
    with make_plane() as one, make_plane() as other:
        near, far = Rings(one, slots=slots, **fields), Rings(other, slots=slots, **fields)
        yield join(
            (one, near),
            (other, far),
            path,
            secret=secret,
            near_fields=near_fields,
            far_fields=far_fields,
        )

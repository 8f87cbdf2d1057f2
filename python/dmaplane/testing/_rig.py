# SPDX-License-Identifier: MIT
"""What cases are built from: raw commands, raw rings, raw mappings, children.

Everything here speaks the contract itself, so that a case proves what the plane
does and not what the Python API makes of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import socket
import time
import warnings
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dmaplane import _abi
from dmaplane._plane import Capability

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    from dmaplane._plane import Plane

READ: Final = 1
BOTH: Final = 3

SHARES: Final = (
    Capability.EXPORT | Capability.IMPORT,
    Capability.EXPORT | Capability.EXPORT_DMABUF | Capability.IMPORT_DMABUF,
)
"""What a plane needs to import what it exports: memory files or dma-bufs."""

IMPORTS: Final = (Capability.IMPORT, Capability.IMPORT_DMABUF)

SLOWNESS_VARIABLE: Final = "DMAPLANE_TEST_SLOWNESS"
SLOWNESS: Final = max(1.0, float(os.environ.get(SLOWNESS_VARIABLE, "1")))
"""How many times slower than an ordinary machine this one is: an emulated one, a debug kernel."""

PATIENCE_S: Final = 20.0 * SLOWNESS
"""What should take milliseconds is given this long before it counts as never."""

SECOND: Final = 1.0 * SLOWNESS
"""The second within which everything is returned (L4)."""

MIB: Final = 1 << 20


def later(seconds: float = PATIENCE_S) -> int:
    """A deadline."""
    return time.monotonic_ns() + int(seconds * 1e9)


def name_of(answer: int) -> str:
    """'-EBUSY' for -16."""
    return str(answer) if answer >= 0 else "-" + errno.errorcode.get(-answer, str(-answer))


def ask(plane: Plane, number: int, struct: ctypes.Structure) -> int:
    """A command with its size filled in; 0 or a negative errno. Repeats after signals."""
    struct.size = ctypes.sizeof(struct)
    while (answer := plane.command(number, struct)) == -errno.EINTR:
        pass
    return answer


def expect(answer: int, *wanted: int) -> None:
    """@answer is one of @wanted (given as positive errno, or 0)."""
    assert -answer in wanted, (
        f"got {name_of(answer)}, wanted {' or '.join(name_of(-number) for number in wanted)}"
    )


def create_buffer(plane: Plane, length_bytes: int = 4096, **fields: int) -> _abi.BufferCreate:
    """A buffer, any place unless fields say otherwise."""
    request = _abi.BufferCreate(length_bytes=length_bytes, **{"node": -1, **fields})
    expect(ask(plane, _abi.BUFFER_CREATE, request), 0)
    return request


def destroy(plane: Plane, number: int, identity: int, *, drain_until: int | None = None) -> int:
    """Any *_DESTROY."""
    request = _abi.Destroy(id=identity)
    if drain_until is not None:
        request.flags, request.deadline_ns = _abi.DESTROY_DRAIN, drain_until
    return ask(plane, number, request)


def query_buffer(plane: Plane, identity: int, flags: int = 0) -> _abi.BufferQuery:
    """BUFFER_QUERY that must succeed."""
    answer = _abi.BufferQuery(buffer_id=identity, flags=flags)
    expect(ask(plane, _abi.BUFFER_QUERY, answer), 0)
    return answer


class Sight:
    """How a case sees what a plane mapped: as the memory that it is."""

    def bytes_at(self, address: int, length_bytes: int) -> Any:
        """A mapping's bytes."""
        memory = (ctypes.c_ubyte * length_bytes).from_address(address)
        return np.frombuffer(memoryview(memory), dtype=np.uint8)

    def rings_at(
        self, address: int, made: _abi.ChannelCreate, completion_slots: int
    ) -> tuple[Any, Any, Any]:
        """The rings of a channel: control, submissions, completions."""
        bytes_ = self.bytes_at(address, made.map_bytes)

        def ring(offset: int, slots: int, kind: np.dtype[np.void]) -> Any:
            return bytes_[offset : offset + slots * kind.itemsize].view(kind)

        return (
            _abi.RingControl.from_address(address),
            ring(made.submissions_offset, made.slots, _abi.SUBMISSION),
            ring(made.completions_offset, completion_slots, _abi.COMPLETION),
        )


HERE: Final = Sight()


def sight_of(plane: Plane) -> Sight:
    """A plane whose memory is in another machine has a `sight` of its own."""
    sight: Sight = getattr(plane, "sight", HERE)
    return sight


class Mapped:
    """A mapping of a buffer, as bytes. Gone after unmap()."""

    def __init__(self, plane: Plane, made: Any, protection: int = BOTH) -> None:
        length = getattr(made, "map_bytes", 0) or made.length_bytes
        address = plane._map(length, protection, made.map_offset)
        assert address > 0, f"mmap of buffer {made.buffer_id}: {name_of(address)}"
        self._plane, self._address, self._length = plane, address, length
        self.bytes: npt.NDArray[np.uint8] = sight_of(plane).bytes_at(address, length)

    def unmap(self) -> None:
        """Gives it back; idempotent."""
        address, self._address = self._address, 0
        if address:
            self.bytes = np.empty(0, np.uint8)
            expect(self._plane._unmap(address, self._length), 0)

    def __enter__(self) -> Mapped:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._plane.closed:
            self.unmap()


class Rings:
    """A channel used through its raw rings, the way a hostile or a foreign user would."""

    def __init__(self, plane: Plane, slots: int = 64, **fields: int) -> None:
        made = _abi.ChannelCreate(slots=slots, **fields)
        expect(ask(plane, _abi.CHANNEL_CREATE, made), 0)
        self.plane = plane
        self.id = made.channel_id
        self.slots = slots
        self.completion_slots = made.completion_slots or 2 * slots
        address = plane._map(made.map_bytes, BOTH, made.map_offset)
        assert address > 0, f"mmap of channel {self.id}: {name_of(address)}"
        self._address, self._map_bytes = address, made.map_bytes
        seen = sight_of(plane).rings_at(address, made, self.completion_slots)
        self.control: _abi.RingControl = seen[0]
        self.submissions: npt.NDArray[np.void] = seen[1]
        self.completions: npt.NDArray[np.void] = seen[2]

    def put(self, rows: npt.NDArray[np.void]) -> None:
        """Writes submissions and moves the tail; the plane has not seen them yet."""
        tail = self.control.submit_tail
        for index, row in enumerate(rows):
            self.submissions[(tail + index) & (self.slots - 1)] = row
        self.control.submit_tail = (tail + len(rows)) & 0xFFFFFFFF

    def enter(self, submit: int = 0, wait: int = 0, deadline_ns: int | None = None) -> _abi.Enter:
        """ENTER that must succeed; waits are cut by PATIENCE_S unless told otherwise."""
        request, answer = self.try_enter(submit, wait, deadline_ns)
        expect(answer, 0)
        return request

    def try_enter(
        self, submit: int = 0, wait: int = 0, deadline_ns: int | None = None
    ) -> tuple[_abi.Enter, int]:
        """ENTER and its answer."""
        request = _abi.Enter(
            channel_id=self.id,
            submit_count=submit,
            wait_count=wait,
            deadline_ns=later() if deadline_ns is None else deadline_ns,
        )
        return request, ask(self.plane, _abi.ENTER, request)

    def take(self) -> npt.NDArray[np.void]:
        """Copies unread completions out and frees their slots."""
        head, tail = self.control.complete_head, self.control.complete_tail
        count = (tail - head) & 0xFFFFFFFF
        assert count <= self.completion_slots, f"{count} unread of {self.completion_slots}"
        at = (np.arange(count, dtype=np.uint32) + np.uint32(head)) & np.uint32(
            self.completion_slots - 1
        )
        taken: npt.NDArray[np.void] = self.completions[at]
        self.control.complete_head = tail
        return taken

    def run(self, rows: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
        """Submits rows that fit, waits for all, takes all."""
        self.put(rows)
        done = self.enter(len(rows), len(rows))
        assert done.accepted == len(rows), f"{done.accepted} of {len(rows)} accepted"
        return self.take_exactly(len(rows))

    def take_exactly(self, count: int) -> npt.NDArray[np.void]:
        """Waits for @count completions; fails if they never come."""
        parts: list[npt.NDArray[np.void]] = []
        limit = later()
        while (missing := count - sum(map(len, parts))) > 0:
            request, answer = self.try_enter(0, min(missing, self.completion_slots), limit)
            expect(answer, 0)
            assert request.unread, f"{missing} of {count} completions never came"
            parts.append(self.take())
        taken = np.concatenate(parts) if parts else np.empty(0, _abi.COMPLETION)
        assert len(taken) == count, f"{len(taken)} completions for {count} submissions"
        return taken

    def query(self) -> _abi.ChannelQuery:
        """CHANNEL_QUERY that must succeed."""
        answer = _abi.ChannelQuery(channel_id=self.id)
        expect(ask(self.plane, _abi.CHANNEL_QUERY, answer), 0)
        return answer

    def unmap(self) -> None:
        """Gives the mapping back; idempotent."""
        address, self._address = self._address, 0
        if address:
            expect(self.plane._unmap(address, self._map_bytes), 0)

    def close(self) -> None:
        """Unmaps and destroys; what is in flight is cancelled."""
        self.unmap()
        expect(destroy(self.plane, _abi.CHANNEL_DESTROY, self.id), 0)

    def __enter__(self) -> Rings:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and not self.plane.closed and self._address:
            self.close()


def rows_of(*entries: dict[str, int]) -> npt.NDArray[np.void]:
    """Submissions from dictionaries; user_data counts from 1 unless given."""
    rows = np.zeros(len(entries), _abi.SUBMISSION)
    for index, entry in enumerate(entries):
        rows["user_data"][index] = index + 1
        for field, value in entry.items():
            rows[field][index] = value
    return rows


def copy_of(source: int, target: int, length_bytes: int, **fields: int) -> dict[str, int]:
    """A COPY entry."""
    return {
        "operation": _abi.OP_COPY,
        "source_id": source,
        "target_id": target,
        "length_bytes": length_bytes,
        **fields,
    }


def results(completions: npt.NDArray[np.void]) -> dict[int, int]:
    """user_data -> result; fails if one comes twice (L1)."""
    found: dict[int, int] = {}
    for entry in completions:
        key = int(entry["user_data"])
        assert key not in found, f"user_data {key} completed twice (L1)"
        found[key] = int(entry["result"])
    return found


@contextlib.contextmanager
def busy_channel(plane: Plane, *, length_bytes: int = 64 * MIB) -> Iterator[tuple[Rings, int, int]]:
    """Rings with long copies in flight between two buffers: (rings, source id, target id).

    16 copies in order: at 10 GB/s one takes 6 ms and all of them 100 ms.
    """
    source = create_buffer(plane, length_bytes).buffer_id
    target = create_buffer(plane, length_bytes).buffer_id
    with Rings(plane, slots=32) as rings:
        rows = rows_of(*(copy_of(source, target, length_bytes) for _ in range(16)))
        rings.put(rows)
        assert rings.enter(16).accepted == 16
        yield rings, source, target


def export_buffer(plane: Plane, identity: int, flags: int = 0) -> int:
    """An fd of a buffer that a plane of this kind can import, if it imports at all."""
    dmabufs = Capability.EXPORT_DMABUF | Capability.IMPORT_DMABUF
    if Capability.IMPORT not in plane.capabilities and dmabufs in plane.capabilities:
        flags |= _abi.EXPORT_DMABUF
    request = _abi.BufferExport(buffer_id=identity, flags=flags)
    expect(ask(plane, _abi.BUFFER_EXPORT, request), 0)
    fd: int = request.fd
    return fd


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Fails, saying @what, unless @condition holds within @seconds."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, f"not within {seconds} s: {what}"
        time.sleep(0.002)


def wait_until_begun(place: npt.NDArray[np.uint8], was: int) -> None:
    """Returns as soon as the first byte of @place is not @was: what moves there has begun.

    Whoever is to be caught half-way is stopped then, and not after a time that is
    long on one machine and short on another. It spins: a sleep may outlast a transfer.
    """
    limit = time.monotonic() + PATIENCE_S
    while place[0] == was:
        assert time.monotonic() < limit, f"no byte moved in {PATIENCE_S} s"


class Child:
    """A forked child with a socket to it. It runs @body(socket) and ends."""

    def __init__(self, body: Callable[[socket.socket], None]) -> None:
        ours, theirs = socket.socketpair()
        with warnings.catch_warnings():
            # The child calls only what is safe after a fork of a threaded process.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                ours.close()
                signal.alarm(60)
                body(theirs)
                status = 0
            except BaseException as reason:
                with contextlib.suppress(OSError):
                    theirs.sendall(f"!{type(reason).__name__}: {reason}".encode()[:400])
            finally:
                os._exit(status)
        theirs.close()
        self.socket = ours
        self.socket.settimeout(PATIENCE_S)

    def hear(self) -> bytes:
        """One message of the child; what it raised becomes an AssertionError here."""
        said = self.socket.recv(512)
        assert not said.startswith(b"!"), f"in the child: {said[1:].decode()}"
        return said

    def kill(self) -> None:
        """kill -9."""
        os.kill(self.pid, signal.SIGKILL)
        self.join(expected=-signal.SIGKILL)

    def join(self, expected: int = 0) -> None:
        """Waits for its end."""
        if self.pid:
            _, status = os.waitpid(self.pid, 0)
            self.pid = 0
            self.socket.close()
            ended = os.waitstatus_to_exitcode(status)
            assert ended == expected, f"the child ended with {ended}"

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0
            self.socket.close()


def open_fds() -> int:
    """File descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


def threads() -> int:
    """Threads of this process, those of the library included."""
    return len(os.listdir("/proc/self/task"))

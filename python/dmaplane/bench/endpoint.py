# SPDX-License-Identifier: MIT
"""What endpoints cost between two processes, next to memcpy, a plain socket and libfabric.

Bytes. WRITE_IMM of every block of a source into a target of the same size in another process,
in order and at random, submitted as arrays from Python with two batches in flight (4 KiB:
1024 a batch); the other side takes the immediates in C. Time ends when every write has
completed here and every immediate was taken there. Next to it, in turns, over the same pages:
memcpy into the target's memory as this process maps it, a plain TCP socket whose two ends know
the blocks beforehand, libfabric's fi_writedata polling from C with as many in flight, and, where
installed, NIXL and Mooncake. After one round the bytes are compared. A claim about both
orders is about the worse.

Round trips. A WRITE_IMM of 8 bytes each way, Python at both ends, then C. "waiting" is a channel as
it comes: whoever waits spins for 50 us at most, then sleeps. "asleep" never spins, so that each
way wakes a process; "spinning" never sleeps. p50, the median of several blocks.

Growth. WRITE_IMM of 64 bytes: on one of N endpoints against the only one; with N submissions in
flight against 256. Idle: CPU time of a process whose 64 endpoints do nothing, of the two
that are connected the one that needs more.
Lost: from kill -9 of the other process, in the middle of writes of 1 MiB, until the last of the
submissions has completed with its error.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import resource
import socket
import time
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from dmaplane import _abi
from dmaplane._plane import Capability
from dmaplane.bench import _crowd, _link, _loops, _loss, _peers, _pool, _result, _roundtrip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    from dmaplane._buffer import Buffer
    from dmaplane._channel import Channel
    from dmaplane._plane import Plane

LOST_BYTES_MAX: Final = 256 << 20
SLOTS: Final = 4096
WINDOW: Final = 4096


class Size(NamedTuple):
    """One block size."""

    name: str
    block_bytes: int
    batch: int


SIZES: Final = (
    Size("4KiB", 4 << 10, 1024),
    Size("64KiB", 64 << 10, 256),
    Size("1MiB", 1 << 20, 32),
)
ORDERS: Final = ("in order", "at random")


class Ground:
    """The memory of both sides, this side's part of it mapped, and the rows all sides know."""

    def __init__(
        self, stack: contextlib.ExitStack, plane: Plane, kind: str, length_bytes: int
    ) -> None:
        self.plane = plane
        self.kind = kind
        self.length_bytes = length_bytes
        rows_max = length_bytes // SIZES[0].block_bytes
        self.rows_fd = os.memfd_create("dmaplane-bench-rows", os.MFD_CLOEXEC)
        stack.callback(os.close, self.rows_fd)
        os.ftruncate(self.rows_fd, rows_max * _abi.SUBMISSION.itemsize)
        self._rows = np.frombuffer(mmap.mmap(self.rows_fd, 0), dtype=_abi.SUBMISSION)
        self.source: Buffer = stack.enter_context(
            plane.buffer(length_bytes, kind=kind)  # type: ignore[arg-type]
        )
        self.source_bytes = self.source.numpy()
        stack.callback(setattr, self, "source_bytes", None)
        self.source_bytes.view(np.uint64)[:] = np.arange(length_bytes // 8, dtype=np.uint64)
        self.far = stack.enter_context(
            _link.FarSide(plane.name, kind, length_bytes, rows_fd=self.rows_fd)
        )
        target_fd = os.open(self.far.memory_path, os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, target_fd)
        self.target_bytes = np.frombuffer(mmap.mmap(target_fd, length_bytes), dtype=np.uint8)
        source = stack.enter_context(self.source.export())
        self.shared = _peers.Shared(source.fd, target_fd, self.rows_fd, length_bytes, rows_max)
        self._socket: socket.socket | None = None
        self._stack = stack

    def tell_rows(self, rows: npt.NDArray[np.void]) -> None:
        """From here on these are the rows that all sides know."""
        self._rows[: len(rows)] = rows

    @property
    def socket(self) -> socket.socket:
        """A plain TCP connection to the other process."""
        if self._socket is None:
            port = self.far.ask("plain")["port"]
            self._socket = self._stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._socket

    def check(self, rows: npt.NDArray[np.void], what: str) -> None:
        """AssertionError unless the target holds what @rows put there."""
        block_bytes = int(rows["length_bytes"][0])
        source = self.source_bytes.reshape(-1, block_bytes)
        target = self.target_bytes.reshape(-1, block_bytes)
        for first in range(0, len(rows), 1024):  # few at a time: numpy makes copies
            some = rows[first : first + 1024]
            wanted = source[(some["source_offset"] // block_bytes).astype(np.intp)]
            if not np.array_equal(
                target[(some["target_offset"] // block_bytes).astype(np.intp)], wanted
            ):
                raise AssertionError(f"{what}: the target is not what was written")


def stream(channel: Channel, rows: npt.NDArray[np.void], batch: int) -> None:
    """All of @rows from Python as arrays, two batches in flight; DmaplaneError if one fails."""
    pushed = taken = 0
    while taken < len(rows):
        if pushed < len(rows):
            some = rows[pushed : pushed + batch]
            channel.push(some)
            pushed += len(some)
        wait = pushed - taken - (batch if pushed < len(rows) else 0)
        done = channel.completions(wait=max(wait, 0))
        taken += len(done)
        _link.succeeded(done)


class Case(NamedTuple):
    """One block size in one order on one path."""

    ground: Ground
    link: _link.Link
    channel: Channel
    size: Size
    order: str

    @property
    def name(self) -> str:
        return f"{self.link.path} {self.size.name} {self.order}"

    def rows(self) -> npt.NDArray[np.void]:
        """Every block of the source once, to a block of the target."""
        count = self.ground.length_bytes // self.size.block_bytes
        source = target = np.arange(count)
        if self.order == "at random":
            order = np.random.default_rng(self.size.block_bytes)
            source, target = order.permutation(count), order.permutation(count)
        return _link.rows_over(
            self.link.endpoints[0],
            self.ground.source.id,
            self.link.regions[0],
            self.size.block_bytes,
            source,
            target,
        )

    def gigabytes_per_second(self, elapsed_ns: int) -> float:
        return self.ground.length_bytes / elapsed_ns

    def ours(self, rows: npt.NDArray[np.void]) -> float:
        far = self.ground.far
        far.tell("drain", door=self.link.door, count=len(rows), wait=self.size.batch)
        far.hear()
        begin = time.monotonic_ns()
        stream(self.channel, rows, self.size.batch)
        end = time.monotonic_ns()
        said = far.hear()
        if said["immediates"] != len(rows) * (len(rows) - 1) // 2:
            raise AssertionError(f"{self.name}: immediates are missing, or came twice")
        return self.gigabytes_per_second(max(end, said["end_ns"]) - begin)

    def memcpy(self, rows: npt.NDArray[np.void]) -> float:
        ground = self.ground
        return self.gigabytes_per_second(
            _loops.memcpy(ground.target_bytes, ground.source_bytes, rows)
        )

    def plain_socket(self, rows: npt.NDArray[np.void]) -> float:
        ground = self.ground
        connection = ground.socket
        ground.far.tell("socket_receive", count=len(rows))
        ground.far.hear()
        elapsed = _loops.socket_send(connection.fileno(), ground.source_bytes, rows)
        ground.far.hear()
        return self.gigabytes_per_second(elapsed)

    def peer(self, peer: _peers.Peer, rows: npt.NDArray[np.void]) -> float:
        return self.gigabytes_per_second(peer.write(len(rows), 2 * self.size.batch))


def in_turns(rounds: int, sides: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Every side once a round, after one round that does not count; each begins in its turn."""
    names = list(sides)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        sides[name]()
    for index in range(rounds):
        first = index % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(sides[name]())
    return samples


def measure_case(
    case: Case, limit: str, peers: list[_peers.Peer], rounds: int
) -> dict[str, _result.Row]:
    """A row against the limit and one against each peer, by the peer's name."""
    rows = case.rows()
    case.ground.tell_rows(rows)
    case.ground.target_bytes[:] = 0
    case.ours(rows)
    case.ground.check(rows, case.name)
    sides: dict[str, Callable[[], float]] = {
        "ours": lambda: case.ours(rows),
        limit: lambda: case.memcpy(rows) if limit == "memcpy" else case.plain_socket(rows),
    }
    for peer in (peer for peer in peers if case.size.name in peer.sizes):
        sides[peer.name] = partial(case.peer, peer, rows)
    samples = in_turns(rounds, sides)
    mine = samples.pop("ours")
    return {
        name: _result.paired_row(case.name, "GB/s", mine, name, other)
        for name, other in samples.items()
    }


class Versus(NamedTuple):
    """Which claim is about which size against which peer, in which orders."""

    claim: str
    path: _link.Path
    size: str
    peer: str
    orders: tuple[str, ...] = ORDERS


CLAIMED: Final = (
    Versus("endpoint/shm-4KiB", "shm", "4KiB", "memcpy", ("at random",)),
    Versus("endpoint/shm-64KiB", "shm", "64KiB", "memcpy"),
    Versus("endpoint/shm-1MiB", "shm", "1MiB", "memcpy"),
    Versus("endpoint/shm-4KiB-nixl", "shm", "4KiB", "NIXL", ("at random",)),
    Versus("endpoint/tcp-4KiB", "tcp", "4KiB", "libfabric tcp"),
    Versus("endpoint/tcp-64KiB", "tcp", "64KiB", "libfabric tcp"),
    Versus("endpoint/tcp-1MiB", "tcp", "1MiB", "libfabric tcp"),
    Versus("endpoint/tcp-1MiB-mooncake", "tcp", "1MiB", "Mooncake tcp"),
)
LIMITS: Final = {"shm": "memcpy", "tcp": "plain socket"}
PEERS: Final = {
    "shm": (_peers.LIBFABRIC_SHM, _peers.NIXL),
    "tcp": (_peers.LIBFABRIC_TCP, _peers.MOONCAKE),
}


def measure_bytes(
    measured: _result.Measured,
    ground: Ground,
    path: _link.Path,
    rounds: int,
    report: Callable[[str], None],
) -> None:
    """Every size in both orders over @path, and the claims about them."""
    ratios: dict[tuple[str, str], list[float]] = {}
    missing: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        channel = stack.enter_context(ground.plane.channel(slots=SLOTS))
        link = stack.enter_context(
            _link.Link(ground.plane, ground.far, path, channel, window=WINDOW, slots=SLOTS)
        )
        link.connect()
        peers = []
        for kind in PEERS[path]:
            report(f"{path}, starting {kind.name}")
            try:
                peers.append(stack.enter_context(_peers.Peer(kind, ground.shared)))
            except _peers.MissingPeerError as error:
                missing[kind.name] = str(error)
        for size in SIZES:
            for order in ORDERS:
                case = Case(ground, link, channel, size, order)
                report(case.name)
                for peer, row in measure_case(case, LIMITS[path], peers, rounds).items():
                    measured.add(row)
                    ratios.setdefault((size.name, peer), []).append(row["ratio"] or 0.0)
    for versus in CLAIMED:
        if versus.path != path:
            continue
        if versus.peer in missing:
            case_name = f"{path} {versus.size} against {versus.peer}"
            measured.skip(_result.empty_row(case_name, "GB/s"), versus.claim, missing[versus.peer])
            continue
        found = dict(zip(ORDERS, ratios[versus.size, versus.peer], strict=True))
        measured.claim(versus.claim, min(found[order] for order in versus.orders))


@contextlib.contextmanager
def _many_files() -> Iterator[None]:
    """As many descriptors as this process may have: endpoints and their memory take some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _kind_of_memory(stack: contextlib.ExitStack, plane: Plane, length_bytes: int) -> str:
    """Huge pages if the pool has, or can be given, enough for both sides."""
    page_bytes = plane.limits.huge_page_bytes
    if not page_bytes:
        return "pages"
    needed = 2 * length_bytes + LOST_BYTES_MAX + page_bytes
    reason = stack.enter_context(_pool.huge_pages(needed, page_bytes))
    return "huge" if reason is None else "pages"


def measure(plane_name: str, quick: bool, report: Callable[[str], None]) -> _result.Measured:
    """The bench. 1 GiB and about four minutes; with @quick 64 MiB and below 20 s."""
    length_bytes, rounds = (64 << 20, 3) if quick else (1 << 30, 5)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_many_files())
        plane = stack.enter_context(_loops.opened(plane_name))
        plane.require(Capability.ENDPOINT)
        measured = _result.Measured(plane.name)
        kind = _kind_of_memory(stack, plane, length_bytes)
        report(f"{2 * length_bytes >> 20} MiB of memory, kind {kind}")
        with contextlib.ExitStack() as of_ground:
            ground = Ground(of_ground, plane, kind, length_bytes)
            for path in _link.PATHS:
                measure_bytes(measured, ground, path, rounds, report)
            _roundtrip.measure(measured, ground, quick, report)
        _crowd.measure(measured, plane, quick, report)
        # What a killed process had is ours, too, until we let go: the pool has room for it.
        _loss.measure(measured, plane, kind, min(length_bytes, LOST_BYTES_MAX), quick, report)
    return measured

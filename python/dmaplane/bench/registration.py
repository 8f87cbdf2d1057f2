# SPDX-License-Identifier: MIT
"""What it costs until a peer may touch memory, and whether that stays so with 10,000 regions.

Time per GiB. A region of a buffer of each kind is made and imported by an endpoint of this
process: what the device (verbs), the mapping (shm) or the table (tcp) needs, and one round trip.
Ours ends when the importer may write, which has proved the registration. Over verbs the
peer is ibv_reg_mr of as much anonymous memory, on the same device, in turns.

Flat. With N regions made and imported: registering and ending one more; and writes of 4 KiB
spread over up to 128 of the N, first to last, 64 a batch, into the same 512 KiB whatever N is.
The peer is the same with 1. The claim is the worst ratio.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import mmap
import time
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from dmaplane import _abi
from dmaplane._errors import DmaplaneError, UnsupportedError
from dmaplane._plane import Capability
from dmaplane.bench import _device, _link, _loops, _pool, _result, _verbs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    from dmaplane._buffer import Buffer
    from dmaplane._endpoint import Endpoint
    from dmaplane._plane import Plane
    from dmaplane._region import Region, RemoteRegion

OPTIONS: Final = ("address",)
FLAT: Final = "registration/flat"
COUNTS: Final = (100, 1_000, 10_000)
QUICK_COUNTS: Final = (100, 1_000)
BLOCK_BYTES: Final = 4096
SPREAD: Final = 128
BATCH: Final = 64
GIB: Final = 1 << 30


class Way(NamedTuple):
    """A pair of endpoints of this process, and what carries their bytes."""

    path: _link.Path
    near: Endpoint
    far: Endpoint


@contextlib.contextmanager
def _joined(plane: Plane, path: _link.Path, address: str) -> Iterator[Way]:
    secret = None if address == _link.ADDRESS.decode() else _link.SECRET
    with (
        concurrent.futures.ThreadPoolExecutor(1) as pool,
        plane.listen(address, secret=secret, require=path) as listener,
    ):
        accepting = pool.submit(listener.accept, timeout=_link.PATIENCE_S)
        with (
            plane.channel(slots=4 * BATCH) as channel,
            plane.connect(
                listener.address, secret=secret, require=path, window=4 * BATCH, channel=channel
            ) as near,
            accepting.result() as far,
        ):
            yield Way(path, near, far)


# ---- time per GiB


@contextlib.contextmanager
def _buffer_of(plane: Plane, kind: str, length_bytes: int) -> Iterator[Buffer]:
    """DmaplaneError says why this plane or machine has none of that kind."""
    if kind == "user":
        with mmap.mmap(-1, length_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            with plane.buffer(user=memory) as buffer:
                yield buffer
    elif kind == "imported":
        if not plane.capabilities & Capability.IMPORT:
            raise UnsupportedError("import", "a plane that imports what it exports")
        with plane.buffer(length_bytes) as origin, origin.export() as exported:
            with plane.import_buffer(exported) as buffer:
                yield buffer
    elif kind == "huge":
        huge_bytes = plane.limits.huge_page_bytes
        if not huge_bytes:
            raise UnsupportedError("huge pages", "a machine that has them")
        with _pool.huge_pages(length_bytes, huge_bytes) as reason:
            if reason is not None:
                raise UnsupportedError("huge pages", reason)
            with plane.buffer(length_bytes, kind="huge") as buffer:
                yield buffer
    else:
        with plane.buffer(length_bytes) as buffer:
            yield buffer


def _register_ns(way: Way, buffer: Buffer) -> int:
    """Until the importer may write; ending it is not counted."""
    begin = time.perf_counter_ns()
    with buffer.region("rw") as region, way.near.region(region.key):
        return time.perf_counter_ns() - begin


def _per_gib(
    measured: _result.Measured,
    way: Way,
    device: _device.Device | None,
    length_bytes: int,
    rounds: int,
) -> None:
    plane = way.near.plane
    for kind in ("pages", "huge", "user", "imported"):
        case = f"{way.path}: {kind}, {length_bytes >> 20} MiB at once"

        def in_ms(elapsed_ns: float) -> float:
            return elapsed_ns / 1e6 * GIB / length_bytes

        with contextlib.ExitStack() as stack:
            try:
                buffer = stack.enter_context(_buffer_of(plane, kind, length_bytes))
                _register_ns(way, buffer)
            except DmaplaneError as error:
                why = str(error).partition(";")[0].partition(":")[0]
                measured.add(_result.empty_row(f"{case}: {why}", "ms/GiB"))
                continue

            def ours(buffer: Buffer = buffer) -> float:
                return in_ms(_register_ns(way, buffer))

            if device is None:
                measured.add(_result.single_row(case, "ms/GiB", [ours() for _ in range(rounds)]))
                continue
            raw = stack.enter_context(
                contextlib.closing(_verbs.Registrar(device.name, length_bytes))
            )

            def peer(raw: _verbs.Registrar = raw) -> float:
                return in_ms(raw.register_ns())

            mine, other = _result.interleaved(rounds, ours, peer, warm_up=1)
            measured.add(_result.paired_row(case, "ms/GiB", mine, "ibv_reg_mr", other))


# ---- flat


class _Crowd:
    """@count regions of one page each, imported, over a pair of endpoints."""

    def __init__(self, stack: contextlib.ExitStack, way: Way, count: int) -> None:
        plane = way.near.plane
        self._way = way
        self._buffer = stack.enter_context(plane.buffer((count + 1) * BLOCK_BYTES))
        self._regions: list[Region] = []
        self._remotes: list[RemoteRegion] = []
        stack.callback(self._end)
        for index in range(count):
            region, remote = self._one(index)
            self._regions.append(region)
            self._remotes.append(remote)
        used = min(count, SPREAD)
        chosen = np.linspace(0, count - 1, used).astype(int)
        ids = np.asarray([self._remotes[index].id for index in chosen])
        self._source = stack.enter_context(plane.buffer(SPREAD * BLOCK_BYTES))
        self._rows = self._rows_over(ids)

    def _one(self, index: int) -> tuple[Region, RemoteRegion]:
        part = self._buffer[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]
        region = part.region("rw")
        try:
            return region, self._way.near.region(region.key)
        except BaseException:
            region.close()
            raise

    def _rows_over(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.void]:
        rows = np.zeros(4 * SPREAD, dtype=_abi.SUBMISSION)
        index = np.arange(len(rows))
        rows["operation"] = _abi.OP_WRITE
        rows["endpoint_id"] = self._way.near.id
        rows["source_id"] = self._source.id
        rows["source_offset"] = index % SPREAD * BLOCK_BYTES
        rows["target_id"] = ids[index % len(ids)]
        rows["length_bytes"] = BLOCK_BYTES
        rows["user_data"] = index
        return rows

    def write_ns(self) -> float:
        """One write of 4 KiB."""
        begin = time.perf_counter_ns()
        for first in range(0, len(self._rows), BATCH):
            done = self._way.near.submit(self._rows[first : first + BATCH], timeout=30)
            _link.succeeded(done)
        return (time.perf_counter_ns() - begin) / len(self._rows)

    def register_ns(self) -> float:
        """One more region: made, imported, ended on both sides."""
        turns = 20
        begin = time.perf_counter_ns()
        for _ in range(turns):
            region, remote = self._one(len(self._regions))
            remote.close()
            region.close()
        return (time.perf_counter_ns() - begin) / turns

    def _end(self) -> None:
        for remote in self._remotes:
            remote.close()
        for region in self._regions:
            region.close()


def _flat(
    measured: _result.Measured,
    way: Way,
    counts: tuple[int, ...],
    rounds: int,
    report: Callable[[str], None],
) -> list[float]:
    limit = way.near.plane.limits.regions_max // 2 - 16
    ratios = []
    with contextlib.ExitStack() as outer:
        one = _Crowd(outer, way, 1)
        for count in counts:
            if count > limit:
                break
            report(f"{way.path}: {count:,} regions")
            with contextlib.ExitStack() as inner:
                many = _Crowd(inner, way, count)
                for what, ours, peer in (
                    ("write of 4 KiB", many.write_ns, one.write_ns),
                    ("register and end", many.register_ns, one.register_ns),
                ):
                    mine, other = _result.interleaved(rounds, ours, peer, warm_up=1)
                    row = _result.paired_row(
                        f"{way.path}: {what}, {count:,} regions", "ns", mine, "1 region", other
                    )
                    measured.add(row)
                    ratios.append(row["ratio"] or 0.0)
    return ratios


def measure(
    plane_name: str, quick: bool, report: Callable[[str], None], address: str | None = None
) -> _result.Measured:
    """The bench. Half a minute; with @quick up to 1,000 regions and a few seconds."""
    length_bytes, rounds = (64 << 20, 5) if quick else (256 << 20, 11)
    counts = QUICK_COUNTS if quick else COUNTS
    with _loops.opened(plane_name) as plane:
        measured = _result.Measured(plane.name)
        ratios: list[float] = []
        for path in ("shm", "tcp", "verbs"):
            if path not in plane.paths:
                continue
            device, where = None, _link.ADDRESS.decode()
            if path == "verbs":
                try:
                    device = _device.find(address)
                except _device.MissingDeviceError as missing:
                    measured.add(_result.empty_row(f"verbs: {missing}", "ms/GiB"))
                    continue
                where = device.address
            report(f"{path}: time per GiB")
            with _joined(plane, path, where) as way:
                _per_gib(measured, way, device, length_bytes, rounds)
                ratios += _flat(measured, way, counts, rounds, report)
        if ratios:
            measured.claim(FLAT, max(ratios))
        else:
            reason = f"the {plane.name} plane has no path here: dmaplane doctor"
            measured.skip(_result.empty_row(FLAT, "ratio"), FLAT, reason)
    return measured

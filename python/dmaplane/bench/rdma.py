# SPDX-License-Identifier: MIT
"""What an RDMA device carries for endpoints of two processes, next to perftest on the same device.

Bytes. WRITE_IMM into a region of another process, 64 in flight, driven from C at both ends; the
other side takes every immediate, and time ends when it has the last one. Next to it, in turns,
on the same device and in the same run: ib_write_bw with as many bytes, pieces and depth,
whose other side is told of nothing. Before it is timed the bytes are compared.

KV. 128 MiB as 32 layers of 4 chunks of 1 MiB, each a WRITE_IMM, 16 in flight.

Latency. A message of 8 bytes there and back (SEND into a RECV), C at both ends, neither sleeps;
half of the median, next to what ib_write_lat calls typical for a WRITE of as many bytes whose
other side watches the memory. WRITE_IMM of 8 bytes there and back is a row without a peer.
"""

from __future__ import annotations

import contextlib
import os
import time
import zlib
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from dmaplane._errors import DmaplaneError
from dmaplane._plane import Capability
from dmaplane.bench import _device, _link, _loops, _perftest, _result, _roundtrip

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from dmaplane._buffer import Buffer
    from dmaplane._plane import Plane

OPTIONS: Final = ("address",)
LENGTH_BYTES: Final = 128 << 20
CHECKED_BYTES: Final = 16 << 20
SLOTS: Final = 256
MESSAGE_BYTES: Final = 8
LATENCY: Final = "rdma/latency"
GIGA: Final = 1e9


class Case(NamedTuple):
    """WRITE_IMMs of one size."""

    name: str
    claim: str
    block_bytes: int
    batch: int
    window: int
    blocks: int | None
    """So many; None: as many as fit the time a sample may take."""


CASES: Final = (
    Case("1 MiB, 64 in flight", "rdma/1MiB", 1 << 20, 16, 64, None),
    Case("4 KiB, 64 in flight", "rdma/4KiB", 4 << 10, 16, 64, None),
    Case("KV, 32 x 4 x 1 MiB, 16 in flight", "rdma/kv-128MiB", 1 << 20, 4, 16, 128),
)


class Effort(NamedTuple):
    """How much is measured."""

    rounds: int
    sample_s: float
    trips: int


QUICK: Final = Effort(2, 0.3, 300)
FULL: Final = Effort(9, 1.0, 3000)


class Ground(NamedTuple):
    """What all cases share."""

    plane: Plane
    far: _link.FarSide
    source: Buffer
    device: _device.Device
    perftest: _perftest.Perftest | str
    """Or why there is none."""

    def link(
        self, channel: _loops.RawChannel, window: int, spin_us: int | None = None
    ) -> _link.Link:
        """Over the device."""
        return _link.Link(
            self.plane,
            self.far,
            "verbs",
            channel,
            window=window,
            slots=channel.slots,
            spin_us=spin_us,
            address=self.device.address,
        )


def skip_all(measured: _result.Measured, bench: str, unit: str, reason: str) -> None:
    """Every claim of @bench, for want of a device or of RDMA in the plane."""
    for name in _result.CLAIMS:
        if name.startswith(f"{bench}/"):
            measured.skip(_result.empty_row(name, unit), name, reason)


def why_not(plane: Plane) -> str | None:
    """The first thing @plane lacks for RDMA."""
    if Capability.ENDPOINT not in plane.capabilities:
        return f"the {plane.name} plane has no endpoints"
    if "verbs" not in plane.paths:
        return f"the {plane.name} plane has no path verbs here: dmaplane doctor"
    return None


# ---- bytes


def _rows(link: _link.Link, source: Buffer, case: Case, count: int) -> npt.NDArray[np.void]:
    """Block after block, from the start again when there are no more."""
    blocks = np.arange(count) % (LENGTH_BYTES // case.block_bytes)
    return _link.rows_over(
        link.endpoints[0], source.id, link.regions[0], case.block_bytes, blocks, blocks
    )


def _ours(
    link: _link.Link, channel: _loops.RawChannel, rows: npt.NDArray[np.void], case: Case
) -> float:
    """Bytes per second until the other side has taken the last immediate."""
    link.far.tell("drain", door=link.door, count=len(rows), wait=case.batch)
    link.far.hear()
    begin = time.monotonic_ns()
    channel.stream(rows, batch=case.batch, window=case.window)
    end = time.monotonic_ns()
    said = link.far.hear()
    if said["immediates"] != len(rows) * (len(rows) - 1) // 2:
        raise DmaplaneError(f"{case.name}: immediates are missing, or came twice")
    elapsed_ns: int = max(end, said["end_ns"]) - begin
    return len(rows) * case.block_bytes * 1e9 / elapsed_ns


def _check(ground: Ground, link: _link.Link, channel: _loops.RawChannel, case: Case) -> float:
    """One run over enough of the memory, compared afterwards; bytes per second."""
    count = min(CHECKED_BYTES // case.block_bytes, 512)
    ground.far.ask("clear")
    rate = _ours(link, channel, _rows(link, ground.source, case, count), case)
    expected = np.zeros(LENGTH_BYTES, dtype=np.uint8)
    written = count * case.block_bytes
    expected[:written] = ground.source.numpy()[:written]
    if ground.far.ask("digest")["crc32"] != zlib.crc32(expected.data):
        raise DmaplaneError(f"{case.name}: the target is not what was written")
    return rate


def _measure_case(measured: _result.Measured, ground: Ground, case: Case, effort: Effort) -> None:
    with (
        _loops.RawChannel(ground.plane, SLOTS) as channel,
        ground.link(channel, case.window) as link,
    ):
        link.connect()
        rate = _check(ground, link, channel, case)
        fits = int(effort.sample_s * rate / case.block_bytes)
        count = case.blocks or max(16, fits - fits % case.batch)
        rows = _rows(link, ground.source, case, count)
        # As many bytes as KV has take their time on a slow device: --quick compares them once.
        rounds = 1 if case.blocks and effort is QUICK else effort.rounds

        def ours() -> float:
            return _ours(link, channel, rows, case) / GIGA

        if isinstance(ground.perftest, str):
            mine = [ours() for _ in range(rounds)]
            measured.add(_result.single_row(case.name, "GB/s", mine))
            measured.skip(
                _result.empty_row(f"{case.name}, ib_write_bw", "GB/s"), case.claim, ground.perftest
            )
            return
        perftest = ground.perftest

        def peer() -> float:
            return perftest.write_bytes_per_second(case.block_bytes, count, case.window) / GIGA

        mine, other = _result.interleaved(rounds, ours, peer, warm_up=0)
        measured.add(_result.paired_row(case.name, "GB/s", mine, "ib_write_bw", other), case.claim)


# ---- latency


def _measure_latency(
    measured: _result.Measured, ground: Ground, effort: Effort, stack: contextlib.ExitStack
) -> None:
    spin = _roundtrip.SPIN_US
    channel = stack.enter_context(_loops.RawChannel(ground.plane, 64, spin_us=spin))
    link = stack.enter_context(ground.link(channel, 32, spin))
    link.connect()
    back = stack.enter_context(ground.plane.buffer(4096))
    messages = _link.message_rows(link.endpoints[0], ground.source.id, MESSAGE_BYTES)
    messages["target_id"][1] = back.id
    zero = np.zeros(1)
    write = _link.rows_over(
        link.endpoints[0], ground.source.id, link.regions[0], MESSAGE_BYTES, zero, zero
    )
    key = _link.grant(ground.plane, back.id, 4096).hex()

    def ours() -> float:
        ground.far.tell("echo", door=link.door, count=effort.trips, length_bytes=MESSAGE_BYTES)
        ground.far.hear()
        each = channel.messages(messages, effort.trips, first=True)
        ground.far.hear()
        return float(np.median(each)) / 2e3

    def writes() -> float:
        ground.far.tell("pong", door=link.door, count=effort.trips, key=key)
        ground.far.hear()
        each = channel.pingpong(write, effort.trips, first=True)
        ground.far.hear()
        return float(np.median(each)) / 2e3

    case = f"message of {MESSAGE_BYTES} bytes, one way, spinning"
    if isinstance(ground.perftest, str):
        measured.add(_result.single_row(case, "us", [ours() for _ in range(effort.rounds)]))
        measured.skip(_result.empty_row(f"{case}, ib_write_lat", "us"), LATENCY, ground.perftest)
    else:
        perftest = ground.perftest
        mine, other = _result.interleaved(
            effort.rounds,
            ours,
            lambda: perftest.write_latency_us(MESSAGE_BYTES, effort.trips),
            warm_up=0,
        )
        measured.add(_result.paired_row(case, "us", mine, "ib_write_lat", other), LATENCY)
    samples = [writes() for _ in range(effort.rounds)]
    measured.add(
        _result.single_row(f"WRITE_IMM of {MESSAGE_BYTES} bytes, one way, spinning", "us", samples)
    )


def measure(
    plane_name: str, quick: bool, report: Callable[[str], None], address: str | None = None
) -> _result.Measured:
    """The bench. About a minute on an emulated machine; with @quick below 20 s elsewhere."""
    effort = QUICK if quick else FULL
    with contextlib.ExitStack() as stack:
        plane = stack.enter_context(_loops.opened(plane_name))
        measured = _result.Measured(plane.name)
        try:
            device = _device.find(address)
        except _device.MissingDeviceError as missing:
            skip_all(measured, "rdma", "GB/s", str(missing))
            return measured
        reason = why_not(plane)
        if reason is not None:
            skip_all(measured, "rdma", "GB/s", reason)
            return measured
        perftest: _perftest.Perftest | str
        try:
            perftest = _perftest.Perftest(device)
        except _perftest.MissingPerftestError as missing:
            perftest = str(missing)
        report(f"{2 * LENGTH_BYTES >> 20} MiB of memory, {device.name} at {device.ip}")
        source = stack.enter_context(plane.buffer(LENGTH_BYTES))
        pattern = np.random.default_rng(1).integers(0, 256, 1 << 20, dtype=np.uint8)
        source.numpy().reshape(-1, len(pattern))[:] = pattern
        source.numpy().view(np.uint64)[::512] = np.arange(LENGTH_BYTES // 4096)
        far = stack.enter_context(_link.FarSide(plane.name, "pages", LENGTH_BYTES))
        ground = Ground(plane, far, source, device, perftest)
        for case in CASES:
            report(case.name)
            _measure_case(measured, ground, case, effort)
        if len(os.sched_getaffinity(0)) < 2:
            measured.skip(
                _result.empty_row("latency", "us"), LATENCY, "two processes spin: it takes 2 CPUs"
            )
            return measured
        report("latency")
        _measure_latency(measured, ground, effort, stack)
    return measured

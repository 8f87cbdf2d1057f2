# SPDX-License-Identifier: MIT
"""Part of `bench endpoint`: a WRITE_IMM of 8 bytes to the other process, and one back.

Python uses the public endpoint at both ends. "waiting" is a channel as it comes: whoever waits
spins for a moment (50 us at most, less where that did not pay), then sleeps. "asleep" never
spins: each of the two writes wakes a process. "spinning" never sleeps. "event loop" awaits each
operation in asyncio, at both ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from dmaplane.bench import _link, _loops, _peers, _result

if TYPE_CHECKING:
    from collections.abc import Callable

    from dmaplane._buffer import BufferRange
    from dmaplane._endpoint import Endpoint
    from dmaplane._region import RemoteRange
    from dmaplane.bench.endpoint import Ground

SPIN_US: Final = 1_000_000
SLOTS: Final = 64
WARM_UP: Final = 200


class Trip(NamedTuple):
    """One way to go there and back."""

    how: str
    claim: str | None
    path: _link.Path
    spin_us: int | None
    peer: str
    loop: bool = False

    @property
    def case(self) -> str:
        return f"{self.path} round trip, Python, {self.how}"


EVENTFD: Final = "C eventfd round trip"
SOCKET: Final = "C, plain socket"
PYTHON: Final = (
    Trip("waiting", "endpoint/shm-rtt-wait-us", "shm", None, EVENTFD),
    Trip("asleep", None, "shm", 0, EVENTFD),
    Trip("spinning", "endpoint/shm-rtt-spin-us", "shm", SPIN_US, "C threads spinning"),
    Trip("waiting", "endpoint/tcp-rtt-wait-us", "tcp", None, SOCKET),
    Trip("asleep", None, "tcp", 0, SOCKET),
    Trip("event loop", None, "shm", None, EVENTFD, loop=True),
    Trip("event loop", None, "tcp", None, SOCKET, loop=True),
)


def rounds(
    endpoint: Endpoint, source: BufferRange, remote: RemoteRange, count: int, *, first: bool
) -> list[float]:
    """Microseconds of each of @count round trips from Python; the other side does the same."""
    each: list[float] = []
    if not first:
        endpoint.immediate().wait()
        for number in range(count - 1):
            endpoint.exchange(source, remote, number)
        endpoint.write_imm(source, remote, count).wait()
        return each
    for number in range(count):
        begin = time.perf_counter_ns()
        endpoint.exchange(source, remote, number)
        each.append((time.perf_counter_ns() - begin) / 1e3)
    return each


async def loop_rounds(
    endpoint: Endpoint, source: BufferRange, remote: RemoteRange, count: int, *, first: bool
) -> list[float]:
    """The same by a task of an event loop."""
    each: list[float] = []
    for number in range(count):
        begin = time.perf_counter_ns()
        if not first:
            await endpoint.immediate()
        await endpoint.write_imm(source, remote, number)
        if first:
            await endpoint.immediate()
            each.append((time.perf_counter_ns() - begin) / 1e3)
    return each


def _peer_us(trip: Trip, ground: Ground, count: int) -> float:
    """The floor: p50 of what C does without a plane."""
    if trip.path == "tcp":
        connection = ground.socket
        ground.far.tell("socket_pong", count=count)
        ground.far.hear()
        each = _loops.socket_pingpong(connection.fileno(), count, first=True)
        ground.far.hear()
    else:
        each = _loops.wakeups(spin=trip.spin_us == SPIN_US, count=count)
    return float(np.median(each)) / 1e3


def _python_row(trip: Trip, ground: Ground, blocks: int, count: int) -> _result.Row:
    seat = ground.far.ask("seat", path=trip.path, spin_us=trip.spin_us, slots=SLOTS)
    with contextlib.ExitStack() as stack:
        channel = stack.enter_context(ground.plane.channel(slots=SLOTS, spin_us=trip.spin_us))
        back = stack.enter_context(ground.plane.buffer(4096))
        key = _link.grant(ground.plane, back.id, 4096)
        stack.callback(ground.far.ask, "stand", seat=seat["seat"])
        ground.far.tell("sit", seat=seat["seat"], key=key.hex())
        endpoint = stack.enter_context(
            ground.plane.connect(
                seat["address"], require=trip.path, window=SLOTS // 2, channel=channel
            )
        )
        ground.far.hear()
        remote = endpoint.region(ground.far.key)[: _link.PING_BYTES]
        source = ground.source[: _link.PING_BYTES]

        def ours() -> float:
            ground.far.tell("rounds", seat=seat["seat"], count=count, loop=trip.loop)
            ground.far.hear()
            if trip.loop:
                each = asyncio.run(loop_rounds(endpoint, source, remote, count, first=True))
            else:
                each = rounds(endpoint, source, remote, count, first=True)
            ground.far.hear()
            return _result.median(each)

        mine, other = _result.interleaved(blocks, ours, lambda: _peer_us(trip, ground, count))
        return _result.paired_row(trip.case, "us p50", mine, trip.peer, other)


def _c_samples(
    ground: Ground, path: _link.Path, spin_us: int | None, blocks: int, count: int
) -> list[float]:
    """p50 of each of @blocks, C at both ends."""
    with (
        _loops.RawChannel(ground.plane, SLOTS, spin_us=spin_us) as channel,
        ground.plane.buffer(4096) as back,
        _link.Link(
            ground.plane, ground.far, path, channel, window=SLOTS // 2, slots=SLOTS, spin_us=spin_us
        ) as link,
    ):
        link.connect()
        key = _link.grant(ground.plane, back.id, 4096)
        row = _link.rows_over(
            link.endpoints[0],
            ground.source.id,
            link.regions[0],
            _link.PING_BYTES,
            np.zeros(1),
            np.zeros(1),
        )
        samples = []
        for _ in range(blocks):
            ground.far.tell("pong", door=link.door, count=count, key=key.hex())
            ground.far.hear()
            samples.append(float(np.median(channel.pingpong(row, count, first=True))) / 1e3)
            ground.far.hear()
        return samples


def _measure_c(
    measured: _result.Measured, ground: Ground, blocks: int, count: int, cores: int
) -> None:
    """C at both ends, and libfabric beside it; the claim is about shm that spins."""
    for path in _link.PATHS:
        measured.add(
            _result.single_row(
                f"{path} round trip, C, waiting",
                "us p50",
                _c_samples(ground, path, None, blocks, count // 5),
            )
        )
    case, claim = "shm round trip, C, spinning", "endpoint/shm-rtt-c-spin-us"
    if cores < 2:
        measured.skip(_result.empty_row(case, "us p50"), claim, _alone(cores))
        return
    mine = _c_samples(ground, "shm", SPIN_US, blocks, count)
    try:
        with _peers.Peer(_peers.LIBFABRIC_SHM, ground.shared) as peer:
            other = [peer.ping(count) / 1e3 for _ in range(blocks)]
        row = _result.paired_row(case, "us p50", mine, peer.name, other)
    except _peers.MissingPeerError:
        row = _result.single_row(case, "us p50", mine)
    measured.add(row, claim, row["ours"])


def _alone(cores: int) -> str:
    return f"two processes cannot spin for each other on {cores} CPU"


def measure(
    measured: _result.Measured, ground: Ground, quick: bool, report: Callable[[str], None]
) -> None:
    """Python at both ends, then C at both ends."""
    blocks, count = (3, 1_000) if quick else (7, 5_000)
    cores = len(os.sched_getaffinity(0))
    for trip in PYTHON:
        report(trip.case)
        if trip.spin_us == SPIN_US and cores < 2:
            assert trip.claim is not None
            measured.skip(_result.empty_row(trip.case, "us p50"), trip.claim, _alone(cores))
            continue
        row = _python_row(trip, ground, blocks, count)
        measured.add(row, trip.claim, row["ours"])
    report("round trips from C")
    _measure_c(measured, ground, blocks, 4 * count, cores)

# SPDX-License-Identifier: MIT
"""Whether an operation costs the same as more is open.

buffers   4 KiB copies inside 1 MiB of memory in all, spread over up to 128 of the N
          buffers that are open, first to last; also BUFFER_QUERY, and creating and
          freeing one more buffer. The bytes touched are the same for every N, so what
          changes is what the plane does to find a buffer, not the caches.
channels  NOPs, 16 a batch, waited for, on one channel while N are open; and the same taking
          turns over all N, which wakes another worker each time.

`ours` is the time of one operation with N open, `peer` the time with 1 (for taking
turns: 2) open, measured alternately. A claim is the worst ratio of its group over N;
taking turns is shown and not claimed, as it measures how fast threads wake up.
"""

from __future__ import annotations

import contextlib
import ctypes
from typing import TYPE_CHECKING, Final

import numpy as np

from dmaplane import _abi
from dmaplane.bench import _loops, _result

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from dmaplane._buffer import Buffer
    from dmaplane._plane import Plane

BUFFERS: Final = (100, 1_000, 10_000)
CHANNELS: Final = (4, 16, 64, 256)
PLAYED_BYTES: Final = 1 << 20
BLOCK_BYTES: Final = 4096
SPREAD: Final = 128
SLOTS: Final = 256


class _Buffers:
    """N buffers open on a plane of their own, and rows over SPREAD of them."""

    def __init__(self, stack: contextlib.ExitStack, plane_name: str, count: int) -> None:
        self.plane: Plane = stack.enter_context(_loops.opened(plane_name))
        used = min(count, SPREAD)
        self.length_bytes = PLAYED_BYTES // (1 << (used - 1).bit_length())
        self.buffers: list[Buffer] = [
            stack.enter_context(self.plane.buffer(self.length_bytes)) for _ in range(count)
        ]
        self._channel = stack.enter_context(_loops.RawChannel(self.plane, SLOTS))
        chosen = np.linspace(0, count - 1, used).astype(int)
        self._rows = self._rows_over([self.buffers[index].id for index in chosen])

    def _rows_over(self, ids: list[int]) -> npt.NDArray[np.void]:
        """Copies from the lower to the upper half of each buffer, SPREAD in all, repeated."""
        half = self.length_bytes // 2
        rows = np.zeros(PLAYED_BYTES // 2 // BLOCK_BYTES, dtype=_abi.SUBMISSION)
        index = np.arange(len(rows))
        rows["operation"] = _abi.OP_COPY
        rows["source_id"] = rows["target_id"] = np.asarray(ids)[index % len(ids)]
        rows["source_offset"] = (index // len(ids) * BLOCK_BYTES) % half
        rows["target_offset"] = rows["source_offset"] + np.uint64(half)
        rows["length_bytes"] = BLOCK_BYTES
        return np.tile(rows, 16)

    def copy_ns(self) -> float:
        return self._channel.stream(self._rows, batch=64, window=128) / len(self._rows)

    def query_ns(self) -> float:
        struct = _abi.BufferQuery()
        struct.size = ctypes.sizeof(struct)
        turns = 200
        begin = _now()
        for index in range(turns):
            struct.buffer_id = self.buffers[index * 7919 % len(self.buffers)].id
            self.plane.call("BUFFER_QUERY", _abi.BUFFER_QUERY, struct)
        return (_now() - begin) / turns

    def create_ns(self) -> float:
        turns = 20
        begin = _now()
        for _ in range(turns):
            self.plane.buffer(BLOCK_BYTES).close()
        return (_now() - begin) / turns


def _now() -> int:
    import time

    return time.perf_counter_ns()


def _buffer_rows(
    measured: _result.Measured, plane_name: str, counts: tuple[int, ...], pairs: int
) -> list[float]:
    ratios = []
    with contextlib.ExitStack() as outer:
        one = _Buffers(outer, plane_name, 1)
        for count in counts:
            with contextlib.ExitStack() as inner:
                many = _Buffers(inner, plane_name, count)
                for what, ours, peer in (
                    ("copy 4 KiB", many.copy_ns, one.copy_ns),
                    ("query", many.query_ns, one.query_ns),
                    ("create and free", many.create_ns, one.create_ns),
                ):
                    mine, other = _result.interleaved(pairs, ours, peer, warm_up=2)
                    row = _result.paired_row(
                        f"{what}, {count:,} buffers", "ns", mine, "1 buffer", other
                    )
                    measured.add(row)
                    ratios.append(row["ratio"] or 0.0)
    return ratios


class _Channels:
    """N channels open on a plane of their own."""

    def __init__(self, stack: contextlib.ExitStack, plane_name: str, count: int) -> None:
        plane = stack.enter_context(_loops.opened(plane_name))
        self._channels = [
            stack.enter_context(_loops.RawChannel(plane, SLOTS)) for _ in range(count)
        ]
        self._one = self._channels[count // 2 : count // 2 + 1]
        self._rows = _loops.nop_rows(16)

    def one_ns(self) -> float:
        return _loops.round_robin(self._one, self._rows, 500) / 500 / len(self._rows)

    def turns_ns(self) -> float:
        turns = max(512, len(self._channels))
        return _loops.round_robin(self._channels, self._rows, turns) / turns / len(self._rows)


def _channel_rows(
    measured: _result.Measured, plane_name: str, counts: tuple[int, ...], pairs: int
) -> list[float]:
    ratios = []
    with contextlib.ExitStack() as outer:
        one, two = _Channels(outer, plane_name, 1), _Channels(outer, plane_name, 2)
        for count in counts:
            with contextlib.ExitStack() as inner:
                many = _Channels(inner, plane_name, count)
                mine, other = _result.interleaved(pairs, many.one_ns, one.one_ns, warm_up=2)
                row = _result.paired_row(
                    f"NOP on 1 of {count} channels", "ns", mine, "1 channel", other
                )
                measured.add(row)
                ratios.append(row["ratio"] or 0.0)
                mine, other = _result.interleaved(pairs, many.turns_ns, two.turns_ns, warm_up=2)
                measured.add(
                    _result.paired_row(f"NOP on {count} in turn", "ns", mine, "2 in turn", other)
                )
    return ratios


def _claim_worst(measured: _result.Measured, name: str, ratios: list[float]) -> None:
    measured.claim(name, max(ratios))


def measure(plane_name: str, quick: bool, report: Callable[[str], None]) -> _result.Measured:
    """The bench. Takes about 15 s, with @quick 8 s."""
    pairs = 11 if quick else 31
    with _loops.opened(plane_name) as plane:
        measured = _result.Measured(plane.name)
        buffers = tuple(count for count in BUFFERS if count < plane.limits.buffers_max)
        channels = tuple(count for count in CHANNELS if count <= plane.limits.channels_max)
    report("buffers")
    _claim_worst(measured, "scale/buffers", _buffer_rows(measured, plane_name, buffers, pairs))
    report("channels")
    _claim_worst(measured, "scale/channels", _channel_rows(measured, plane_name, channels, pairs))
    return measured

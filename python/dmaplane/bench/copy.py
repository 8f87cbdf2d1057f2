# SPDX-License-Identifier: MIT
"""Bytes copied through a channel against plain memcpy over the same memory.

Both sides copy every byte of a 128 MiB source to a 128 MiB target once per sample
(256 MiB in play), block by block, in the same shuffled order, from one thread each:
memcpy of the C library in a loop, and one channel with one worker fed from C. Blocks
of 4 KiB go in batches of 256, larger ones in smaller batches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from dmaplane import _abi
from dmaplane.bench import _loops, _result

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from dmaplane._buffer import Buffer

HALF_BYTES: Final = 128 << 20
SLOTS: Final = 1024


class Case(NamedTuple):
    """One block size."""

    claim: str
    case: str
    block_bytes: int
    batch: int
    window: int
    flags: int = 0


CASES: Final = (
    Case("copy/4KiB-batched", "4 KiB scattered, 256 a batch", 4 << 10, 256, 512),
    Case("copy/64KiB", "64 KiB scattered", 64 << 10, 64, 128),
    Case("copy/1MiB", "1 MiB scattered", 1 << 20, 8, 16),
    Case("copy/64MiB", "64 MiB", 64 << 20, 1, 2),
    Case("copy/1MiB-crc32c", "1 MiB, with CRC32C", 1 << 20, 8, 16, _abi.SUBMIT_CHECKSUM),
)


def rows_of(
    source: Buffer, target: Buffer, block_bytes: int, flags: int, seed: int = 1
) -> npt.NDArray[np.void]:
    """Every block of @source once, to a block of @target, both in shuffled order."""
    count = min(source.length_bytes, target.length_bytes) // block_bytes
    order = np.random.default_rng(seed)
    rows = np.zeros(count, dtype=_abi.SUBMISSION)
    rows["operation"] = _abi.OP_COPY
    rows["flags"] = flags
    rows["source_id"], rows["target_id"] = source.id, target.id
    rows["source_offset"] = order.permutation(count).astype(np.uint64) * np.uint64(block_bytes)
    rows["target_offset"] = order.permutation(count).astype(np.uint64) * np.uint64(block_bytes)
    rows["length_bytes"] = block_bytes
    return rows


def _one(
    case: Case, channel: _loops.RawChannel, source: Buffer, target: Buffer, pairs: int
) -> _result.Row:
    rows = rows_of(source, target, case.block_bytes, case.flags)
    from_bytes, to_bytes = source.numpy(), target.numpy()
    gigabytes = HALF_BYTES / 1e9

    def ours() -> float:
        return gigabytes / channel.stream(rows, batch=case.batch, window=case.window) * 1e9

    def peer() -> float:
        return gigabytes / _loops.memcpy(to_bytes, from_bytes, rows) * 1e9

    mine, other = _result.interleaved(pairs, ours, peer)
    if not np.array_equal(from_bytes, _unshuffled(to_bytes, rows)):
        raise AssertionError(f"{case.case}: the target is not what was copied")
    return _result.paired_row(case.case, "GB/s", mine, "memcpy", other)


def _unshuffled(copied: npt.NDArray[np.uint8], rows: npt.NDArray[np.void]) -> npt.NDArray[np.uint8]:
    """The blocks of @copied in the order of the source."""
    blocks = copied.reshape(len(rows), -1)
    back = np.empty(len(rows), dtype=np.intp)
    block_bytes = blocks.shape[1]
    back[rows["source_offset"] // block_bytes] = rows["target_offset"] // block_bytes
    return blocks[back].reshape(-1)


def measure(plane_name: str, quick: bool, report: Callable[[str], None]) -> _result.Measured:
    """The bench. Takes about 3 s, with @quick 2 s."""
    pairs = 11 if quick else 41
    with _loops.opened(plane_name) as plane:
        measured = _result.Measured(plane.name)
        with (
            plane.buffer(HALF_BYTES) as source,
            plane.buffer(HALF_BYTES) as target,
            _loops.RawChannel(plane, SLOTS) as channel,
        ):
            view = source.numpy()
            view[:] = np.random.default_rng(7).integers(0, 256, HALF_BYTES, dtype=np.uint8)
            target.numpy()[:] = 0
            for case in CASES:
                report(case.case)
                row = _one(case, channel, source, target, pairs)
                measured.add(row, case.claim)
            del view
    return measured

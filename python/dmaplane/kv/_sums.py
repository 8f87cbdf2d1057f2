# SPDX-License-Identifier: MIT
"""CRC32C of a chunk whose bytes lie in several runs: taken from memory, or of the runs' own.

A chunk has one CRC32C: of its bytes in the order of the stream, however many runs hold them on
either side. The sender knows the CRC of each run it wrote (the copy computes it in its own
pass), in whatever pieces its memory has them; the receiver reads its own pieces. Both come to
the same number: crc(A + B) = shifted(crc(A), length of B) ^ crc(B), where to shift is to go on
over so many zero bytes, a linear map of 32 bits.

Owner of nothing. The tables of the maps are computed once, when they are first needed.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

import numpy as np

from dmaplane._library import load

if TYPE_CHECKING:
    import numpy.typing as npt

_POLYNOMIAL: Final = 0x82F63B78
"""CRC32C, bits reflected."""
_POWERS: Final = 27
"""Shifts by 2**0 .. 2**26 bytes: longer than the longest chunk."""


def _applied(
    columns: npt.NDArray[np.uint32], words: npt.NDArray[np.uint32]
) -> npt.NDArray[np.uint32]:
    """The linear map with these 32 columns, of each of @words."""
    bits = (words[:, None] >> np.arange(32, dtype=np.uint32)) & np.uint32(1)
    chosen: npt.NDArray[np.uint32] = np.bitwise_xor.reduce(bits * columns, axis=1)
    return chosen


@functools.cache
def _tables() -> npt.NDArray[np.uint32]:
    """[power][byte of the word][its value]: what that byte becomes, shifted by 2**power bytes."""
    columns = np.empty(32, dtype=np.uint32)  # one bit on
    columns[0] = _POLYNOMIAL
    columns[1:] = np.uint32(1) << np.arange(31, dtype=np.uint32)
    for _ in range(3):  # eight
        columns = _applied(columns, columns)
    tables = np.empty((_POWERS, 4, 256), dtype=np.uint32)
    values = np.arange(256, dtype=np.uint32)
    for power in range(_POWERS):
        for byte in range(4):
            tables[power, byte] = _applied(columns, values << np.uint32(8 * byte))
        columns = _applied(columns, columns)
    return tables


def shifted(crcs: npt.NDArray[np.uint32], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    """Each CRC as part of the CRC of what goes on for so many bytes behind it."""
    out = crcs.astype(np.uint32, copy=True)
    tables = _tables()
    for power in range(int(lengths.max(initial=0)).bit_length()):
        there = np.flatnonzero((lengths >> power) & 1)
        if len(there):
            words, table = out[there], tables[power]
            out[there] = (
                table[0][words & 0xFF]
                ^ table[1][(words >> 8) & 0xFF]
                ^ table[2][(words >> 16) & 0xFF]
                ^ table[3][words >> 24]
            )
    return out


def combined(
    crcs: npt.NDArray[np.uint32],
    lengths: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
) -> npt.NDArray[np.uint32]:
    """The CRC of each group of runs in order; group g begins at run starts[g], none is empty."""
    if len(starts) == len(crcs):
        return crcs
    ends = np.append(starts[1:], len(crcs))
    reach = np.cumsum(lengths)
    behind = np.repeat(reach[ends - 1], ends - starts) - reach
    out: npt.NDArray[np.uint32] = np.bitwise_xor.reduceat(shifted(crcs, behind), starts)
    return out


def of_memory(
    address: int,
    offsets: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
) -> npt.NDArray[np.uint32]:
    """The same, read from memory at @address. By who makes sure that it stays.

    One call of C, which lets other threads go on meanwhile.
    """
    crcs = np.empty(len(starts), dtype=np.uint32)
    edges = np.append(starts, len(offsets)).astype(np.uint64)
    places, sizes = offsets.astype(np.uint64), lengths.astype(np.uint64)
    load().waiting.dmp_crc32c_groups(
        address,
        places.ctypes.data,
        sizes.ctypes.data,
        edges.ctypes.data,
        len(crcs),
        crcs.ctypes.data,
    )
    return crcs

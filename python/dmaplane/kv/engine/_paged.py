# SPDX-License-Identifier: MIT
"""K and V in the blocks of a pool: where a token's numbers are, writing them, reading them.

A `half` is what pool.keys(n) or pool.values(n) shows: [blocks, tokens, heads, size] of a layer,
whatever the order in memory, without a copy.

Invariants:
- Only blocks of the lease are touched, and only at positions that the caller names.
- What is read was written by somebody: never the rest of a block that is not full.
- A piece is a row of blocks at equal distances, so that it is one view; a lease that
  was given in one go is one piece.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from dmaplane._errors import UnsupportedError

Floats = NDArray[np.float32]
Format = Literal["float32", "float16", "bfloat16"]
FORMATS: Final[tuple[Format, ...]] = ("float32", "float16", "bfloat16")


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """Blocks of a lease that one view shows: `blocks` of the pool, `tokens` of each."""

    blocks: slice
    count: int
    tokens: int


def pieces_of(blocks: NDArray[np.int64], *, tokens: int, block_tokens: int) -> tuple[Piece, ...]:
    """The first @tokens tokens of a lease as pieces, in order; the last may be part of a block."""
    full, rest = divmod(tokens, block_tokens)
    found = [
        Piece(
            _row(int(blocks[first]), int(blocks[end - 1]), end - first), end - first, block_tokens
        )
        for first, end in _rows(blocks[:full])
    ]
    if rest:
        last = int(blocks[full])
        found.append(Piece(slice(last, last + 1), 1, rest))
    return tuple(found)


def _rows(blocks: NDArray[np.int64]) -> list[tuple[int, int]]:
    """[first, end) of each longest row of equal distances."""
    count = len(blocks)
    steps = np.diff(blocks)
    turns = np.flatnonzero(np.diff(steps)) + 1  # steps[turn] differs from the one before it
    ends = np.append(turns, max(count - 1, 0))
    rows: list[tuple[int, int]] = []
    first = 0
    while first < count:
        # The first change of step after this row's own first step ends it.
        last = int(ends[np.searchsorted(ends, first, side="right")]) if first < count - 1 else first
        rows.append((first, last + 1))
        first = last + 1
    return rows


def _row(first: int, last: int, count: int) -> slice:
    step = (last - first) // (count - 1) if count > 1 else 1
    end = last + (1 if step > 0 else -1)
    return slice(first, end if end >= 0 else None, step)


def write(
    half: NDArray[Any],
    rows: Floats,
    blocks: NDArray[np.int64],
    *,
    first_token: int,
    encode: Callable[[Floats], NDArray[Any]],
) -> None:
    """Puts @rows [tokens, heads, size] where the tokens from @first_token on have their place."""
    block, slot = np.divmod(np.arange(first_token, first_token + len(rows)), half.shape[1])
    half[blocks[block], slot] = encode(rows)


def encoder_of(dtype: str) -> Callable[[Floats], NDArray[Any]]:
    """What makes numbers of the cache's format: rounds to the nearest, ties to even."""
    if dtype == "float32":
        return _same
    if dtype == "float16":
        return _to_half
    if dtype == "bfloat16":
        return _to_brain
    raise UnsupportedError(
        f"a {dtype} cache with the numpy engine", f"one of {', '.join(FORMATS)} as dtype="
    )


def decoder_of(dtype: str) -> Callable[[NDArray[Any]], Floats]:
    """What makes float32 of what the cache holds; the very same array where it is float32."""
    if dtype == "bfloat16":
        return _from_brain
    return _same if dtype == "float32" else _widened


def _same(numbers: NDArray[Any]) -> Floats:
    return numbers


def _widened(numbers: NDArray[Any]) -> Floats:
    return numbers.astype(np.float32)


def _to_half(numbers: Floats) -> NDArray[Any]:
    with np.errstate(over="ignore"):  # what a half cannot hold becomes infinite, as in hardware
        return numbers.astype(np.float16)


def _to_brain(numbers: Floats) -> NDArray[np.uint16]:
    bits = np.ascontiguousarray(numbers, dtype=np.float32).view(np.uint32)
    # Half of the last place that stays, less one bit if that place is even: ties go to even.
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(
        16
    )
    # A NaN whose payload sits low would round to infinity, or over the sign: keep it a quiet one.
    quiet = (bits >> np.uint32(16)) | np.uint32(0x40)
    found: NDArray[np.uint16] = np.where(np.isnan(numbers), quiet, rounded).astype(np.uint16)
    return found


def _from_brain(numbers: NDArray[Any]) -> Floats:
    wide: Floats = (numbers.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return wide

# SPDX-License-Identifier: MIT
"""Attention over a paged cache: many queries at once for prefill, one for decode.

Decode multiplies views of the pool's own memory: with a float32 cache no byte
of K or V is copied. Each block gives its own sum, and these are added in the order of the
tokens, so the result is bit for bit the same wherever the blocks of a lease lie.

A cache that was damaged may hold infinities and NaN; they go through to the logits in
silence, as on an accelerator. Whether bytes are right is for checksums to say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmaplane.kv.engine._paged import Floats, Piece

Decoder = Callable[[NDArray[Any]], Floats]


def rope_of(positions: NDArray[np.int64], *, size: int, base: float) -> tuple[Floats, Floats]:
    """Cosine and sine [tokens, 1, size / 2] of the angles by which RoPE turns each pair."""
    slow = base ** (-np.arange(0, size, 2, dtype=np.float64) / size)
    angles = positions[:, None, None].astype(np.float64) * slow
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def turned(rows: Floats, cosine: Floats, sine: Floats) -> Floats:
    """@rows [tokens, heads, size] with pair (i, i + size / 2) turned: RoPE as Llama has it."""
    half = rows.shape[-1] // 2
    out = np.empty_like(rows)
    low, high = rows[..., :half], rows[..., half:]
    np.subtract(low * cosine, high * sine, out=out[..., :half])
    np.add(high * cosine, low * sine, out=out[..., half:])
    return out


def gathered(half: NDArray[Any], pieces: Sequence[Piece], decode: Decoder) -> Floats:
    """K or V of all pieces in one array [heads, tokens, size]: a copy, for prefill."""
    heads, size = half.shape[2:]
    parts = [decode(half[one.blocks, : one.tokens]).reshape(-1, heads, size) for one in pieces]
    return np.ascontiguousarray(np.concatenate(parts).transpose(1, 0, 2))


def attend_many(queries: Floats, keys: Floats, values: Floats, *, first_token: int) -> Floats:
    """Causal attention of @queries [tokens, heads, size], at positions from @first_token on.

    @keys and @values are [kv heads, positions, size]; only positions up to a query's own count.
    """
    tokens, heads, size = queries.shape
    kv_heads = len(keys)
    end = first_token + tokens
    # [kv heads, queries of its group, size]
    grouped = queries.transpose(1, 0, 2).reshape(kv_heads, -1, size) * np.float32(size**-0.5)
    with np.errstate(all="ignore"):
        scores = np.matmul(grouped, keys[:, :end].transpose(0, 2, 1))
        later = np.arange(end) > np.arange(first_token, end)[:, None]
        scores.reshape(heads, tokens, end)[:, later] = -np.inf
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        sums = scores.sum(axis=-1, keepdims=True)
        out: Floats = np.matmul(scores, values[:, :end]) / sums
    found: Floats = out.reshape(heads, tokens, size).transpose(1, 0, 2)
    return found


def attend_one(
    query: Floats,
    keys: NDArray[Any],
    values: NDArray[Any],
    pieces: Sequence[Piece],
    decode: Decoder,
) -> Floats:
    """Attention of one @query [heads, size] over all tokens of @pieces; [heads, size].

    @keys and @values are views [blocks, tokens, kv heads, size] of a layer of the pool.
    """
    heads, size = query.shape
    block_tokens, kv_heads = keys.shape[1:3]
    grouped = query.reshape(kv_heads, -1, size) * np.float32(size**-0.5)
    columns = np.ascontiguousarray(grouped.transpose(0, 2, 1))
    group = heads // kv_heads
    count = sum(one.count for one in pieces)
    # What a last block does not have yet stays at minus infinity, that is at no weight.
    scores = np.full((count, kv_heads, block_tokens, group), -np.inf, dtype=np.float32)
    sums = np.empty((count, kv_heads, group, size), dtype=np.float32)
    with np.errstate(all="ignore"):
        first = 0
        for one in pieces:
            part = scores[first : first + one.count, :, : one.tokens]
            view = keys[one.blocks, : one.tokens].swapaxes(1, 2)
            part[...] = np.matmul(decode(view), columns)
            first += one.count
        scores -= scores.max(axis=(0, 2), keepdims=True)
        np.exp(scores, out=scores)
        total = scores.sum(axis=(0, 2))  # [kv heads, group]
        weights = scores.transpose(0, 1, 3, 2)
        first = 0
        for one in pieces:
            view = values[one.blocks, : one.tokens].swapaxes(1, 2)
            part = weights[first : first + one.count, ..., : one.tokens]
            np.matmul(part, decode(view), out=sums[first : first + one.count])
            first += one.count
        out: Floats = sums.sum(axis=0) / total[..., None]
    return out.reshape(heads, size)


def normed(rows: Floats, weight: Floats, epsilon: float) -> Floats:
    """RMSNorm over the last axis."""
    with np.errstate(all="ignore"):
        mean = np.mean(rows * rows, axis=-1, keepdims=True)
        out: Floats = rows * (np.float32(1) / np.sqrt(mean + np.float32(epsilon))) * weight
    return out


def gated(gate: Floats, up: Floats) -> Floats:
    """SwiGLU: silu(gate) * up."""
    with np.errstate(all="ignore"):
        out: Floats = gate / (np.float32(1) + np.exp(-gate)) * up
    return out

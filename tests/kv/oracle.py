# SPDX-License-Identifier: MIT
"""What a KV cache is, told without plans: one array of the whole model, and where it lies.

The array is [layers, kv, tokens, heads, size]; put() has three plain assignments that bring a
rank's part of it into a pool's memory, a token at a time.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dmaplane.kv import Layout

LAYERS, HEADS, SIZE = 2, 8, 4
SPARE = 3  # blocks of a pool that nobody leased


def base(**changes: object) -> Layout:
    return dataclasses.replace(
        Layout(layers=LAYERS, kv_heads=HEADS, head_size=SIZE, dtype="bfloat16", block_tokens=16),
        **changes,
    )


@functools.lru_cache(maxsize=1024)
def model(layout: Layout, tokens: int) -> npt.NDArray[np.generic]:
    """All there is to know: random elements [layers, kv, tokens, kv_heads, size]."""
    kv = 1 if layout.kind == "mla" else 2
    shape = (layout.layers, kv, tokens, layout.kv_heads, layout.head_size)
    dice = np.random.default_rng(tokens)
    raw = dice.integers(0, 256, size=(*shape, layout.item_bytes), dtype=np.uint8)
    return raw.view(layout.numpy_dtype)[..., 0]


def whole_model(layout: Layout, tokens: int) -> npt.NDArray[np.generic]:
    """The same for every rank, block size and order."""
    return model(dataclasses.replace(layout, block_tokens=1, order="NHD", rank=0, degree=1), tokens)


def empty_pool(layout: Layout, tokens: int, fill: int) -> npt.NDArray[np.generic]:
    count = layout.blocks_for(tokens) + SPARE
    raw = np.full(layout.pool_bytes(count), fill, dtype=np.uint8)
    return raw.view(layout.numpy_dtype).reshape(layout.layers, count, *layout.block_shape)


def put(
    memory: Sequence[npt.NDArray[np.generic]],
    layout: Layout,
    tokens: int,
    blocks: npt.NDArray[np.int64],
    first: int = 0,
) -> None:
    """The tokens from @first on of a rank's heads, each at its place in each layer's memory."""
    whole = whole_model(layout, tokens)
    mine = whole[:, :, :, layout.first_head : layout.first_head + layout.heads]
    for layer, part in zip(memory, mine, strict=True):
        for token in range(first, tokens):
            block, slot = blocks[token // layout.block_tokens], token % layout.block_tokens
            if layout.kind == "mla":
                layer[block, slot] = part[0, token, 0]
            elif layout.order == "NHD":
                layer[block, :, slot] = part[:, token]
            else:
                layer[block, :, :, slot] = part[:, token]

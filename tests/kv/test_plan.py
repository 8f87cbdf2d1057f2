# SPDX-License-Identifier: MIT
"""Plans against an oracle that knows nothing of them.

The oracle is one array of the whole model, [layers, kv, tokens, heads, size], and two plain
assignments that put a rank's part of it into a pool. What a plan brings from the pools of the
source's ranks has to be, byte for byte, what the oracle puts there, and nothing else may change.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import numpy as np
import numpy.typing as npt
import pytest

from dmaplane.kv import Layout, Plan, compile_plan, sources_of

LAYERS, HEADS, SIZE = 2, 8, 4
DEGREES = (1, 2, 4, 8)
BLOCKS = (16, 64, 256)
ORDERS = ("NHD", "HND")
DTYPES = ("float32", "bfloat16", "float8_e4m3fn")
TOKENS = 283  # fills no block of any size
SPARE = 3  # blocks of a pool that nobody leased


def base(**changes: object) -> Layout:
    return dataclasses.replace(
        Layout(layers=LAYERS, kv_heads=HEADS, head_size=SIZE, dtype="bfloat16", block_tokens=16),
        **changes,
    )


@functools.cache
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


def some_blocks(layout: Layout, tokens: int, seed: int) -> npt.NDArray[np.int64]:
    """As many as hold @tokens, in no order."""
    count = layout.blocks_for(tokens)
    return np.random.default_rng(seed).permutation(count + SPARE)[:count]


def empty_pool(layout: Layout, tokens: int, fill: int) -> npt.NDArray[np.generic]:
    count = layout.blocks_for(tokens) + SPARE
    raw = np.full(layout.pool_bytes(count), fill, dtype=np.uint8)
    return raw.view(layout.numpy_dtype).reshape(layout.layers, count, *layout.block_shape)


def put(
    pool: npt.NDArray[np.generic],
    layout: Layout,
    tokens: int,
    blocks: npt.NDArray[np.int64],
    first: int = 0,
) -> None:
    """The oracle: the tokens from @first on of a rank's heads, each at its place."""
    whole = whole_model(layout, tokens)
    mine = whole[:, :, :, layout.first_head : layout.first_head + layout.heads]
    for token in range(first, tokens):
        block, slot = blocks[token // layout.block_tokens], token % layout.block_tokens
        if layout.kind == "mla":
            pool[:, block, slot] = mine[:, 0, token, 0]
        elif layout.order == "NHD":
            pool[:, block, :, slot] = mine[:, :, token]
        else:
            pool[:, block, :, :, slot] = mine[:, :, token]


@functools.cache
def filled(layout: Layout, tokens: int, seed: int) -> npt.NDArray[np.generic]:
    pool = empty_pool(layout, tokens, 0xAA)
    put(pool, layout, tokens, some_blocks(layout, tokens, seed))
    pool.setflags(write=False)
    return pool


@functools.cache
def wanted(layout: Layout, tokens: int, seed: int, first: int = 0) -> npt.NDArray[np.generic]:
    pool = empty_pool(layout, tokens, 0x55)
    put(pool, layout, tokens, some_blocks(layout, tokens, seed), first)
    pool.setflags(write=False)
    return pool


def same_bytes(one: npt.NDArray[np.generic], other: npt.NDArray[np.generic]) -> bool:
    return one.tobytes() == other.tobytes()


def move(plan: Plan, pool: npt.NDArray[np.generic], tokens: int, *, staged: bool, first: int = 0):
    """One source rank's part, layer by layer, into @pool of the destination."""
    here = some_blocks(plan.source, tokens, 1)
    there = some_blocks(plan.destination, tokens, 2)
    count = tokens - first
    source = filled(plan.source, tokens, 1)
    if not staged:
        copies = plan.copies(count, here, there, first_token=first)
        for layer in range(plan.source.layers):
            plan.apply(source[layer], pool[layer], copies)
        return
    stage = np.full(64 + plan.stage_bytes(count, first_token=first), 0xEE, dtype=np.uint8)
    copies = plan.gathered_copies(count, there, stage_offset=64, first_token=first)
    for layer in range(plan.source.layers):
        plan.gather(source[layer], count, here, stage[64:], first_token=first)
        plan.apply(stage, pool[layer], copies)


def arrives(source: Layout, degree: int, destination: Layout, tokens: int, first: int = 0) -> None:
    """All ranks of @degree that have to send, into one rank of the destination; both ways."""
    for staged in (False, True):
        pool = empty_pool(destination, tokens, 0x55)
        for rank in sources_of(degree, destination):
            plan = compile_plan(source.for_rank(rank, degree), destination)
            move(plan, pool, tokens, staged=staged, first=first)
        assert same_bytes(pool, wanted(destination, tokens, 2, first)), (source, staged)


# ---- the matrix


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("to", DEGREES, ids=lambda n: f"to{n}")
@pytest.mark.parametrize("degree", DEGREES, ids=lambda n: f"tp{n}")
def test_every_cell_of_the_matrix_arrives_byte_for_byte(degree: int, to: int, dtype: str) -> None:
    for here, there, order, other in itertools.product(BLOCKS, BLOCKS, ORDERS, ORDERS):
        source = base(dtype=dtype, block_tokens=here, order=order)
        destination = base(dtype=dtype, block_tokens=there, order=other)
        for rank in range(to):
            arrives(source, degree, destination.for_rank(rank, to), TOKENS)

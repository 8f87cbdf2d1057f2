# SPDX-License-Identifier: MIT
"""The parts of `bench kv` that can be wrong without anything being timed."""

from __future__ import annotations

import pytest

import dmaplane
from dmaplane.bench import kv
from dmaplane.kv import Layout

SMALL = Layout(layers=4, kv_heads=2, head_size=32, dtype="float16", block_tokens=16)


@pytest.mark.parametrize(("name", "layout"), kv.MODELS)
def test_a_case_has_the_bytes_it_says(name: str, layout: Layout) -> None:
    tokens = kv.tokens_for(layout, kv.LENGTH_BYTES)
    moved = tokens * layout.token_bytes * layout.layers
    assert 0.95 * kv.LENGTH_BYTES <= moved <= kv.LENGTH_BYTES
    assert moved == layout.pool_bytes(layout.blocks_for(tokens))


def test_the_case_of_the_claims_is_32_layers_of_4_chunks() -> None:
    tokens = kv.tokens_for(kv.LAYOUT, kv.LENGTH_BYTES)
    assert kv.LAYOUT.layers == 32
    assert tokens * kv.LAYOUT.token_bytes == 4 * kv.CHUNK_BYTES == 4 << 20


@pytest.mark.parametrize("path", ["shm", "tcp"])
def test_a_transfer_fills_the_other_pool_and_a_difference_is_noticed(path: str) -> None:
    with dmaplane.open("embedded") as plane, kv.Ground(plane, SMALL, 1 << 20) as ground:
        ground.meet(kv.Kind(path))  # type: ignore[arg-type]
        with pytest.raises(AssertionError, match="differ"):
            ground.check()
        assert ground.ours(checksum=True) > 0
        ground.check()
        assert 0 < ground.first_layer() <= SMALL.layers
        ground.target()[12345] ^= 1
        with pytest.raises(AssertionError, match="differ"):
            ground.check()
        ground.meet(kv.Kind(path, chunk_bytes=64 << 10, window=3))  # type: ignore[arg-type]
        ground.ours(checksum=False)
        ground.check()


def test_posting_makes_a_row_for_every_block() -> None:
    with dmaplane.open("embedded") as plane:
        rows, milliseconds = kv.post(plane)
    assert rows > 0.45 * kv.POSTED_BLOCKS  # what follows on both sides is one
    assert milliseconds > 0

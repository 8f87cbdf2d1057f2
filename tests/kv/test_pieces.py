# SPDX-License-Identifier: MIT
"""Pieces of blocks in a row are the pieces that any blocks have."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmaplane.kv import Layout, compile_plan
from dmaplane.kv import _pieces as pieces

sys.path.insert(0, str(Path(__file__).parent))
from couple import HND, NHD

PLAN = compile_plan(NHD, NHD)
SIZE, BLOCK = NHD.block_tokens, NHD.block_bytes


def row(first: int, count: int) -> np.ndarray:
    return np.arange(first, first + count, dtype=np.int64)


@given(
    count=st.integers(1, 40),
    near=st.integers(0, 1000),
    far=st.integers(0, 1000),
    chunk_bytes=st.integers(1, 9 * BLOCK),
)
def test_blocks_in_a_row_are_cut_as_any_are(
    count: int, near: int, far: int, chunk_bytes: int
) -> None:
    lists = row(near, count), row(far, count)
    assert PLAN.run(count * SIZE, *lists) == (near * BLOCK, far * BLOCK, count * BLOCK)
    chunk_bytes = max(chunk_bytes, count * BLOCK // 64)
    made = pieces.direct(PLAN, count * SIZE, *lists, chunk_bytes)
    expected = pieces._cut(*PLAN.runs(count * SIZE, *lists), chunk_bytes)
    for field in dataclasses.fields(made):
        one, other = (np.asarray(getattr(each, field.name)) for each in (made, expected))
        assert one.dtype == other.dtype
        assert np.array_equal(one, other), field.name


@pytest.mark.parametrize(
    ("tokens", "near", "far"),
    [
        (SIZE + 1, row(0, 2), row(0, 2)),
        (3 * SIZE, np.array([0, 1, 3]), row(0, 3)),
        (3 * SIZE, row(0, 3), np.array([4, 6, 7])),
        (3 * SIZE, np.array([2, 1, 0]), row(0, 3)),
        (4 * SIZE, np.array([0, 2, 1, 3]), row(0, 4)),
        (3 * SIZE, row(-1, 3), row(0, 3)),
        (3 * SIZE, row(0, 2), row(0, 3)),
        (3 * SIZE, row(((1 << 63) - 1) // BLOCK - 2, 3), row(0, 3)),
        (0, row(0, 1), row(0, 1)),
        (-SIZE, row(0, 1), row(0, 1)),
    ],
)
def test_what_is_no_row_of_whole_blocks_is_left_to_the_rest(
    tokens: int, near: np.ndarray, far: np.ndarray
) -> None:
    assert PLAN.run(tokens, near, far) is None


def test_layouts_that_differ_have_no_run() -> None:
    assert compile_plan(NHD, HND).run(4 * SIZE, row(0, 4), row(0, 4)) is None
    wide: Layout = dataclasses.replace(NHD, block_tokens=2 * SIZE)
    assert compile_plan(NHD, wide).run(4 * SIZE, row(0, 4), row(0, 4)) is None

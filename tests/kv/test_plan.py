# SPDX-License-Identifier: MIT
"""Plans against an oracle that knows nothing of them.

What a plan brings from the pools of the source's ranks has to be, byte for byte, what the oracle
(oracle.py) puts there, and nothing else may change.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator

import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from oracle import SPARE, base, empty_pool, put

from dmaplane import InvalidError, LayoutError
from dmaplane.kv import COPY, Layout, Plan, compile_plan, sources_of

DEGREES = (1, 2, 4, 8)
BLOCKS = (16, 64, 256)
ORDERS = ("NHD", "HND")
DTYPES = ("float32", "bfloat16", "float8_e4m3fn")
TOKENS = 283  # fills no block of any size


def some_blocks(layout: Layout, tokens: int, seed: int) -> npt.NDArray[np.int64]:
    """As many as hold @tokens, in no order."""
    count = layout.blocks_for(tokens)
    return np.random.default_rng(seed).permutation(count + SPARE)[:count]


@functools.lru_cache(maxsize=1024)
def filled(layout: Layout, tokens: int, seed: int) -> npt.NDArray[np.generic]:
    pool = empty_pool(layout, tokens, 0xAA)
    put(pool, layout, tokens, some_blocks(layout, tokens, seed))
    pool.setflags(write=False)
    return pool


@functools.lru_cache(maxsize=1024)
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


# ---- what the matrix has not


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("to", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("degree", [1, 2, 4, 8, 16])
def test_more_ranks_than_heads_arrive_too(degree: int, to: int, order: str) -> None:
    source, destination = base(kv_heads=4, order=order), base(kv_heads=4, block_tokens=64)
    for rank in range(to):
        arrives(source, degree, destination.for_rank(rank, to), 75)


@pytest.mark.parametrize("there", BLOCKS)
@pytest.mark.parametrize("here", BLOCKS)
@pytest.mark.parametrize("degree", [1, 8])
def test_latent_vectors_arrive_from_any_one_rank(degree: int, here: int, there: int) -> None:
    source = base(kind="mla", kv_heads=1, block_tokens=here)
    destination = base(kind="mla", kv_heads=1, block_tokens=there, order="HND")
    for rank in range(4):
        assert len(sources_of(degree, destination.for_rank(rank, 4))) == 1
        arrives(source, degree, destination.for_rank(rank, 4), TOKENS)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Layout, int, Layout]:
    """A source, its degree, and one rank of a destination: odd sizes of all kinds."""
    kind = draw(st.sampled_from(["gqa", "gqa", "gqa", "mla"]))
    kv_heads = 1 if kind == "mla" else draw(st.integers(1, 12))
    degrees = [n for n in range(1, 13) if kv_heads % n == 0 or n % kv_heads == 0]
    one = Layout(
        layers=draw(st.integers(1, 2)),
        kv_heads=kv_heads,
        head_size=draw(st.integers(1, 5)),
        dtype=draw(st.sampled_from([*DTYPES, "float16", "int8"])),
        block_tokens=draw(st.integers(1, 12)),
        order=draw(st.sampled_from(ORDERS)),
        kind=kind,
    )
    to = draw(st.sampled_from(degrees))
    other = dataclasses.replace(
        one,
        block_tokens=draw(st.one_of(st.just(one.block_tokens), st.integers(1, 12))),
        order=draw(st.sampled_from(ORDERS)),
        rank=draw(st.integers(0, to - 1)),
        degree=to,
    )
    return one, draw(st.sampled_from(degrees)), other


@settings(max_examples=200, deadline=None)
@given(pair=pairs(), tokens=st.integers(0, 50), part=st.floats(0, 1))
def test_any_tokens_of_any_two_layouts_arrive(
    pair: tuple[Layout, int, Layout], tokens: int, part: float
) -> None:
    source, degree, destination = pair
    arrives(source, degree, destination, tokens, int(part * tokens))


def owed(
    plan: Plan, tokens: int, first: int, blocks: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """For each byte of a layer of the destination: 1 if this source owes it, else 0."""
    layout = plan.destination
    marks = np.zeros((layout.blocks_for(tokens) + SPARE, *layout.block_shape, layout.item_bytes))
    low = plan.first_head - layout.first_head
    for token in range(first, tokens):
        block, slot = blocks[token // layout.block_tokens], token % layout.block_tokens
        if layout.kind == "mla":
            marks[block, slot] = 1
        elif layout.order == "NHD":
            marks[block, :, slot, low : low + plan.heads] = 1
        else:
            marks[block, :, low : low + plan.heads, slot] = 1
    return marks.ravel().astype(np.int64)


def written(copies: npt.NDArray[np.void], length: int) -> npt.NDArray[np.int64]:
    """How often each of @length bytes is a destination."""
    count = np.zeros(length + 1, dtype=np.int64)
    np.add.at(count, copies["destination"].astype(np.int64), 1)
    np.add.at(count, (copies["destination"] + copies["length"]).astype(np.int64), -1)
    return count.cumsum()[:-1]


def each_plan(pair: tuple[Layout, int, Layout]) -> Iterator[Plan]:
    source, degree, destination = pair
    for rank in sources_of(degree, destination):
        yield compile_plan(source.for_rank(rank, degree), destination)


@settings(max_examples=200, deadline=None)
@given(pair=pairs(), tokens=st.integers(0, 50), part=st.floats(0, 1))
def test_copies_never_overlap_and_cover_exactly_what_is_owed(
    pair: tuple[Layout, int, Layout], tokens: int, part: float
) -> None:
    first = int(part * tokens)
    there = some_blocks(pair[2], tokens, 2)
    for plan in each_plan(pair):
        due = owed(plan, tokens, first, there)
        here = some_blocks(plan.source, tokens, 1)
        for copies in (
            plan.copies(tokens - first, here, there, first_token=first),
            plan.gathered_copies(tokens - first, there, first_token=first),
        ):
            assert copies.dtype == COPY
            assert (copies["length"] > 0).all()
            assert np.array_equal(written(copies, len(due)), due)


@settings(max_examples=200, deadline=None)
@given(pair=pairs(), tokens=st.integers(1, 50), part=st.floats(0, 1))
def test_no_two_runs_could_have_been_one(
    pair: tuple[Layout, int, Layout], tokens: int, part: float
) -> None:
    """With blocks in rising order, as a fresh pool gives them."""
    first = int(part * (tokens - 1))
    for plan in each_plan(pair):
        here, there = (
            np.arange(layout.blocks_for(tokens)) for layout in (plan.source, plan.destination)
        )
        for copies in (
            plan.copies(tokens - first, here, there, first_token=first),
            plan.gathered_copies(tokens - first, there, first_token=first),
        ):
            rows = copies.tolist()
            begins = {(near, far) for near, far, _ in rows}
            ends = {(near + length, far + length) for near, far, length in rows}
            assert not begins & ends


@settings(max_examples=200, deadline=None)
@given(pair=pairs(), tokens=st.integers(1, 50), part=st.floats(0, 1), gaps=st.booleans())
def test_a_run_lies_in_one_run_from_a_stage(
    pair: tuple[Layout, int, Layout], tokens: int, part: float, gaps: bool
) -> None:
    """So bytes have one order, the stage's, whichever way they are sent."""
    first = int(part * (tokens - 1))
    for plan in each_plan(pair):
        here = some_blocks(plan.source, tokens, 1)
        there = some_blocks(plan.destination, tokens, 2)
        there = np.sort(there) if gaps else np.arange(len(there))
        straight = plan.copies(tokens - first, here, there, first_token=first)
        staged = plan.gathered_copies(tokens - first, there, first_token=first)
        whole = [range(far, far + length) for _, far, length in staged.tolist()]
        for _, far, length in straight.tolist():
            assert any(far in run and far + length - 1 in run for run in whole)


def test_blocks_that_follow_one_another_are_one_run() -> None:
    layout = base()
    plan = compile_plan(layout, layout)
    copies = plan.copies(160, np.arange(3, 13), np.arange(20, 30))
    assert copies.tolist() == [
        (3 * layout.block_bytes, 20 * layout.block_bytes, 10 * layout.block_bytes)
    ]


# ---- who sends, and what a plan says of itself


@given(pair=pairs())
def test_the_sources_bring_each_head_once(pair: tuple[Layout, int, Layout]) -> None:
    destination = pair[2]
    brought = [
        head
        for plan in each_plan(pair)
        for head in range(plan.first_head, plan.first_head + plan.heads)
    ]
    held = range(destination.first_head, destination.first_head + destination.heads)
    assert sorted(brought) == list(held)


def test_twins_share_the_work() -> None:
    layout = base(kv_heads=2)
    assert [sources_of(8, layout.for_rank(rank, 8)) for rank in range(8)] == [
        (n,) for n in range(8)
    ]
    assert [sources_of(4, layout.for_rank(rank, 8)) for rank in range(8)] == [
        (0,), (1,), (0,), (1,), (2,), (3,), (2,), (3,)
    ]  # fmt: skip
    assert sources_of(8, layout) == (0, 4)
    latent = base(kind="mla", kv_heads=1)
    assert [sources_of(2, latent.for_rank(rank, 4)) for rank in range(4)] == [
        (0,),
        (1,),
        (0,),
        (1,),
    ]
    with pytest.raises(InvalidError) as caught:
        sources_of(3, layout)
    assert caught.value.field == "degree"


@pytest.mark.parametrize(
    ("here", "there", "identity", "run_bytes", "scattered"),
    [
        ({}, {}, True, 2 * 16 * 8 * 128 * 2, False),
        ({"order": "HND"}, {"order": "HND"}, True, 2 * 16 * 8 * 128 * 2, False),
        ({"degree": 8}, {"degree": 8, "order": "HND"}, True, 2 * 16 * 128 * 2, False),
        ({"block_tokens": 1}, {"block_tokens": 1, "order": "HND"}, True, 2 * 8 * 128 * 2, False),
        ({}, {"block_tokens": 64}, False, 16 * 8 * 128 * 2, False),
        ({"order": "HND"}, {"order": "HND", "degree": 2}, False, 4 * 16 * 128 * 2, False),
        ({"order": "HND"}, {"order": "HND", "block_tokens": 8}, False, 8 * 128 * 2, True),
        ({}, {"order": "HND"}, False, 128 * 2, True),
        ({}, {"degree": 8}, False, 128 * 2, True),
        ({"degree": 8}, {}, False, 128 * 2, False),  # a stage would not make it longer
        ({"degree": 8}, {"order": "HND"}, False, 16 * 128 * 2, False),
    ],
)
def test_a_plan_says_how_long_its_runs_are(
    here: dict[str, object],
    there: dict[str, object],
    identity: bool,
    run_bytes: int,
    scattered: bool,
) -> None:
    layout = Layout.of("llama-3-8b")
    plan = compile_plan(dataclasses.replace(layout, **here), dataclasses.replace(layout, **there))
    assert plan.is_identity is identity
    assert plan.run_bytes == run_bytes
    assert plan.is_scattered is scattered
    # Every second block: nothing to merge but what the plan says.
    tokens = 4 * plan.source.block_tokens * plan.destination.block_tokens
    lists = [2 * np.arange(one.blocks_for(tokens)) for one in (plan.source, plan.destination)]
    assert np.median(plan.copies(tokens, *lists)["length"]) == run_bytes


def test_a_plan_is_a_few_numbers_however_large_the_cache() -> None:
    source = base(kv_heads=1024, head_size=128, block_tokens=4096, layers=1024)
    for changes in ({"order": "HND"}, {"degree": 512}, {"block_tokens": 4095}):
        plan = compile_plan(source, dataclasses.replace(source, **changes))
        values = [dataclasses.astuple(plan._direct), dataclasses.astuple(plan._gathered)]
        for value in values:
            values.extend(value if isinstance(value, tuple) else ())
        assert {type(value) for value in values} <= {tuple, int, bool}
        assert len(values) < 100


# ---- what is refused


@pytest.mark.parametrize(
    "change",
    [
        {"layers": 3},
        {"kv_heads": 16},
        {"head_size": 5},
        {"dtype": "float16"},
        {"model": "another"},
        {"kv_heads": 16, "dtype": "int8", "layers": 1, "model": "another", "head_size": 3},
    ],
    ids=lambda change: "+".join(change),
)
@pytest.mark.parametrize("to", DEGREES)
def test_what_cannot_be_bridged_is_refused_with_all_of_it(
    to: int, change: dict[str, object]
) -> None:
    source = base()
    # Block size and order differ too; those are bridged and not named.
    other = dataclasses.replace(base(block_tokens=64, order="HND", degree=to), **change)
    with pytest.raises(LayoutError) as caught:
        compile_plan(source, other)
    assert {name: theirs for name, _, theirs in caught.value.differences} == change
    for name, ours, theirs in caught.value.differences:
        assert ours == getattr(source, name)
        assert f"{name} is {ours} here, {theirs} there" in str(caught.value)


def test_latent_vectors_are_no_keys_and_values() -> None:
    source = base(kv_heads=1)
    with pytest.raises(LayoutError) as caught:
        compile_plan(source, dataclasses.replace(source, kind="mla"))
    assert caught.value.differences == (("kind", "gqa", "mla"),)


def test_the_words_of_a_refusal_are_those_of_the_side_that_asks() -> None:
    source, destination = base(layers=1), base(layers=2)
    for here, ours, theirs in (("source", 1, 2), ("destination", 2, 1)):
        with pytest.raises(LayoutError) as caught:
            compile_plan(source, destination, here=here)
        assert caught.value.differences == (("layers", ours, theirs),)


def test_ranks_that_share_no_head_have_no_plan() -> None:
    with pytest.raises(LayoutError) as caught:
        compile_plan(base(rank=0, degree=4), base(rank=1, degree=2))
    assert caught.value.differences == (("heads", "0..1 (rank 0 of 4)", "4..7 (rank 1 of 2)"),)


PLAN = compile_plan(base(), base(block_tokens=64))


@pytest.mark.parametrize(
    ("field", "tokens", "first", "here", "there"),
    [
        ("tokens", -1, 0, [0], [0]),
        ("tokens", 1 << 63, 0, [0], [0]),
        ("first_token", 1, -1, [0], [0]),
        ("source_blocks", 17, 0, [0], [0]),
        ("source_blocks", 1, 16, [0], [0]),
        ("destination_blocks", 65, 0, range(5), [0]),
        ("source_blocks[1]", 32, 0, [0, -1], [0]),
        ("destination_blocks[0]", 32, 0, [0, 1], [1 << 62]),
        ("source_blocks", 16, 0, [0.5], [0]),
        ("source_blocks", 16, 0, [[0]], [0]),
    ],
)
def test_blocks_and_tokens_that_cannot_be_are_named(
    field: str, tokens: int, first: int, here: list[int], there: list[int]
) -> None:
    with pytest.raises(InvalidError) as caught:
        PLAN.copies(tokens, np.array(here), np.array(there), first_token=first)
    assert caught.value.field == field


def test_gather_takes_only_what_fits() -> None:
    layer = np.zeros((4, *PLAN.source.block_shape), dtype=PLAN.source.numpy_dtype)
    out = np.zeros(PLAN.stage_bytes(32), dtype=np.uint8)
    for field, arguments in (
        ("source_blocks[1]", (layer, 32, np.array([0, 4]), out)),
        ("layer", (layer.view(np.int16), 32, np.array([0, 1]), out)),
        ("layer", (layer[:, :, :8], 32, np.array([0, 1]), out)),
        ("out", (layer, 32, np.array([0, 1]), out[:-1])),
        ("out", (layer, 32, np.array([0, 1]), out.view(np.uint16))),
        ("out", (layer, 32, np.array([0, 1]), np.zeros(2 * len(out), dtype=np.uint8)[::2])),
    ):
        with pytest.raises(InvalidError) as caught:
            PLAN.gather(*arguments)
        assert caught.value.field == field
    with pytest.raises(InvalidError) as caught:
        PLAN.gathered_copies(32, np.array([0]), stage_offset=-1)
    assert caught.value.field == "stage_offset"


@pytest.mark.parametrize("field", ["source", "destination", "length"])
@pytest.mark.parametrize("value", [1000, (1 << 64) - 8])
def test_apply_never_leaves_the_memory_it_is_given(field: str, value: int) -> None:
    memory = np.zeros(1000, dtype=np.uint8)
    copies = np.array([(0, 8, 8), (992, 992, 8)], dtype=COPY)
    PLAN.apply(memory, memory.copy(), copies)
    copies[1][field] = value
    with pytest.raises(InvalidError) as caught:
        PLAN.apply(memory, memory.copy(), copies)
    assert caught.value.field == "copies"


def test_apply_takes_whole_memory_only() -> None:
    memory = np.zeros((10, 10), dtype=np.uint8)
    with pytest.raises(InvalidError) as caught:
        PLAN.apply(memory, memory.T, np.zeros(1, dtype=COPY))
    assert caught.value.field == "destination_layer"

# SPDX-License-Identifier: MIT
"""The numpy engine: that it is a Llama, and that its cache is blocks of a pool and nothing else.

The oracle is the same model written down a second time, in float64, without a cache and without
anything of the engine's but its weights.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import tracemalloc
from typing import Any

import numpy as np
import pytest
from engines import FORMATS, PROMPT, SMALL, cache_of, continued, generated, made, moved
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import dmaplane
from dmaplane import kv
from dmaplane.kv.engine import Cache, load
from dmaplane.kv.engine._attention import attend_one
from dmaplane.kv.engine._numpy import NumpyEngine
from dmaplane.kv.engine._paged import decoder_of, encoder_of, pieces_of
from dmaplane.kv.engine._weights import Shape, Weights, weights_of

# ---- a Llama


def straight(weights: Weights, tokens: NDArray[Any]) -> NDArray[np.float64]:
    """Logits after each of @tokens: the whole sequence at once, head by head, in float64."""
    shape = weights.shape
    size, count = shape.head_size, len(tokens)

    def wide(array: Any) -> NDArray[np.float64]:
        return np.asarray(array, dtype=np.float64)

    def norm(rows: Any, weight: Any) -> NDArray[np.float64]:
        scale = np.sqrt((rows**2).sum(axis=1) / rows.shape[1] + shape.epsilon)
        return rows / scale[:, None] * wide(weight)

    def rotate(head: Any) -> NDArray[np.float64]:
        # Each pair is a complex number; RoPE multiplies it by a unit one.
        pairs = head[:, : size // 2] + 1j * head[:, size // 2 :]
        speeds = np.array([shape.rope_base ** (-2 * i / size) for i in range(size // 2)])
        pairs = pairs * np.exp(1j * np.outer(np.arange(count), speeds))
        return np.hstack([pairs.real, pairs.imag])

    rows = wide(weights.embedding)[tokens]
    for layer in weights.layers:
        normal = norm(rows, layer.attention_norm)
        queries, keys, values = (
            (normal @ wide(part).T).reshape(count, -1, size)
            for part in (layer.query, layer.key, layer.value)
        )
        seen = np.zeros_like(queries)
        for head in range(shape.heads):
            shared = head * shape.kv_heads // shape.heads
            scores = rotate(queries[:, head]) @ rotate(keys[:, shared]).T / np.sqrt(size)
            for row in range(count):
                shares = np.exp(scores[row, : row + 1] - scores[row, : row + 1].max())
                seen[row, head] = shares / shares.sum() @ values[: row + 1, shared]
        rows = rows + seen.reshape(count, -1) @ wide(layer.output).T
        normal = norm(rows, layer.feed_norm)
        gate = normal @ wide(layer.gate).T
        inner = gate / (1 + np.exp(-gate)) * (normal @ wide(layer.up).T)
        rows = rows + inner @ wide(layer.down).T
    return norm(rows, weights.norm) @ wide(weights.head).T


@pytest.mark.parametrize("order", ["NHD", "HND"])
def test_prefill_and_decode_give_the_logits_of_the_whole_sequence_at_once(
    plane: dmaplane.Plane, order: str
) -> None:
    engine = made("numpy", order=order, chunk_tokens=32)
    assert isinstance(engine, NumpyEngine)
    wanted = straight(engine.weights, PROMPT)
    with cache_of(plane, engine.layout) as cache:
        first = engine.prefill(PROMPT[:40], cache)
        np.testing.assert_allclose(first, wanted[39], rtol=2e-4, atol=2e-4)
        for position in range(40, len(PROMPT)):
            logits = engine.decode(int(PROMPT[position]), position, cache)
            np.testing.assert_allclose(logits, wanted[position], rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("dtype", FORMATS)
def test_the_cache_holds_the_format_it_says(plane: dmaplane.Plane, dtype: str) -> None:
    engine = made("numpy", dtype=dtype)
    exact = made("numpy")
    with cache_of(plane, engine.layout) as cache, cache_of(plane, exact.layout) as full:
        engine.prefill(PROMPT, cache)
        exact.prefill(PROMPT, full)
        rounding = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
        for read in ("keys", "values"):
            found = decoder_of(dtype)(getattr(cache.pool, read)(0)).reshape(-1, 2, 32)[:75]
            right = getattr(full.pool, read)(0).reshape(-1, 2, 32)[:75]
            np.testing.assert_allclose(found, right, rtol=rounding, atol=1e-7)
            assert (found == right).all() == (dtype == "float32")
        assert bool(engine.copied()) == (dtype != "float32")
        del found, right


def test_weights_are_the_same_on_every_machine_and_numpy() -> None:
    shape = Shape(**SMALL)
    assert weights_of(shape, seed=1).digest == "68f4fb61398d8885ced3b699744a5045"
    assert weights_of(shape, seed=2).digest != "68f4fb61398d8885ced3b699744a5045"
    engine = made("numpy", seed=1)
    assert engine.layout.model == "numpy-llama:68f4fb61398d8885ced3b699744a5045"


def test_weights_of_another_arithmetic_have_another_name() -> None:
    names = {
        made("numpy", **other).layout.model
        for other in ({}, {"heads": 2, "head_size": 64, "kv_heads": 1}, {"rope_base": 500000.0})
    }
    assert len(names) == 3


def test_one_loud_head_does_not_silence_the_others() -> None:
    """Scores of one head are thousands above all of another: each head is weighed by itself."""
    random = np.random.default_rng(3)
    keys, values = random.standard_normal((2, 3, 16, 2, 8)).astype(np.float32)
    keys[:, :, 1] += 10
    query = np.stack([np.full(8, -3.0), np.full(8, 300.0)]).astype(np.float32)
    pieces = pieces_of(np.arange(3), tokens=40, block_tokens=16)
    found = attend_one(query, keys, values, pieces, decoder_of("float32"))
    for head in range(2):
        scores = keys[:, :, head].reshape(-1, 8)[:40].astype(np.float64) @ query[head] / 8**0.5
        shares = np.exp(scores - scores.max())
        right = shares / shares.sum() @ values[:, :, head].reshape(-1, 8)[:40]
        np.testing.assert_allclose(found[head], right, rtol=1e-4)


# ---- its cache is the pool


@pytest.mark.parametrize("dtype", FORMATS)
def test_logits_are_bit_identical_wherever_the_blocks_lie(
    plane: dmaplane.Plane, dtype: str
) -> None:
    engine = made("numpy", dtype=dtype)
    with cache_of(plane, engine.layout) as cache:
        engine.prefill(PROMPT, cache)
        right = engine.decode(3, len(PROMPT), cache)
    with kv.Pool(plane, engine.layout, 24) as pool:
        # Every block but 2, 3, 4, 9, 11, 13, 20 is another's: rows of equal steps, and single ones.
        ours = {2, 3, 4, 9, 11, 13, 20}
        singles = [pool.lease(1, holder="any") for _ in range(24)]
        for lease in singles:
            if int(lease.blocks[0]) in ours:
                lease.release()
        with pool.lease(7, holder="test") as lease:
            assert sorted(lease.blocks) == sorted(ours)
            cache = Cache(pool, lease)
            engine.prefill(PROMPT, cache)
            found = engine.decode(3, len(PROMPT), cache)
        for other in singles:
            other.release()
    np.testing.assert_array_equal(found, right)


def test_what_a_block_held_before_makes_no_difference(plane: dmaplane.Plane) -> None:
    engine = made("numpy")
    with cache_of(plane, engine.layout) as clean:
        right = generated(engine, clean)
    with cache_of(plane, engine.layout, fill=0xFF) as cache:  # NaN everywhere
        assert np.isnan(cache.pool.keys(0)).all()
        assert generated(engine, cache) == right


def test_only_blocks_of_the_lease_are_written(plane: dmaplane.Plane) -> None:
    engine = made("numpy")
    with cache_of(plane, engine.layout, skip=3, fill=0x5A) as cache:
        generated(engine, cache)
        others = np.setdiff1d(np.arange(cache.pool.blocks), cache.lease.blocks)
        assert len(others) == 3
        for number in range(engine.layout.layers):
            assert (cache.pool.layer(number)[others].view(np.uint8) == 0x5A).all()
            # 106 tokens: the last block has six places that nobody wrote.
            last = cache.pool.keys(number)[cache.lease.blocks[6]]
            assert (last[:10].view(np.uint8) != 0x5A).any(axis=(1, 2)).all()
            assert (last[10:].view(np.uint8) == 0x5A).all()
        del last


def test_a_prompt_in_pieces_is_a_whole_prompt(plane: dmaplane.Plane) -> None:
    whole = made("numpy", chunk_tokens=1000)
    with cache_of(plane, whole.layout) as cache:
        logits = whole.prefill(PROMPT, cache)
        tokens = generated(whole, cache)
    pieces = made("numpy", chunk_tokens=7)
    with cache_of(plane, pieces.layout) as cache:
        for first, end in ((0, 1), (1, 30), (30, 32), (32, 75)):
            found = pieces.prefill(PROMPT[first:end], cache, first_token=first)
        np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-4)
        assert continued(pieces, cache) == tokens


@settings(deadline=None, max_examples=12)
@given(
    block_tokens=st.sampled_from([1, 5, 16, 64, 256]),
    order=st.sampled_from(["NHD", "HND"]),
    degree=st.sampled_from([1, 2]),
    dtype=st.sampled_from(FORMATS),
)
def test_a_cache_moved_by_plans_gives_the_same_tokens(
    block_tokens: int, order: str, degree: int, dtype: str
) -> None:
    """Prefill, ranks of another layout, decode: three pools and the plans between them."""
    engine = made("numpy", dtype=dtype)
    there = made("numpy", dtype=dtype, block_tokens=block_tokens, order=order)
    with (
        dmaplane.open(plane="embedded") as plane,
        cache_of(plane, engine.layout) as one,
        cache_of(plane, there.layout) as other,
    ):
        right = generated(engine, one)
        for rank in range(degree):
            part = there.layout.for_rank(rank, degree)
            with cache_of(plane, part) as between:
                moved(one, between, len(PROMPT) - 1)
                moved(between, other, len(PROMPT) - 1)
        assert continued(there, other) == right


def test_what_before_layer_raises_ends_the_call(plane: dmaplane.Plane) -> None:
    engine = made("numpy")
    with cache_of(plane, engine.layout) as cache:
        engine.prefill(PROMPT, cache)
        before = cache.pool.layer(2).tobytes()

        def lost(number: int) -> None:
            if number == 2:
                raise dmaplane.TransferError("r1", "the peer is gone")

        with pytest.raises(dmaplane.TransferError, match="the peer is gone"):
            engine.decode(9, len(PROMPT), cache, lost)
        assert cache.pool.layer(2).tobytes() == before


def test_decode_of_a_float32_cache_copies_no_keys_or_values(plane: dmaplane.Plane) -> None:
    engine = made("numpy")
    tokens = 16384
    with cache_of(plane, engine.layout, tokens) as cache:
        for number in range(engine.layout.layers):
            cache.pool.layer(number)[...] = 0.25
        engine.decode(1, tokens - 1, cache)
        half = engine.layout.layer_bytes(engine.layout.blocks_for(tokens)) // 2
        tracemalloc.start()
        try:
            engine.decode(1, tokens - 1, cache)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    # Scores are one number per head and token, twice while they are filled in; K of a layer is
    # `head_size` numbers for each kv head and token.
    assert peak < half // 3, f"{peak} bytes of work memory, and K of a layer has {half}"


def test_two_threads_decode_what_each_does_alone(plane: dmaplane.Plane) -> None:
    engine = made("numpy")
    prompts = [np.random.default_rng(seed).integers(0, 256, 50) for seed in range(4)]
    alone = []
    for prompt in prompts:
        with cache_of(plane, engine.layout) as cache:
            alone.append(generated(engine, cache, prompt))
    with kv.Pool(plane, engine.layout, 24) as pool, contextlib.ExitStack() as stack:
        caches = [Cache(pool, stack.enter_context(pool.lease(6, holder="test"))) for _ in prompts]
        with concurrent.futures.ThreadPoolExecutor(4) as threads:
            work = [
                threads.submit(generated, engine, cache, prompt)
                for cache, prompt in zip(caches, prompts, strict=True)
            ]
            assert [one.result(60) for one in work] == alone


# ---- what is refused


def test_a_cache_of_another_model_is_refused_and_the_difference_named(
    plane: dmaplane.Plane,
) -> None:
    engine, other = made("numpy"), made("numpy", seed=2)
    with cache_of(plane, other.layout) as cache:
        with pytest.raises(dmaplane.LayoutError) as told:
            engine.prefill(PROMPT, cache)
        assert [name for name, _, _ in told.value.differences] == ["model"]
        with pytest.raises(dmaplane.LayoutError):
            engine.decode(1, 0, cache)


def test_blocks_that_may_be_anothers_by_now_are_not_touched(plane: dmaplane.Plane) -> None:
    engine = made("numpy")
    with kv.Pool(plane, engine.layout, 8) as pool, kv.Pool(plane, engine.layout, 8) as apart:
        ended = pool.lease(8, holder="test")
        ended.release()
        with pool.lease(8, holder="another"):
            for call in (engine.prefill, lambda _, cache: engine.decode(1, 0, cache)):
                with pytest.raises(dmaplane.StaleEpochError):
                    call(PROMPT, Cache(pool, ended))
        with apart.lease(8, holder="test") as lease:
            with pytest.raises(dmaplane.InvalidError, match="another pool"):
                engine.prefill(PROMPT, Cache(pool, lease))
        assert not pool.buffer.numpy().any()


@pytest.mark.parametrize(
    ("tokens", "first", "field"),
    [
        ([], 0, "tokens"),
        ([1] * 129, 0, "tokens"),
        ([1], 128, "tokens"),
        ([1], -1, "tokens"),
        ([[1]], 0, "tokens"),
        ([0.5], 0, "tokens"),
        ([1, 2, 512, 600], 0, "tokens[2]"),
        ([1, -1], 0, "tokens[1]"),
    ],
)
def test_tokens_that_cannot_be_are_refused_before_anything_is_written(
    plane: dmaplane.Plane, tokens: list[Any], first: int, field: str
) -> None:
    engine = made("numpy")
    with cache_of(plane, engine.layout) as cache:
        with pytest.raises(dmaplane.InvalidError) as told:
            engine.prefill(np.array(tokens), cache, first_token=first)
        assert told.value.field == field
        assert not cache.pool.buffer.numpy().any()


def test_a_lease_that_ends_meanwhile_is_an_error_not_a_token(plane: dmaplane.Plane) -> None:
    engine = made("numpy")
    now = 0.0
    with kv.Pool(plane, engine.layout, 8, clock=lambda: now) as pool:
        with pool.lease(8, holder="test", seconds=10) as lease:
            cache = Cache(pool, lease)
            engine.prefill(PROMPT, cache)

            def late(number: int) -> None:
                nonlocal now
                now = 11.0

            with pytest.raises(dmaplane.StaleEpochError):
                engine.decode(1, len(PROMPT), cache, late)
        assert pool.account().free == 8


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"layer": 4}, "layer"),
        ({"layers": 0}, "layers"),
        ({"kv_heads": 3}, "kv_heads"),
        ({"head_size": 31}, "head_size"),
        ({"hidden": 1 << 16, "inner": 1 << 16}, "hidden, inner"),
        ({"spread": float("nan")}, "spread"),
        ({"chunk_tokens": 0}, "chunk_tokens"),
        ({"seed": -1}, "seed"),
        ({"order": "DHN"}, "order"),
    ],
)
def test_a_setting_that_cannot_be_is_named(wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(dmaplane.InvalidError) as told:
        made("numpy", **wrong)
    assert told.value.field == field


def test_an_engine_or_a_format_that_there_is_not_is_named() -> None:
    with pytest.raises(dmaplane.InvalidError, match="numpy, transformers"):
        load("llama.cpp")
    with pytest.raises(dmaplane.UnsupportedError, match="bfloat16"):
        made("numpy", dtype="int8")


# ---- formats and places


@pytest.mark.parametrize("rest", [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
def test_bfloat16_is_the_nearest_and_ties_are_even(rest: int) -> None:
    """All of the 65,536 numbers there are, each with something cut off."""
    exact = (np.arange(1 << 16, dtype=np.uint32) << 16) | np.uint32(rest)
    numbers = exact.view(np.float32)
    found = encoder_of("bfloat16")(numbers)
    low = (exact >> 16).astype(np.uint32)
    # What is left of a cut tells how near it is: below, at, or above half of the last place.
    up = (rest > 0x8000) | ((rest == 0x8000) & (low % 2 == 1))
    right = np.where(up, low + 1, low).astype(np.uint16)
    normal = ~np.isnan(numbers)
    np.testing.assert_array_equal(found[normal], right[normal])
    back = decoder_of("bfloat16")(found)
    assert np.isnan(back[~normal]).all()
    np.testing.assert_array_equal(encoder_of("bfloat16")(back)[normal], found[normal])


@given(
    order=st.permutations(range(12)),
    count=st.integers(1, 12),
    block_tokens=st.sampled_from([1, 3, 16]),
    data=st.data(),
)
def test_pieces_are_the_tokens_of_the_lease_in_order(
    order: list[int], count: int, block_tokens: int, data: st.DataObject
) -> None:
    blocks = np.array(order[:count], dtype=np.int64)
    tokens = data.draw(st.integers(1, count * block_tokens))
    places = np.arange(12 * block_tokens).reshape(12, block_tokens)
    found = [
        places[one.blocks, : one.tokens].ravel()
        for one in pieces_of(blocks, tokens=tokens, block_tokens=block_tokens)
    ]
    assert np.concatenate(found).tolist() == places[blocks].ravel()[:tokens].tolist()


@pytest.mark.parametrize("blocks", [range(100), range(99, -1, -1), range(3, 200, 2)])
def test_a_lease_of_equal_steps_is_one_piece(blocks: range) -> None:
    found = pieces_of(np.array(blocks), tokens=len(blocks) * 16, block_tokens=16)
    assert [one.count for one in found] == [len(blocks)]

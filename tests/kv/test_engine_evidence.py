# SPDX-License-Identifier: MIT
"""That greedy tokens are evidence: they differ from step to step, and with any damage to the cache.

With the usual random weights a model says one token for ever, whatever its cache holds, and a
test that compares tokens can not fail. These are the tests of the tests, of both engines.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import dmaplane
from dmaplane import kv
from dmaplane.kv.engine import Cache, Engine, greedy, load

SMALL: dict[str, Any] = {
    "layers": 4,
    "hidden": 128,
    "heads": 4,
    "kv_heads": 2,
    "head_size": 32,
    "inner": 256,
    "vocabulary": 512,
    "spread": 0.12,
}
FORMATS = ("float32", "float16", "bfloat16")
PROMPT = np.random.default_rng(7).integers(0, 256, 75)
TOKENS = 32
_LOADED: dict[tuple[str, str], Engine] = {}
_RIGHT: dict[tuple[str, str], list[int]] = {}


@pytest.fixture
def plane() -> Iterator[dmaplane.Plane]:
    with dmaplane.open(plane="embedded") as opened:
        yield opened


@pytest.fixture(params=[(name, dtype) for name in ("numpy", "transformers") for dtype in FORMATS])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each engine in each format, made once."""
    name, dtype = request.param
    if name == "transformers":
        for package in ("torch", "transformers"):
            if importlib.util.find_spec(package) is None:
                pytest.skip(f"missing-package: {package}")
    if request.param not in _LOADED:
        _LOADED[request.param] = load(name, **SMALL, dtype=dtype)
    return _LOADED[request.param]


@contextlib.contextmanager
def prefilled(plane: dmaplane.Plane, engine: Engine) -> Iterator[Cache]:
    blocks = engine.layout.blocks_for(len(PROMPT) + TOKENS)
    with kv.Pool(plane, engine.layout, blocks) as pool:
        with pool.lease(blocks, holder="test") as lease:
            cache = Cache(pool, lease)
            engine.prefill(PROMPT[:-1], cache)
            yield cache


def tokens_of(engine: Engine, cache: Cache) -> list[int]:
    last = len(PROMPT) - 1
    return list(greedy(engine, cache, token=int(PROMPT[-1]), position=last, count=TOKENS))


def damaged(
    plane: dmaplane.Plane, engine: Engine, damage: Callable[[Cache], None]
) -> tuple[list[int], list[int]]:
    """Tokens from the cache as it was made, and from one made anew and damaged."""
    which = engine.name, engine.layout.dtype
    if which not in _RIGHT:
        with prefilled(plane, engine) as cache:
            _RIGHT[which] = tokens_of(engine, cache)
    with prefilled(plane, engine) as cache:
        damage(cache)
        return _RIGHT[which], tokens_of(engine, cache)


def test_greedy_tokens_differ_from_step_to_step(plane: dmaplane.Plane, engine: Engine) -> None:
    with prefilled(plane, engine) as cache:
        found = tokens_of(engine, cache)
    assert len(set(found)) >= 20, found


def test_the_same_cache_gives_the_same_tokens(plane: dmaplane.Plane, engine: Engine) -> None:
    def rewritten(cache: Cache) -> None:
        for number in range(cache.pool.layout.layers):
            layer = cache.pool.layer(number)
            layer[...] = layer.copy()

    right, found = damaged(plane, engine, rewritten)
    assert found == right


@pytest.mark.parametrize("block", [0, 2, 4])
def test_one_zeroed_block_changes_the_tokens(
    plane: dmaplane.Plane, engine: Engine, block: int
) -> None:
    def zeroed(cache: Cache) -> None:
        for number in range(cache.pool.layout.layers):
            cache.pool.layer(number)[cache.lease.blocks[block]] = 0

    right, found = damaged(plane, engine, zeroed)
    assert found != right


def test_two_swapped_layers_change_the_tokens(plane: dmaplane.Plane, engine: Engine) -> None:
    def swapped(cache: Cache) -> None:
        one, other = cache.pool.layer(1), cache.pool.layer(2)
        kept = one.copy()
        one[...] = other
        other[...] = kept

    right, found = damaged(plane, engine, swapped)
    assert found != right


@pytest.mark.parametrize("layer", range(4))
def test_one_flipped_bit_changes_the_tokens(
    plane: dmaplane.Plane, engine: Engine, layer: int
) -> None:
    """The highest bit of the exponent of one number of V below 2, in one layer, of one token of 74.

    So the number becomes huge; of a larger one the flip would leave next to nothing.
    """

    def flipped(cache: Cache) -> None:
        values: NDArray[Any] = cache.pool.values(layer)
        size = values.dtype.itemsize
        bits = values.view(np.dtype(f"u{size}"))[cache.lease.blocks[2], 5]
        mask = np.array(1 << (size * 8 - 2), dtype=bits.dtype)
        head, element = np.argwhere(bits & mask == 0)[0]
        bits[head, element] ^= mask

    right, found = damaged(plane, engine, flipped)
    assert found != right

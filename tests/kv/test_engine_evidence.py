# SPDX-License-Identifier: MIT
"""That greedy tokens are evidence: they differ from step to step, and with any damage to the cache.

With the usual random weights a model says one token for ever, whatever its cache holds, and a
test that compares tokens can not fail. These are the tests of the tests, of both engines.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from engines import FORMATS, PROMPT, cache_of, continued, flip, generated, made

import dmaplane
from dmaplane.kv.engine import Cache, Engine

_LOADED: dict[tuple[str, str], Engine] = {}
_RIGHT: dict[tuple[str, str], list[int]] = {}


@pytest.fixture(params=[(name, dtype) for name in ("numpy", "transformers") for dtype in FORMATS])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each engine in each format, made once."""
    name, dtype = request.param
    if request.param not in _LOADED:
        _LOADED[request.param] = made(name, dtype=dtype)
    return _LOADED[request.param]


def damaged(
    plane: dmaplane.Plane, engine: Engine, damage: Callable[[Cache], None]
) -> tuple[list[int], list[int]]:
    """Tokens from the cache as it was made, and from one made anew and damaged."""
    which = engine.name, engine.layout.dtype
    if which not in _RIGHT:
        with cache_of(plane, engine.layout) as cache:
            _RIGHT[which] = generated(engine, cache)
    with cache_of(plane, engine.layout) as cache:
        engine.prefill(PROMPT[:-1], cache)
        damage(cache)
        return _RIGHT[which], continued(engine, cache)


def test_greedy_tokens_differ_from_step_to_step(plane: dmaplane.Plane, engine: Engine) -> None:
    with cache_of(plane, engine.layout) as cache:
        found = generated(engine, cache)
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
    """Of one number of V, in one layer, of one token of 74; with flip() of engines.py."""
    right, found = damaged(plane, engine, lambda cache: flip(cache.pool, cache.lease, layer))
    assert found != right

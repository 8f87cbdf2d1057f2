# SPDX-License-Identifier: MIT
"""Layers of a cache come and go one at a time, whichever engine computes them."""

from __future__ import annotations

import numpy as np
import pytest
from engines import PROMPT, cache_of, made

import dmaplane

ENGINES = ("numpy", "transformers")


@pytest.mark.parametrize("name", ENGINES)
def test_a_layer_is_complete_when_it_is_said_to_be(plane: dmaplane.Plane, name: str) -> None:
    engine = made(name)
    heard: list[tuple[int, bytes]] = []
    with cache_of(plane, engine.layout) as cache:

        def on_layer(number: int) -> None:
            heard.append((number, cache.pool.layer(number).tobytes()))
            if number + 1 < engine.layout.layers:
                assert not cache.pool.layer(number + 1).any()

        engine.prefill(PROMPT, cache, on_layer)
        assert [number for number, _ in heard] == list(range(engine.layout.layers))
        for number, seen in heard:
            assert seen == cache.pool.layer(number).tobytes()


@pytest.mark.parametrize("name", ENGINES)
def test_decode_looks_at_no_layer_before_it_is_there(plane: dmaplane.Plane, name: str) -> None:
    engine = made(name)
    with (
        cache_of(plane, engine.layout) as source,
        cache_of(plane, engine.layout, fill=0xFF) as cache,
    ):
        engine.prefill(PROMPT, source)
        asked: list[int] = []

        def arrive(number: int) -> None:
            asked.append(number)
            cache.pool.layer(number)[...] = source.pool.layer(number)

        found = engine.decode(9, len(PROMPT), cache, arrive)
        assert asked == list(range(engine.layout.layers))
        np.testing.assert_array_equal(found, engine.decode(9, len(PROMPT), source))

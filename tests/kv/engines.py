# SPDX-License-Identifier: MIT
"""Small engines, a prompt, and a cache to try them on."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
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
}
FORMATS = ("float32", "float16", "bfloat16")
PROMPT = np.random.default_rng(7).integers(0, 256, 75)
LAST = len(PROMPT) - 1
TOKENS = 32


def needs_transformers() -> None:
    """Skips the test where the library is not there."""
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"missing-package: {package}")


def made(name: str, **options: Any) -> Any:
    """A small engine of that name."""
    if name == "transformers":
        needs_transformers()
    return load(name, **{**SMALL, **options})


@contextlib.contextmanager
def cache_of(
    plane: dmaplane.Plane,
    layout: kv.Layout,
    tokens: int = len(PROMPT) + TOKENS,
    *,
    skip: int = 0,
    fill: int = 0,
) -> Iterator[Cache]:
    """Room for so many tokens, behind @skip blocks that are another's; bytes of @fill before."""
    blocks = layout.blocks_for(tokens)
    with kv.Pool(plane, layout, blocks + skip) as pool, contextlib.ExitStack() as stack:
        pool.buffer.numpy()[:] = fill
        if skip:
            stack.enter_context(pool.lease(skip, holder="another"))
        yield Cache(pool, stack.enter_context(pool.lease(blocks, holder="test")))


def continued(engine: Engine, cache: Cache, prompt: NDArray[Any] = PROMPT) -> list[int]:
    """Greedy tokens from a cache that has all of @prompt but its last token."""
    last = len(prompt) - 1
    return list(greedy(engine, cache, token=int(prompt[-1]), position=last, count=TOKENS))


def generated(engine: Engine, cache: Cache, prompt: NDArray[Any] = PROMPT) -> list[int]:
    """Greedy tokens as the servers make them: all but the last of a prompt is prefilled."""
    engine.prefill(prompt[:-1], cache)
    return continued(engine, cache, prompt)


def moved(source: Cache, destination: Cache, tokens: int) -> None:
    """The first tokens of a cache, into another of any layout, by a plan."""
    plan = kv.compile_plan(source.pool.layout, destination.pool.layout)
    copies = plan.copies(tokens, source.lease.blocks, destination.lease.blocks)
    for number in range(source.pool.layout.layers):
        plan.apply(source.pool.layer(number), destination.pool.layer(number), copies)


def flip(pool: kv.Pool, lease: kv.Lease, layer: int) -> None:
    """Gives one number of V below 2 the highest bit of its exponent: it becomes huge.

    A larger one has that bit, and would lose it: what is left is next to nothing.
    """
    numbers: NDArray[Any] = pool.values(layer)
    size = numbers.dtype.itemsize
    bits = numbers.view(np.dtype(f"u{size}"))[lease.blocks[2], 5]
    mask = np.array(1 << (size * 8 - 2), dtype=bits.dtype)
    head, element = np.argwhere(bits & mask == 0)[0]
    bits[head, element] ^= mask

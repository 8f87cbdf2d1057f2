# SPDX-License-Identifier: MIT
"""Engines: what computes a KV cache, and goes on from one, in the blocks of a pool.

    engine = load("numpy")
    with Pool(plane, engine.layout, 64) as pool, pool.lease(8, holder="me") as lease:
        cache = Cache(pool, lease)
        logits = engine.prefill(prompt, cache)

`numpy` is a real Llama in NumPy alone, with weights from a seed: it needs nothing and starts at
once. `transformers` is any causal language model of that library, from a local checkpoint or a
seeded config. Neither is imported before it is loaded.
"""

from __future__ import annotations

from typing import Any, Final

from dmaplane._errors import InvalidError
from dmaplane.kv.engine._engine import Cache, Engine, greedy

__all__ = ["NAMES", "Cache", "Engine", "greedy", "load"]

NAMES: Final = ("numpy", "transformers")


def load(name: str, **settings: Any) -> Engine:
    """The engine of that name; InvalidError names a setting that is wrong, or that it has not.

    UnsupportedError says what to install where the engine's library is missing.
    """
    if name == "numpy":
        from dmaplane.kv.engine._numpy import engine_of as numpy_of

        return numpy_of(**settings)
    if name == "transformers":
        from dmaplane.kv.engine._transformers import engine_of as transformers_of

        return transformers_of(**settings)
    raise InvalidError("engine", f"{name!r} is none", fix=", ".join(NAMES))

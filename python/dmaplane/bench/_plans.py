# SPDX-License-Identifier: MIT
"""What planning a KV transfer costs, before a byte moves: a part of `bench kv`.

Lists of blocks are shuffled, as those of a pool in use are: nothing merges. Planning is CPU time
of one call; the array it makes serves all layers. Gathering is next to memcpy of as many bytes.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import numpy as np

from dmaplane.bench import _result
from dmaplane.kv._layout import Layout
from dmaplane.kv._plan import compile_plan

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

BLOCKS: Final = 100_000
GATHERED_TOKENS: Final = 4096


def measure(measured: _result.Measured, pairs: int, report: Callable[[str], None]) -> None:
    """Adds its rows to @measured. Takes about 1 s."""
    small = Layout.of("llama-3-8b")
    large = Layout.of("llama-3-8b", block_tokens=64)
    latent = Layout.of("deepseek-v3")
    for text, source, destination in (
        ("Llama-3-8B, same layout", small, small),
        ("Llama-3-8B, blocks of 16 to 64", small, large),
        ("DeepSeek-V3, same layout", latent, latent),
    ):
        report(f"plan: {text}")
        measured.add(_planned(text, source, destination, pairs))
    report("plan: gather")
    measured.add(_gathered(small, Layout.of("llama-3-8b", order="HND"), pairs))


def _shuffled(count: int, seed: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(count)


def _planned(text: str, source: Layout, destination: Layout, pairs: int) -> _result.Row:
    plan = compile_plan(source, destination)
    tokens = BLOCKS * source.block_tokens
    here, there = (_shuffled(one.blocks_for(tokens), 3) for one in (source, destination))
    plan.copies(tokens, here, there)
    samples = []
    for _ in range(pairs):
        began = time.thread_time()
        plan.copies(tokens, here, there)
        samples.append((time.thread_time() - began) * 1e3)
    return _result.single_row(f"plan {BLOCKS:,} blocks: {text}", "ms", samples)


def _gathered(source: Layout, destination: Layout, pairs: int) -> _result.Row:
    plan = compile_plan(source, destination)
    blocks = _shuffled(source.blocks_for(GATHERED_TOKENS), 4)
    raw = np.random.default_rng(5).integers(0, 256, source.layer_bytes(len(blocks)), dtype=np.uint8)
    layer = raw.view(source.numpy_dtype).reshape(-1, *source.block_shape)
    stage = np.zeros(plan.stage_bytes(GATHERED_TOKENS), dtype=np.uint8)

    def ours() -> float:
        began = time.perf_counter()
        plan.gather(layer, GATHERED_TOKENS, blocks, stage)
        return len(stage) / (time.perf_counter() - began) / 1e9

    def peer() -> float:
        began = time.perf_counter()
        np.copyto(stage, raw)
        return len(stage) / (time.perf_counter() - began) / 1e9

    mine, other = _result.interleaved(pairs, ours, peer)
    case = f"gather {len(stage) >> 20} MiB, NHD to HND"
    return _result.paired_row(case, "GB/s", mine, "memcpy", other)

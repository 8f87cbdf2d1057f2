# SPDX-License-Identifier: MIT
"""The `numpy` engine: a Llama in NumPy alone, with its cache in the blocks of a pool.

Grouped-query attention, RoPE, RMSNorm and SwiGLU as in the Llama models; K is cached after
RoPE. Weights come from a seed (_weights.py). Work goes layer by layer, so that a layer of the
cache is complete, and may travel, while those after it are not begun; within a layer
queries go in pieces of `chunk_tokens`, which bounds the memory a long prompt takes.

Prefill reads K and V back from the cache, in the precision the cache has, as decode does: whether a
prompt came in one piece or several, or from another process, makes no difference.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from dmaplane._errors import InvalidError
from dmaplane.kv._layout import Layout
from dmaplane.kv.engine import _attention as attention
from dmaplane.kv.engine import _paged as paged
from dmaplane.kv.engine._engine import Cache, check_cache, check_tokens
from dmaplane.kv.engine._paged import Floats, Format
from dmaplane.kv.engine._weights import LayerWeights, Shape, weights_of

OnLayer = Callable[[int], None]
_TOKENS_MAX: Final = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class NumpySettings:
    """What load("numpy", ...) takes besides the fields of Shape."""

    seed: int = 1
    dtype: Format = "float32"
    """Of the cache; the arithmetic is float32 always."""
    block_tokens: int = 16
    order: Literal["NHD", "HND"] = "NHD"
    chunk_tokens: int = 128
    """Queries of prefill at a time."""

    def __post_init__(self) -> None:
        if not 1 <= self.chunk_tokens <= _TOKENS_MAX:
            raise InvalidError("chunk_tokens", f"{self.chunk_tokens}", fix=f"1 .. {_TOKENS_MAX}")


class NumpyEngine:
    """Engine "numpy". Holds its weights; safe for several threads, which share them."""

    name: Final = "numpy"

    def __init__(self, shape: Shape | None = None, settings: NumpySettings | None = None) -> None:
        self.shape = shape or Shape()
        self.settings = settings or NumpySettings()
        self._encode = paged.encoder_of(self.settings.dtype)
        self._decode = paged.decoder_of(self.settings.dtype)
        self.weights = weights_of(self.shape, seed=self.settings.seed)
        self.layout = Layout(
            layers=self.shape.layers,
            kv_heads=self.shape.kv_heads,
            head_size=self.shape.head_size,
            dtype=self.settings.dtype,
            block_tokens=self.settings.block_tokens,
            order=self.settings.order,
            model=f"numpy-llama:{self.weights.digest}",
        )

    @property
    def vocabulary(self) -> int:
        """Tokens are 0 .. vocabulary - 1."""
        return self.shape.vocabulary

    def copied(self) -> str:
        """Nothing with a float32 cache: K and V are multiplied where they lie in the pool."""
        if self.settings.dtype == "float32":
            return ""
        return (
            f"K and V: made float32 from {self.settings.dtype} as each token reads them, because "
            "NumPy multiplies matrices of 16-bit numbers without BLAS"
        )

    def prefill(
        self,
        tokens: NDArray[np.int64],
        cache: Cache,
        on_layer: OnLayer | None = None,
        *,
        first_token: int = 0,
    ) -> Floats:
        """See Engine.prefill(). Half a second for 256 tokens of the default shape on one core."""
        check_cache(self.layout, cache)
        given = check_tokens(
            tokens, cache, first_token=first_token, vocabulary=self.shape.vocabulary
        )
        blocks = cache.lease.blocks
        pieces = paged.pieces_of(
            blocks,
            tokens=first_token + len(given),
            block_tokens=cache.pool.layout.block_tokens,
        )
        rope = self._rope(first_token, len(given))
        rows = self.weights.embedding[given]
        for number, weights in enumerate(self.weights.layers):
            normal = attention.normed(rows, weights.attention_norm, self.shape.epsilon)
            halves = cache.pool.keys(number), cache.pool.values(number)
            self._store(normal, weights, rope, halves, blocks, first_token)
            if on_layer is not None:
                on_layer(number)
            keys, values = (attention.gathered(one, pieces, self._decode) for one in halves)
            for start in range(0, len(rows), self.settings.chunk_tokens):
                part = slice(start, start + self.settings.chunk_tokens)
                queries = self._queries(normal[part], weights, rope[0][part], rope[1][part])
                seen = attention.attend_many(queries, keys, values, first_token=first_token + start)
                self._feed(rows[part], seen, weights)
        logits = self._logits(rows[-1:])
        cache.lease.check()
        return logits

    def decode(
        self,
        token: int,
        position: int,
        cache: Cache,
        before_layer: OnLayer | None = None,
    ) -> Floats:
        """See Engine.decode(). About 15 ms for the default shape on one core."""
        check_cache(self.layout, cache)
        given = check_tokens(
            np.array([token]), cache, first_token=position, vocabulary=self.shape.vocabulary
        )
        blocks = cache.lease.blocks
        pieces = paged.pieces_of(
            blocks, tokens=position + 1, block_tokens=cache.pool.layout.block_tokens
        )
        rope = self._rope(position, 1)
        row = self.weights.embedding[given]
        for number, weights in enumerate(self.weights.layers):
            normal = attention.normed(row, weights.attention_norm, self.shape.epsilon)
            if before_layer is not None:
                before_layer(number)
            halves = cache.pool.keys(number), cache.pool.values(number)
            self._store(normal, weights, rope, halves, blocks, position)
            query = self._queries(normal, weights, *rope)[0]
            seen = attention.attend_one(query, *halves, pieces, self._decode)
            self._feed(row, seen[None], weights)
        logits = self._logits(row)
        cache.lease.check()
        return logits

    def _rope(self, first: int, count: int) -> tuple[Floats, Floats]:
        positions = np.arange(first, first + count)
        return attention.rope_of(positions, size=self.shape.head_size, base=self.shape.rope_base)

    def _queries(
        self, normal: Floats, weights: LayerWeights, cosine: Floats, sine: Floats
    ) -> Floats:
        rows = _times(normal, weights.query).reshape(-1, self.shape.heads, self.shape.head_size)
        return attention.turned(rows, cosine, sine)

    def _store(
        self,
        normal: Floats,
        weights: LayerWeights,
        rope: tuple[Floats, Floats],
        halves: tuple[NDArray[Any], NDArray[Any]],
        blocks: NDArray[np.int64],
        first_token: int,
    ) -> None:
        """K (turned) and V of these tokens, into their blocks."""
        sides = (-1, self.shape.kv_heads, self.shape.head_size)
        keys = attention.turned(_times(normal, weights.key).reshape(sides), *rope)
        values = _times(normal, weights.value).reshape(sides)
        for half, rows in zip(halves, (keys, values), strict=True):
            paged.write(half, rows, blocks, first_token=first_token, encode=self._encode)

    def _feed(self, rows: Floats, seen: Floats, weights: LayerWeights) -> None:
        """What a layer adds to @rows, in place: attention's output, then the feed-forward part."""
        rows += _times(seen.reshape(len(rows), -1), weights.output)
        normal = attention.normed(rows, weights.feed_norm, self.shape.epsilon)
        inner = attention.gated(_times(normal, weights.gate), _times(normal, weights.up))
        rows += _times(inner, weights.down)

    def _logits(self, row: Floats) -> Floats:
        normal = attention.normed(row, self.weights.norm, self.shape.epsilon)
        logits: Floats = _times(normal, self.weights.head)[0]
        return logits


def _times(rows: Floats, matrix: Floats) -> Floats:
    """@rows [tokens, in] by a matrix [out, in]; silent about what damaged numbers become."""
    with np.errstate(all="ignore"):
        product: Floats = rows @ matrix.T
    return product


def engine_of(**settings: Any) -> NumpyEngine:
    """load("numpy", **settings): the fields of Shape and NumpySettings, in one list."""
    ours = {field.name for field in dataclasses.fields(NumpySettings)}
    sizes = {field.name for field in dataclasses.fields(Shape)}
    unknown = sorted(set(settings) - ours - sizes)
    if unknown:
        raise InvalidError(unknown[0], "no such setting", fix=", ".join(sorted(ours | sizes)))
    shape = Shape(**{name: value for name, value in settings.items() if name in sizes})
    rest = NumpySettings(**{name: value for name, value in settings.items() if name in ours})
    return NumpyEngine(shape, rest)

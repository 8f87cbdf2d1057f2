# SPDX-License-Identifier: MIT
"""Weights of a small Llama, made from a seed: the same on every machine and NumPy.

They come from the raw numbers of a PCG64, whose stream never changes between
releases of NumPy (that of its distributions may), as even spreads of 65,536
steps. Nothing is trained, so what matters is that greedy tokens tell caches
apart: a spread of 0.06 where a row has 512 numbers (1.36 / sqrt(hidden), for
models of any width) makes attention choose, and the tokens differ from step to
step. With the usual 0.02 one token comes for ever, whatever the cache holds, and
no test on tokens would mean anything.

The owner of a Weights shares it freely: the arrays are read-only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dmaplane._errors import InvalidError

Floats = NDArray[np.float32]

LAYERS_MAX: Final = 1024
WIDTH_MAX: Final = 1 << 16
VOCABULARY_MAX: Final = 1 << 20
PARAMETERS_MAX: Final = 1 << 32
_STEPS: Final = 1 << 16
_GAIN: Final = 1.36


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """How large the model is, and the three numbers that its arithmetic takes.

    The defaults are 25 million parameters: a third of a second for a prompt of 256 tokens
    on one core, about 15 ms for each token after it.
    """

    layers: int = 8
    hidden: int = 512
    heads: int = 8
    kv_heads: int = 4
    head_size: int = 64
    inner: int = 1408
    vocabulary: int = 1024
    spread: float | None = None
    """Standard deviation of the weights; None for what makes tokens differ at this width."""
    rope_base: float = 10000.0
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        limits = {
            "layers": LAYERS_MAX,
            "hidden": WIDTH_MAX,
            "heads": 1024,
            "kv_heads": 1024,
            "head_size": WIDTH_MAX,
            "inner": WIDTH_MAX,
            "vocabulary": VOCABULARY_MAX,
        }
        for name, most in limits.items():
            value = getattr(self, name)
            if not isinstance(value, int) or not 1 <= value <= most:
                raise InvalidError(name, f"{value!r}", fix=f"a whole number, 1 .. {most}")
        for name in ("spread", "rope_base", "epsilon"):
            value = getattr(self, name)
            if value is None and name == "spread":
                continue
            if not 0 < value < float("inf"):
                raise InvalidError(name, f"{value!r}", fix="a number above 0")
        if self.heads % self.kv_heads:
            raise InvalidError(
                "kv_heads", f"{self.kv_heads} do not divide {self.heads} heads", fix="a divisor"
            )
        if self.head_size % 2:
            raise InvalidError("head_size", f"{self.head_size} is odd", fix="RoPE turns pairs")
        if self.parameters > PARAMETERS_MAX:
            raise InvalidError(
                "hidden, inner", f"{self.parameters} parameters", fix=f"at most {PARAMETERS_MAX}"
            )

    @property
    def deviation(self) -> float:
        """The spread there is."""
        return _GAIN / math.sqrt(self.hidden) if self.spread is None else self.spread

    @property
    def parameters(self) -> int:
        """How many numbers the weights have."""
        attention = (2 * self.heads + 2 * self.kv_heads) * self.head_size * self.hidden
        layer = attention + 3 * self.hidden * self.inner + 2 * self.hidden
        return self.layers * layer + 2 * self.vocabulary * self.hidden + self.hidden


@dataclasses.dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer. Matrices are [out, in], as checkpoints have them; read-only."""

    attention_norm: Floats
    query: Floats
    key: Floats
    value: Floats
    output: Floats
    feed_norm: Floats
    gate: Floats
    up: Floats
    down: Floats


@dataclasses.dataclass(frozen=True, slots=True)
class Weights:
    """All of a model. `digest` names these numbers and no others: 32 hexadecimal digits."""

    shape: Shape
    embedding: Floats
    layers: tuple[LayerWeights, ...]
    norm: Floats
    head: Floats
    digest: str


class _Source:
    """Numbers of one seed, in the order they are asked for; sums up what it gave."""

    def __init__(self, seed: int, spread: float) -> None:
        self._raw = np.random.PCG64(seed)
        # An even spread over [-w, w] has the standard deviation w / sqrt(3).
        self._step = spread * math.sqrt(3) * 2 / _STEPS
        self.sum = hashlib.sha256()

    def matrix(self, rows: int, columns: int) -> Floats:
        count = rows * columns
        words = np.asarray(self._raw.random_raw((count + 3) // 4), dtype="<u8")
        numbers = words.view("<u2")[:count].astype(np.float32)
        numbers -= np.float32((_STEPS - 1) / 2)
        numbers *= np.float32(self._step)
        return self._sealed(numbers.reshape(rows, columns))

    def ones(self, count: int) -> Floats:
        return self._sealed(np.ones(count, dtype=np.float32))

    def _sealed(self, array: Floats) -> Floats:
        self.sum.update(array.astype("<f4", copy=False).data)
        array.flags.writeable = False
        return array


def weights_of(shape: Shape, *, seed: int) -> Weights:
    """The weights of @seed, 0 .. 2**64 - 1. Costs a tenth of a second for the default shape."""
    if not 0 <= seed < 1 << 64:
        raise InvalidError("seed", f"{seed}", fix="0 .. 2**64 - 1")
    source = _Source(seed, shape.deviation)
    wide, narrow = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    hidden, inner = shape.hidden, shape.inner
    embedding = source.matrix(shape.vocabulary, hidden)
    layers = tuple(
        LayerWeights(
            attention_norm=source.ones(hidden),
            query=source.matrix(wide, hidden),
            key=source.matrix(narrow, hidden),
            value=source.matrix(narrow, hidden),
            output=source.matrix(hidden, wide),
            feed_norm=source.ones(hidden),
            gate=source.matrix(inner, hidden),
            up=source.matrix(inner, hidden),
            down=source.matrix(hidden, inner),
        )
        for _ in range(shape.layers)
    )
    norm, head = source.ones(hidden), source.matrix(shape.vocabulary, hidden)
    known = dataclasses.replace(shape, spread=shape.deviation)
    source.sum.update(repr(dataclasses.astuple(known)).encode())
    return Weights(shape, embedding, layers, norm, head, source.sum.hexdigest()[:32])

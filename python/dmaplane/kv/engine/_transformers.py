# SPDX-License-Identifier: MIT
"""The `transformers` engine: a causal language model of that library over blocks of a pool.

The library asks a cache object, layer by layer, to take new K and V and to give back all there are.
Ours puts them into the blocks of a lease and gives back what the blocks hold, so that what a
token is computed from is always what is in the pool. It also is where one hears that a layer
is complete (prefill), and where one waits for it (decode). No model is patched, and nothing is kept
from one token to the next.

What cannot be had is decoding without a copy: the library's attention wants all tokens of a head in
one row, a pool has them in blocks. A cache of the library's own would be no better: it makes a new
row of everything for each token.

Owned here: the model. From transformers 4.56 (where a cache is a list of layers) to 5.23 at least.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import pathlib
from collections.abc import Callable
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from dmaplane._errors import InvalidError, UnsupportedError
from dmaplane.kv._layout import Layout
from dmaplane.kv.engine._engine import Cache, check_cache, check_tokens
from dmaplane.kv.engine._paged import FORMATS, Format
from dmaplane.kv.engine._weights import Shape

OnLayer = Callable[[int], None]
_SAMPLE: Final = 1024
_CONFIG_BYTES_MAX: Final = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class TransformersSettings:
    """What load("transformers", ...) takes.

    With `checkpoint`, a local folder, the fields from `seed` on are the checkpoint's own. Without,
    a model is made of them: untied, with a spread that makes greedy tokens differ.
    """

    checkpoint: str | None = None
    dtype: Format = "float32"
    """Of weights and cache."""
    block_tokens: int = 16
    order: Literal["NHD", "HND"] = "NHD"
    seed: int = 1
    model_type: str = "llama"
    layers: int = 8
    hidden: int = 512
    heads: int = 8
    kv_heads: int = 4
    head_size: int = 64
    inner: int = 1408
    vocabulary: int = 4096
    spread: float | None = None
    """As of Shape."""
    tokens_max: int = 8192
    """Positions the model is made for."""

    def __post_init__(self) -> None:
        if self.dtype not in FORMATS:
            raise InvalidError("dtype", f"{self.dtype!r}", fix=f"one of {', '.join(FORMATS)}")
        if not 1 <= self.tokens_max <= 1 << 24:
            raise InvalidError("tokens_max", f"{self.tokens_max}", fix=f"1 .. {1 << 24}")
        if not 0 <= self.seed < 1 << 63:
            raise InvalidError("seed", f"{self.seed}", fix="0 .. 2**63 - 1")
        _ = self.shape  # checks the sizes

    @property
    def shape(self) -> Shape:
        """The sizes of a seeded model; InvalidError names the first that is wrong."""
        return Shape(
            layers=self.layers,
            hidden=self.hidden,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_size=self.head_size,
            inner=self.inner,
            vocabulary=self.vocabulary,
            spread=self.spread,
        )


class PagedLayer:
    """What is ours in a layer of the library's cache: its numbers are in blocks of a pool.

    The rest, and the type the library knows it by, comes from the library's DynamicLayer: see
    _layer_class(). One lives for one call of the model.
    """

    is_sliding: Final = False

    def __init__(self, number: int, work: _Work) -> None:
        super().__init__()
        self.number = number
        self._work = work
        self._tokens = work.first_token

    def update(
        self, key_states: Any, value_states: Any, *args: Any, **options: Any
    ) -> tuple[Any, Any]:
        """Takes K and V [1, heads, new tokens, size]; gives those of all tokens so far."""
        work = self._work
        if work.before is not None:
            work.before(self.number)
        layer = work.cache.pool.tensor(self.number)
        rows = layer if work.cache.pool.layout.order == "NHD" else layer.transpose(2, 3)
        halves = rows[:, 0], rows[:, 1]
        for half, new in zip(halves, (key_states, value_states), strict=True):
            half[work.block, work.slot] = new[0].transpose(0, 1).to(half.dtype)
        self._tokens = work.end
        if work.after is not None:
            work.after(self.number)
        if work.first_token == 0:
            return key_states, value_states  # the very numbers that were just written
        return work.row(halves[0]), work.row(halves[1])

    def get_seq_length(self, *args: Any) -> int:
        """How many tokens it has."""
        return self._tokens

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        """How many keys update() will give, and that they begin at token 0."""
        # Older releases give the positions of the queries, newer ones how many there are.
        count = query_length if isinstance(query_length, int) else len(query_length)
        return self._work.first_token + count, 0


class _Work:
    """One call of the model: which tokens, in which blocks, and who wants to know."""

    def __init__(
        self,
        cache: Cache,
        *,
        first_token: int,
        count: int,
        before: OnLayer | None,
        after: OnLayer | None,
    ) -> None:
        import torch

        self.cache = cache
        self.first_token = first_token
        self.end = first_token + count
        self.before = before
        self.after = after
        layout = cache.pool.layout
        blocks = torch.from_numpy(np.array(cache.lease.blocks))
        positions = torch.arange(first_token, self.end)
        self.block = blocks[positions // layout.block_tokens]
        self.slot = positions % layout.block_tokens
        self._blocks = blocks[: layout.blocks_for(self.end)]

    def row(self, half: Any) -> Any:
        """K or V of all tokens, [1, heads, tokens, size]: the copy that copied() tells of."""
        return half[self._blocks].flatten(0, 1)[: self.end].transpose(0, 1)[None]

    def library_cache(self) -> Any:
        """What the model takes as past_key_values."""
        from transformers.cache_utils import Cache as LibraryCache

        made, count = _layer_class(), self.cache.pool.layout.layers
        return LibraryCache(layers=[made(number, self) for number in range(count)])


@functools.cache
def _layer_class() -> Any:
    """PagedLayer as a layer of the library, which is not imported before this is asked for."""
    from transformers.cache_utils import DynamicLayer

    return type("PagedDynamicLayer", (PagedLayer, DynamicLayer), {})


class TransformersEngine:
    """Engine "transformers". Holds the model, in evaluation mode; safe for several threads."""

    name: Final = "transformers"

    def __init__(self, settings: TransformersSettings | None = None) -> None:
        self.settings = settings or TransformersSettings()
        self.model, origin = _model_of(self.settings)
        self.vocabulary = int(self.model.get_input_embeddings().weight.shape[0])
        forward = inspect.signature(self.model.forward).parameters
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in forward else {}
        layers, heads, size = _cache_sides(self.model)
        self.layout = Layout(
            layers=layers,
            kv_heads=heads,
            head_size=size,
            dtype=self.settings.dtype,
            block_tokens=self.settings.block_tokens,
            order=self.settings.order,
            model=f"{self.model.config.model_type[:24]}:{_digest(self.model, origin)}",
        )

    def copied(self) -> str:
        """All of K and V, each token."""
        return (
            "K and V of the request, gathered from their blocks for each token: transformers wants "
            "them in one row (its own DynamicCache makes a new row for each token too)"
        )

    def prefill(
        self,
        tokens: NDArray[np.int64],
        cache: Cache,
        on_layer: OnLayer | None = None,
        *,
        first_token: int = 0,
    ) -> NDArray[np.float32]:
        """See Engine.prefill()."""
        return self._run(tokens, cache, first_token=first_token, before=None, after=on_layer)

    def decode(
        self,
        token: int,
        position: int,
        cache: Cache,
        before_layer: OnLayer | None = None,
    ) -> NDArray[np.float32]:
        """See Engine.decode()."""
        tokens = np.array([token])
        return self._run(tokens, cache, first_token=position, before=before_layer, after=None)

    def _run(
        self,
        tokens: NDArray[np.int64],
        cache: Cache,
        *,
        first_token: int,
        before: OnLayer | None,
        after: OnLayer | None,
    ) -> NDArray[np.float32]:
        import torch

        check_cache(self.layout, cache)
        given = check_tokens(tokens, cache, first_token=first_token, vocabulary=self.vocabulary)
        work = _Work(cache, first_token=first_token, count=len(given), before=before, after=after)
        with torch.inference_mode():
            answer = self.model(
                input_ids=torch.from_numpy(np.array(given))[None],
                past_key_values=work.library_cache(),
                use_cache=True,
                **self._options,
            )
            logits: NDArray[np.float32] = answer.logits[0, -1].float().numpy()
        cache.lease.check()
        return logits


def _model_of(settings: TransformersSettings) -> tuple[Any, bytes]:
    """The model, and what it was made of: part of its name."""
    try:
        import torch
        import transformers
    except ImportError as reason:
        raise UnsupportedError(
            "the transformers engine",
            "torch and transformers >= 4.56: pip install dmaplane[transformers]",
        ) from reason

    wanted = getattr(torch, settings.dtype)
    if settings.checkpoint is not None:
        folder = pathlib.Path(settings.checkpoint)
        config = folder / "config.json"
        if not config.is_file():
            raise InvalidError(
                "checkpoint", f"{folder} has no config.json", fix="a folder of save_pretrained()"
            )
        with config.open("rb") as file:
            origin = file.read(_CONFIG_BYTES_MAX)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    else:
        # Where its cache lies is not what it is.
        same = dataclasses.replace(
            settings, block_tokens=16, order="NHD", spread=settings.shape.deviation
        )
        origin = repr(dataclasses.astuple(same)).encode()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            model = _seeded(settings)
    return model.to(wanted).eval(), origin


def _seeded(settings: TransformersSettings) -> Any:
    """A new model of these sizes; its numbers come from PyTorch's generator as it stands."""
    import transformers

    try:
        config = transformers.AutoConfig.for_model(
            settings.model_type,
            num_hidden_layers=settings.layers,
            hidden_size=settings.hidden,
            num_attention_heads=settings.heads,
            num_key_value_heads=settings.kv_heads,
            head_dim=settings.head_size,
            intermediate_size=settings.inner,
            vocab_size=settings.vocabulary,
            max_position_embeddings=settings.tokens_max,
            initializer_range=settings.shape.deviation,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
        return transformers.AutoModelForCausalLM.from_config(config)
    except ValueError as reason:
        raise InvalidError(
            "model_type",
            f"transformers {transformers.__version__} makes no causal language model of "
            f"{settings.model_type!r:.60} and these sizes",
            fix='e.g. "llama", "mistral", "qwen3"',
        ) from reason


def _cache_sides(model: Any) -> tuple[int, int, int]:
    """Layers, heads and head size of the model's cache, asked of the model with one token."""
    import torch
    from transformers.cache_utils import DynamicCache

    refusal = UnsupportedError(
        f"a {model.config.model_type} model in blocks", "K and V of one shape in every layer"
    )
    try:
        with torch.inference_mode():
            answer = model(
                input_ids=torch.zeros((1, 1), dtype=torch.int64),
                past_key_values=DynamicCache(config=model.config),
                use_cache=True,
            )
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as reason:
        raise refusal from reason
    layers = getattr(getattr(answer, "past_key_values", None), "layers", ())
    halves = [getattr(one, half, None) for one in layers for half in ("keys", "values")]
    shapes = {tuple(getattr(half, "shape", ())) for half in halves}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 4:
        raise refusal
    return len(layers), int(shape[1]), int(shape[3])


def _digest(model: Any, origin: bytes) -> str:
    """Names these weights: what they were made of, and of each up to 1024 numbers across it all."""
    digest = hashlib.sha256(origin)
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        some = flat[:: max(1, len(flat) // _SAMPLE)].float().numpy()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(np.ascontiguousarray(some, dtype="<f4").tobytes())
    return digest.hexdigest()[:32]


def engine_of(**settings: Any) -> TransformersEngine:
    """load("transformers", **settings): the fields of TransformersSettings."""
    known = [field.name for field in dataclasses.fields(TransformersSettings)]
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise InvalidError(unknown[0], "no such setting", fix=", ".join(known))
    return TransformersEngine(TransformersSettings(**settings))

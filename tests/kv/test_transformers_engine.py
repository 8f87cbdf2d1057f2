# SPDX-License-Identifier: MIT
"""The transformers engine: the library's own tokens, out of blocks of a pool.

The oracle is the library with a cache of its own. The last test turns it on the numpy engine:
the same weights in the library's Llama have to say the same.
"""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import numpy as np
import pytest
from engines import (
    FORMATS,
    PROMPT,
    SMALL,
    TOKENS,
    cache_of,
    continued,
    generated,
    made,
    moved,
    needs_transformers,
)
from numpy.typing import NDArray

import dmaplane
from dmaplane.kv.engine import load
from dmaplane.kv.engine._numpy import NumpyEngine


@pytest.fixture
def torch() -> Any:
    """PyTorch, where the library is there too."""
    needs_transformers()
    import torch

    return torch


def by_the_library(torch: Any, model: Any, prompt: NDArray[Any] = PROMPT) -> list[int]:
    """Greedy tokens of @model with a cache of its own."""
    from transformers.cache_utils import DynamicCache

    cache, found, tokens = DynamicCache(config=model.config), [], prompt
    with torch.inference_mode():
        for _ in range(TOKENS):
            answer = model(torch.from_numpy(np.array(tokens))[None], past_key_values=cache)
            found.append(int(answer.logits[0, -1].argmax()))
            tokens = np.array(found[-1:])
    return found


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("order", ["NHD", "HND"])
def test_tokens_are_those_of_the_library(
    torch: Any, plane: dmaplane.Plane, dtype: str, order: str
) -> None:
    engine: Any = made("transformers", dtype=dtype, order=order)
    with cache_of(plane, engine.layout, fill=0xFF) as cache:
        found = generated(engine, cache)
    assert found == by_the_library(torch, engine.model)
    assert len(set(found)) >= 20


@pytest.mark.parametrize("model_type", ["mistral", "qwen3", "gemma2"])
def test_other_architectures_need_no_code(
    torch: Any, plane: dmaplane.Plane, model_type: str
) -> None:
    engine: Any = made("transformers", model_type=model_type)
    with cache_of(plane, engine.layout) as cache:
        assert generated(engine, cache) == by_the_library(torch, engine.model)


def test_a_model_without_blocks_of_keys_and_values_is_refused(torch: Any) -> None:
    with pytest.raises(dmaplane.UnsupportedError, match="deepseek_v3 model in blocks"):
        made("transformers", model_type="deepseek_v3")
    with pytest.raises(dmaplane.InvalidError) as told:
        made("transformers", model_type="t5")
    assert told.value.field == "model_type"


def test_a_checkpoint_with_a_sliding_window_gives_the_tokens_of_the_library(
    torch: Any, plane: dmaplane.Plane, tmp_path: pathlib.Path
) -> None:
    seeded: Any = made("transformers", model_type="mistral")
    seeded.model.config.sliding_window = 24
    seeded.model.save_pretrained(tmp_path / "model")
    engine: Any = load("transformers", checkpoint=str(tmp_path / "model"))
    again = load("transformers", checkpoint=str(tmp_path / "model"))
    assert engine.layout == again.layout
    assert engine.layout.layers == SMALL["layers"]
    with cache_of(plane, engine.layout) as cache:
        found = generated(engine, cache)
    assert found == by_the_library(torch, engine.model)
    with cache_of(plane, seeded.layout) as cache:
        seeded.model.config.sliding_window = None
        assert found != generated(seeded, cache), "the window has to make a difference"


def test_names_of_weights_differ_when_one_number_does(torch: Any, tmp_path: pathlib.Path) -> None:
    seeded: Any = made("transformers")
    names = {seeded.layout.model, made("transformers", seed=2).layout.model}
    for change in (0, 1):
        with torch.no_grad():
            seeded.model.model.norm.weight[5] += change
        seeded.model.save_pretrained(tmp_path / str(change))
        names.add(load("transformers", checkpoint=str(tmp_path / str(change))).layout.model)
    assert len(names) == 4


def test_a_prompt_in_pieces_is_a_whole_prompt(torch: Any, plane: dmaplane.Plane) -> None:
    engine = made("transformers")
    with cache_of(plane, engine.layout) as cache:
        right = engine.prefill(PROMPT, cache)
    with cache_of(plane, engine.layout) as cache:
        for first, end in ((0, 1), (1, 30), (30, 32), (32, 75)):
            found = engine.prefill(PROMPT[first:end], cache, first_token=first)
    np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_cache_moved_by_a_plan_gives_the_same_tokens(
    torch: Any, plane: dmaplane.Plane, dtype: str
) -> None:
    engine = made("transformers", dtype=dtype)
    there = made("transformers", dtype=dtype, block_tokens=64, order="HND")
    with cache_of(plane, engine.layout) as one, cache_of(plane, there.layout) as other:
        right = generated(engine, one)
        moved(one, other, len(PROMPT) - 1)
        assert continued(there, other) == right


def test_the_weights_of_the_numpy_engine_say_the_same_in_the_library(
    torch: Any, plane: dmaplane.Plane, tmp_path: pathlib.Path
) -> None:
    """An oracle that nobody here wrote: greedy tokens of transformers' LlamaForCausalLM."""
    engine = made("numpy")
    assert isinstance(engine, NumpyEngine)
    model = as_library_model(torch, engine)
    with cache_of(plane, engine.layout) as cache:
        found = generated(engine, cache)
        logits = engine.prefill(PROMPT, cache)
    assert found == by_the_library(torch, model)
    with torch.inference_mode():
        right = model(torch.from_numpy(PROMPT)[None]).logits[0, -1].numpy()
    np.testing.assert_allclose(logits, right, rtol=1e-3, atol=1e-3)


def as_library_model(torch: Any, engine: NumpyEngine) -> Any:
    import transformers

    shape = engine.shape
    config = transformers.LlamaConfig(
        num_hidden_layers=shape.layers,
        hidden_size=shape.hidden,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_size,
        intermediate_size=shape.inner,
        vocab_size=shape.vocabulary,
        rms_norm_eps=shape.epsilon,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    names = {
        "attention_norm": "input_layernorm",
        "query": "self_attn.q_proj",
        "key": "self_attn.k_proj",
        "value": "self_attn.v_proj",
        "output": "self_attn.o_proj",
        "feed_norm": "post_attention_layernorm",
        "gate": "mlp.gate_proj",
        "up": "mlp.up_proj",
        "down": "mlp.down_proj",
    }
    weights = engine.weights
    state = {
        f"model.layers.{number}.{theirs}.weight": getattr(layer, ours)
        for number, layer in enumerate(weights.layers)
        for ours, theirs in names.items()
    }
    state["model.embed_tokens.weight"] = weights.embedding
    state["model.norm.weight"] = weights.norm
    state["lm_head.weight"] = weights.head
    model = transformers.LlamaForCausalLM(config)
    model.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in state.items()})
    return model.eval()


# ---- where the library is not needed


def test_without_the_library_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(dmaplane.UnsupportedError, match=r"pip install dmaplane\[transformers\]"):
        load("transformers")


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"layer": 4}, "layer"),
        ({"layers": 0}, "layers"),
        ({"dtype": "int8"}, "dtype"),
        ({"seed": -1}, "seed"),
        ({"tokens_max": 0}, "tokens_max"),
    ],
)
def test_a_setting_that_cannot_be_is_named(wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(dmaplane.InvalidError) as told:
        load("transformers", **{**SMALL, **wrong})
    assert told.value.field == field


def test_a_checkpoint_that_is_not_there_is_named(torch: Any, tmp_path: pathlib.Path) -> None:
    with pytest.raises(dmaplane.InvalidError, match=r"config\.json") as told:
        load("transformers", checkpoint=str(tmp_path))
    assert told.value.field == "checkpoint"

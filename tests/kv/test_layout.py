# SPDX-License-Identifier: MIT
"""Layouts: shapes and strides against real arrays, the wire form against anything at all."""

from __future__ import annotations

import dataclasses
import random

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import assume, given, settings

from dmaplane import InvalidError, LayoutError
from dmaplane.kv import LAYOUT_BYTES, Layout

BASE = Layout(
    layers=4, kv_heads=8, head_size=16, dtype="float16", block_tokens=32, model="some model"
)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    kind = draw(st.sampled_from(["gqa", "mla"]))
    kv_heads = 1 if kind == "mla" else draw(st.integers(1, 1024))
    degrees = [n for n in range(1, 1025) if kv_heads % n == 0 or n % kv_heads == 0]
    degree = draw(st.sampled_from(degrees))
    return Layout(
        layers=draw(st.integers(1, 1024)),
        kv_heads=kv_heads,
        head_size=draw(st.integers(1, 65536)),
        dtype=draw(st.sampled_from(["float32", "float16", "bfloat16", "float8_e4m3fn", "int8"])),
        block_tokens=draw(st.integers(1, 4096)),
        order=draw(st.sampled_from(["NHD", "HND"])),
        kind=kind,
        rank=draw(st.integers(0, degree - 1)),
        degree=degree,
        model=draw(
            st.text(max_size=64).filter(lambda t: t.isprintable() and len(t.encode()) <= 64)
        ),
    )


# ---- what is in it


@pytest.mark.parametrize("order", ["NHD", "HND"])
@pytest.mark.parametrize("kind", ["gqa", "mla"])
@pytest.mark.parametrize(
    ("dtype", "numpy_dtype"),
    [
        ("float32", "float32"),
        ("float16", "float16"),
        ("bfloat16", "uint16"),
        ("float8_e4m3fn", "uint8"),
        ("int8", "int8"),
    ],
)
def test_strides_and_lengths_are_those_of_an_array(
    order: str, kind: str, dtype: str, numpy_dtype: str
) -> None:
    layout = Layout(
        layers=3,
        kv_heads=1 if kind == "mla" else 6,
        head_size=10,
        dtype=dtype,
        block_tokens=7,
        order=order,
        kind=kind,
        rank=1,
        degree=2,
    )
    assert layout.numpy_dtype == np.dtype(numpy_dtype)
    block = np.zeros(layout.block_shape, dtype=layout.numpy_dtype)
    assert block.nbytes == layout.block_bytes == 7 * layout.token_bytes
    assert block.itemsize == layout.item_bytes
    names = (
        ("token", "element")
        if kind == "mla"
        else ("kv", "token", "head", "element")
        if order == "NHD"
        else ("kv", "head", "token", "element")
    )
    strides = layout.strides()
    assert tuple(strides[name] for name in names) == block.strides
    assert {name: 0 for name in strides if name not in names} == {
        name: value for name, value in strides.items() if name not in names
    }
    assert layout.layer_bytes(5) == 5 * block.nbytes
    assert layout.pool_bytes(5) == 15 * block.nbytes


def test_blocks_for_is_the_least_number_that_holds_them() -> None:
    assert [BASE.blocks_for(tokens) for tokens in (0, 1, 32, 33, 64)] == [0, 1, 1, 2, 2]
    with pytest.raises(InvalidError):
        BASE.blocks_for(-1)


def test_a_pool_beyond_63_bits_is_refused() -> None:
    most = ((1 << 63) - 1) // (BASE.layers * BASE.block_bytes)
    assert BASE.pool_bytes(most) < 1 << 63
    for blocks in (most + 1, -1):
        with pytest.raises(InvalidError) as caught:
            BASE.layer_bytes(blocks)
        assert caught.value.field == "blocks"


@given(kv_heads=st.integers(1, 64), degree=st.integers(1, 64))
def test_every_head_is_on_some_rank_and_on_as_many_as_every_other(
    kv_heads: int, degree: int
) -> None:
    assume(kv_heads % degree == 0 or degree % kv_heads == 0)
    base = dataclasses.replace(BASE, kv_heads=kv_heads)
    held = np.zeros(kv_heads, dtype=int)
    for rank in range(degree):
        layout = base.for_rank(rank, degree)
        assert layout.first_head + layout.heads <= kv_heads
        held[layout.first_head : layout.first_head + layout.heads] += 1
    assert set(held.tolist()) == {max(1, degree // kv_heads)}


def test_ranks_beyond_the_heads_hold_the_same_head_in_neighbours() -> None:
    base = dataclasses.replace(BASE, kv_heads=2)
    assert [base.for_rank(rank, 8).first_head for rank in range(8)] == [0] * 4 + [1] * 4


def test_presets_have_the_sizes_their_models_are_known_for() -> None:
    # bytes a token, all layers, bf16: 2 x 32 x 8 x 128 x 2, 2 x 80 x 8 x 128 x 2, 61 x 576 x 2
    known = {"llama-3-8b": 131072, "llama-3-70b": 327680, "deepseek-v3": 70272}
    for name, length in known.items():
        layout = Layout.of(name)
        assert layout.layers * layout.token_bytes == length
        assert layout.model == name
    assert Layout.of("llama-3-70b", rank=3, degree=8).heads == 1
    with pytest.raises(InvalidError, match="llama-3-8b"):
        Layout.of("gpt-2")


# ---- what is refused


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layers", 0),
        ("layers", 1025),
        ("layers", 4.0),
        ("layers", True),
        ("kv_heads", 0),
        ("kv_heads", 1025),
        ("head_size", 0),
        ("head_size", 65537),
        ("block_tokens", 0),
        ("block_tokens", 4097),
        ("degree", 0),
        ("degree", 1025),
        ("degree", 3),
        ("degree", 12),
        ("rank", -1),
        ("rank", 1),
        ("dtype", "float64"),
        ("dtype", None),
        ("order", "nhd"),
        ("order", []),
        ("kind", "mha"),
        ("model", "x" * 65),
        ("model", "\u00e4" * 33),
        ("model", "two\nlines"),
        ("model", "\ud800"),
        ("model", b"bytes"),
    ],
)
def test_a_wrong_field_is_named(field: str, value: object) -> None:
    with pytest.raises(InvalidError) as caught:
        dataclasses.replace(BASE, **{field: value})
    assert caught.value.field == field
    assert caught.value.fix


def test_mla_has_one_vector_a_token() -> None:
    with pytest.raises(InvalidError) as caught:
        dataclasses.replace(BASE, kind="mla")
    assert caught.value.field == "kv_heads"


# ---- what peers compare

OTHERS = [
    {"layers": 5},
    {"kv_heads": 16},
    {"head_size": 17},
    {"dtype": "bfloat16"},
    {"block_tokens": 33},
    {"order": "HND"},
    {"rank": 1, "degree": 2},
    {"degree": 2},
    {"model": "some mode"},
]


@pytest.mark.parametrize("change", OTHERS, ids=lambda change: "+".join(change))
def test_a_fingerprint_differs_when_any_field_does(change: dict[str, object]) -> None:
    other = dataclasses.replace(BASE, **change)
    assert other.fingerprint != BASE.fingerprint
    assert BASE.difference(other) == tuple(
        (name, getattr(BASE, name), change[name])
        for name in (each.name for each in dataclasses.fields(BASE))
        if name in change
    )


def test_a_fingerprint_differs_when_only_the_kind_does() -> None:
    one = dataclasses.replace(BASE, kv_heads=1)
    other = dataclasses.replace(one, kind="mla")
    assert other.fingerprint != one.fingerprint
    assert one.difference(other) == (("kind", "gqa", "mla"),)


@given(one=layouts(), other=layouts())
def test_fingerprints_are_equal_exactly_when_layouts_are(one: Layout, other: Layout) -> None:
    assert (one.fingerprint == other.fingerprint) == (one == other)
    assert (one.difference(other) == ()) == (one == other)
    assert dataclasses.replace(one).fingerprint == one.fingerprint


@given(layout=layouts())
def test_the_wire_form_comes_back_as_the_same_layout(layout: Layout) -> None:
    data = layout.encode()
    assert len(data) == LAYOUT_BYTES
    assert Layout.decode(data) == layout
    assert Layout.decode(memoryview(bytearray(data))) == layout


def test_the_wire_form_is_what_it_was() -> None:
    """Frozen: peers of other versions of this library read it."""
    layout = Layout(
        layers=1,
        kv_heads=2,
        head_size=3,
        dtype="bfloat16",
        block_tokens=4,
        order="HND",
        rank=1,
        degree=2,
        model="m",
    )
    numbers = "010000000200000003000000040000000100000002000000"
    assert layout.encode().hex() == ("444d4b5601008000" + numbers + "02010001" + "6d").ljust(
        256, "0"
    )


def decoded(data: bytes) -> Layout | None:
    """The layout, or None where it is refused; anything else raised fails the test."""
    try:
        return Layout.decode(data)
    except LayoutError:
        return None


def test_every_truncation_is_refused() -> None:
    data = BASE.encode()
    for length in range(LAYOUT_BYTES):
        assert decoded(data[:length]) is None
    assert decoded(data + b"\0") is None
    assert decoded(b"") is None


@pytest.mark.parametrize(
    ("position", "value", "words"),
    [
        (0, 0, "no layout"),
        (4, 2, "version 2, 128 bytes"),
        (6, 64, "version 1, 64 bytes"),
        (8, 0, "layers: 0"),
        (32, 9, "dtype 9 is unknown"),
        (33, 9, "order 9 is unknown"),
        (34, 9, "kind 9 is unknown"),
        (35, 65, "65 bytes; 64 at most"),
        (36, 255, "not UTF-8"),
        (127, 1, "not zero"),
    ],
)
def test_a_refusal_says_what_is_wrong(position: int, value: int, words: str) -> None:
    data = bytearray(BASE.encode())
    data[position] = value
    with pytest.raises(LayoutError, match=words):
        Layout.decode(data)


def test_every_flipped_bit_is_another_layout_or_refused() -> None:
    data = BASE.encode()
    for bit in range(8 * LAYOUT_BYTES):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        layout = decoded(bytes(changed))
        assert layout is None or (layout != BASE and layout.encode() == changed)


@given(data=st.binary(max_size=2 * LAYOUT_BYTES))
def test_random_bytes_are_refused(data: bytes) -> None:
    assert decoded(data) is None or Layout.decode(data).encode() == data


@settings(max_examples=300)
@given(
    layout=layouts(),
    position=st.integers(8, LAYOUT_BYTES - 1),
    replacement=st.binary(min_size=1, max_size=24),
)
def test_what_is_decoded_has_that_wire_form_and_no_other(
    layout: Layout, position: int, replacement: bytes
) -> None:
    data = bytearray(layout.encode())
    data[position : position + len(replacement)] = replacement
    got = decoded(bytes(data[:LAYOUT_BYTES]))
    if got is not None:
        assert got.encode() == bytes(data[:LAYOUT_BYTES])


def test_decoding_noise_behind_a_good_header_never_surprises() -> None:
    dice = random.Random(6)
    good = BASE.encode()
    accepted = 0
    for _ in range(5000):
        data = bytearray(good)
        for _ in range(dice.randrange(1, 5)):
            data[dice.randrange(8, LAYOUT_BYTES)] = dice.choice((0, 1, 2, 4, 255))
        accepted += decoded(bytes(data)) is not None
    assert 0 < accepted < 5000

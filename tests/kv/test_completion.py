# SPDX-License-Identifier: MIT
"""Completions, orders and reports: what is believed of what somebody else sent."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("h11", reason="missing-package: h11")

import dmaplane
from dmaplane.kv.serve._completion import DEFAULT_TOKENS, Bounds, parse
from dmaplane.kv.serve._http import HttpError
from dmaplane.kv.serve._order import (
    TOKENS_MAX,
    Report,
    decode_order,
    encode_order,
)
from dmaplane.kv.serve._text import TextStream, tokens_of

BOUNDS = Bounds(model="numpy", vocabulary=1000, context_tokens=100)


def asked(**fields: Any) -> Any:
    return parse(json.dumps({"prompt": [1, 2, 3], **fields}).encode(), BOUNDS)


def refused(body: bytes) -> HttpError:
    with pytest.raises(HttpError) as caught:
        parse(body, BOUNDS)
    return caught.value


def test_the_least_request_has_the_defaults() -> None:
    wanted = asked()
    assert wanted.prompt.tolist() == [1, 2, 3]
    assert (wanted.max_tokens, wanted.stream) == (DEFAULT_TOKENS, False)


def test_text_is_a_token_a_byte() -> None:
    assert asked(prompt="hé").prompt.tolist() == [0x68, 0xC3, 0xA9]


def test_fields_that_change_nothing_pass() -> None:
    wanted = asked(
        model="numpy", temperature=0, top_p=1.0, n=1, stop=None, logprobs=None, echo=False,
        seed=7, user="me", stream_options={"include_usage": True}, stream=True,
    )  # fmt: skip
    assert wanted.stream


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (b"", 400, None),
        (b"{", 400, None),
        (b"\xff\xfe", 400, None),
        (b"[" * 100_000, 400, None),
        (b"[1]", 400, None),
        (b"{}", 400, "prompt"),
        (b'{"prompt": ""}', 400, "prompt"),
        (b'{"prompt": []}', 400, "prompt"),
        (b'{"prompt": [1.5]}', 400, "prompt"),
        (b'{"prompt": [true]}', 400, "prompt"),
        (b'{"prompt": ["a"]}', 400, "prompt"),
        (b'{"prompt": [[1]]}', 400, "prompt"),
        (b'{"prompt": [-1]}', 400, "prompt"),
        (b'{"prompt": [1000]}', 400, "prompt"),
        (b'{"prompt": [%d]}' % 10**30, 400, "prompt"),
        (b'{"prompt": "\\ud800"}', 400, "prompt"),
        (b'{"prompt": "%s"}' % (b"x" * 100), 400, "prompt"),
        (b'{"prompt": "x", "max_tokens": 0}', 400, "max_tokens"),
        (b'{"prompt": "x", "max_tokens": true}', 400, "max_tokens"),
        (b'{"prompt": "x", "max_tokens": 1e3}', 400, "max_tokens"),
        (b'{"prompt": "x", "max_tokens": 100}', 400, "prompt"),
        (b'{"prompt": "x", "temperature": 0.7}', 400, "temperature"),
        (b'{"prompt": "x", "temperature": false}', 400, "temperature"),
        (b'{"prompt": "x", "n": 2}', 400, "n"),
        (b'{"prompt": "x", "stop": ["a"]}', 400, "stop"),
        (b'{"prompt": "x", "logprobs": 1}', 400, "logprobs"),
        (b'{"prompt": "x", "stream": "yes"}', 400, "stream"),
        (b'{"prompt": "x", "nonsense": 1}', 400, "nonsense"),
        (b'{"prompt": "x", "model": "gpt"}', 404, "model"),
        (b'{"prompt": "x", "model": 1}', 404, "model"),
    ],
)
def test_what_is_wrong_is_named(body: bytes, status: int, param: str | None) -> None:
    refusal = refused(body)
    assert refusal.status == status
    assert refusal.param == param
    assert refusal.body()["error"]["type"] == "invalid_request_error"


def test_a_context_that_is_just_enough_passes() -> None:
    assert len(asked(prompt=[5] * 99, max_tokens=1).prompt) == 99


@given(st.binary(max_size=200))
def test_any_bytes_are_a_completion_or_an_http_error(body: bytes) -> None:
    status = 0
    try:
        parse(body, BOUNDS)
    except HttpError as refusal:
        status = refusal.status
    assert status in (0, 400, 404)


@given(st.text(max_size=60))
def test_text_comes_back_whole_from_its_tokens(text: str) -> None:
    try:
        tokens = tokens_of(text, vocabulary=256)
    except dmaplane.InvalidError:
        return  # half of a surrogate pair
    stream = TextStream()
    assert "".join([*map(stream.add, tokens.tolist()), stream.end()]) == text


def test_a_token_that_is_no_byte_shows_as_such_and_ends_a_character() -> None:
    stream = TextStream()
    assert [stream.add(0xC3), stream.add(500), stream.add(0x41)] == ["", "\ufffd\ufffd", "A"]


# ---- orders and reports


@given(st.lists(st.integers(0, 999), min_size=1, max_size=50))
def test_an_order_comes_back(tokens: list[int]) -> None:
    data = encode_order(np.array(tokens, dtype=np.int64))
    assert decode_order(data, vocabulary=1000).tolist() == tokens


def test_the_longest_order_fits_into_an_ask() -> None:
    assert len(encode_order(np.zeros(TOKENS_MAX, dtype=np.int64))) <= 64 << 10
    for count in (0, TOKENS_MAX + 1):
        with pytest.raises(dmaplane.InvalidError):
            encode_order(np.zeros(count, dtype=np.int64))


def test_every_truncation_of_an_order_is_refused() -> None:
    data = encode_order(np.arange(9))
    for length in range(len(data)):
        with pytest.raises(dmaplane.ProtocolError):
            decode_order(data[:length], vocabulary=1000)
    with pytest.raises(dmaplane.ProtocolError, match="vocabulary"):
        decode_order(data, vocabulary=8)


@given(st.binary(max_size=100))
def test_any_bytes_are_an_order_or_a_protocol_error(data: bytes) -> None:
    try:
        tokens = decode_order(data, vocabulary=1000)
    except dmaplane.ProtocolError:
        return
    assert 0 < len(tokens) <= 25


REPORT = Report(
    request="a", queued_seconds=0.5, prefill_seconds=1.25, sent_seconds=1.5, stalls=3, layers=(1, 2)
)


def test_a_report_comes_back() -> None:
    assert Report.decode(REPORT.encode()) == REPORT


def test_a_report_of_a_long_error_is_cut_and_still_one() -> None:
    told = Report(request="a", error="x" * 5000)
    assert Report.decode(told.encode()).error == "x" * 1000


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("request", 1),
        ("request", "x" * 2000),
        ("error", None),
        ("clock", 5),
        ("began", -1),
        ("prefill_seconds", "1"),
        ("prefill_seconds", -1),
        ("prefill_seconds", float("nan")),
        ("prefill_seconds", 1e300),
        ("stalls", True),
        ("layers", 1),
        ("layers", [1] * 1025),
        ("layers", ["a"]),
        ("more", 1),
    ],
)
def test_a_report_with_something_else_in_it_is_refused(field: str, value: object) -> None:
    fields = json.loads(REPORT.encode())
    fields[field] = value
    with pytest.raises(dmaplane.ProtocolError):
        Report.decode(json.dumps(fields).encode())


@given(st.binary(max_size=100))
def test_any_bytes_are_a_report_or_a_protocol_error(data: bytes) -> None:
    with pytest.raises(dmaplane.ProtocolError):
        Report.decode(data)

# SPDX-License-Identifier: MIT
"""What is said between sender and receiver: every byte of it bounded, none of it trusted."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dmaplane
from dmaplane.kv import Layout, compile_plan
from dmaplane.kv import _pieces as pieces
from dmaplane.kv import _sums as sums
from dmaplane.kv import _wire as wire

TINY = Layout(layers=2, kv_heads=4, head_size=8, dtype="float16", block_tokens=4)
HELLO = wire.Hello(wire.Role.RECEIVER, TINY, 8, 4, TINY.layer_bytes(8), 0, 1 << 20, b"key")
ANNOUNCE = wire.Announce("request", "trace", b"metadata", 40, 2, 3, 4096, 10000, -5, True)


def bodies() -> dict[wire.Kind, bytes]:
    """One good body of every kind."""
    several = np.array([(1, 2), (7, 9)], dtype=wire.SUM)
    return {
        wire.Kind.HELLO: HELLO.encode(),
        wire.Kind.ASK: wire.encode_ask("request", b"payload", np.array([3, 5, 6])),
        wire.Kind.WITHDRAW: wire.encode_ask("request"),
        wire.Kind.ANNOUNCE: ANNOUNCE.encode(),
        wire.Kind.ACCEPT: wire.encode_accept(np.arange(3))[0],
        wire.Kind.REFUSE: wire.Reason("no").encode(),
        wire.Kind.SUMS: several.tobytes(),
        wire.Kind.DONE: b"",
        wire.Kind.ABORT: wire.Reason("no", 7).encode(),
        wire.Kind.ABORTED: wire.Reason("no").encode(),
        wire.Kind.SAY: b"anything",
        wire.Kind.GRANT: wire.encode_grant(1, 2),
        wire.Kind.BYE: b"",
        wire.Kind.GONE: b"",
    }


def decoded(kind: wire.Kind, body: bytes) -> object:
    """Whatever that body says, or ProtocolError."""
    if kind is wire.Kind.HELLO:
        return wire.Hello.decode(body)
    if kind in (wire.Kind.ASK, wire.Kind.WITHDRAW):
        return wire.decode_ask(kind, body)
    if kind is wire.Kind.ANNOUNCE:
        return wire.Announce.decode(body)
    if kind is wire.Kind.ACCEPT:
        return wire.decode_accept(body)
    if kind in (wire.Kind.REFUSE, wire.Kind.ABORT, wire.Kind.ABORTED):
        return wire.Reason.decode(kind, body)
    if kind is wire.Kind.SUMS:
        return wire.decode_sums(body)
    if kind is wire.Kind.GRANT:
        return wire.decode_grant(body)
    return body


def test_every_kind_has_a_body_here() -> None:
    assert set(bodies()) == set(wire.Kind)


@pytest.mark.parametrize("kind", wire.Kind)
def test_what_was_packed_is_what_is_unpacked(kind: wire.Kind) -> None:
    body = bodies()[kind]
    message = wire.unpack(wire.pack(kind, body, tag=7, serial=9))
    assert message == wire.Message(kind, 7, 9, body)


def test_fields_come_back_as_they_were() -> None:
    assert wire.Hello.decode(HELLO.encode()) == HELLO
    assert wire.Announce.decode(ANNOUNCE.encode()) == (ANNOUNCE, 0)
    assert wire.Announce.decode(ANNOUNCE.encode(7)) == (ANNOUNCE, 7)
    asked = wire.encode_ask("r", b"p", np.array([0, 2, wire.BLOCKS_MAX]))
    request, payload, room = wire.decode_ask(wire.Kind.ASK, asked)
    assert (request, payload, room.tolist()) == ("r", b"p", [0, 2, wire.BLOCKS_MAX])
    assert wire.Reason.decode(wire.Kind.ABORT, wire.Reason("why", 3).encode()).chunk == 3


@pytest.mark.parametrize("kind", wire.Kind)
def test_one_flipped_bit_of_a_message_is_never_unseen(kind: wire.Kind) -> None:
    packed = wire.pack(kind, bodies()[kind], tag=1, serial=2)
    for bit in range(8 * len(packed)):
        spoilt = bytearray(packed)
        spoilt[bit // 8] ^= 1 << bit % 8
        with pytest.raises(dmaplane.ProtocolError):
            wire.unpack(bytes(spoilt))


@pytest.mark.parametrize("kind", wire.Kind)
def test_every_truncation_is_refused(kind: wire.Kind) -> None:
    packed = wire.pack(kind, bodies()[kind])
    for length in range(len(packed)):
        with pytest.raises(dmaplane.ProtocolError):
            wire.unpack(packed[:length])


@given(st.sampled_from(wire.Kind), st.binary(max_size=400))
@settings(max_examples=400, deadline=None)
def test_any_bytes_are_a_body_or_a_protocol_error(kind: wire.Kind, body: bytes) -> None:
    try:
        decoded(kind, body)
    except dmaplane.ProtocolError:
        pass


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_body_changed_anywhere_is_a_body_or_a_protocol_error(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from([each for each in wire.Kind if bodies()[each]]))
    body = bytearray(bodies()[kind])
    at = data.draw(st.integers(0, len(body) - 1))
    body[at] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(body)))
    try:
        decoded(kind, bytes(body[:end]))
    except dmaplane.ProtocolError:
        pass


@pytest.mark.parametrize(
    "changed",
    [
        {"tokens": 0},
        {"tokens": wire.TOKENS_MAX + 1},
        {"layer_chunks": 4},
        {"layer_bytes": 0},
        {"chunk_bytes": 1},
        {"chunk_bytes": wire.CHUNK_BYTES_MAX + 1, "layer_chunks": 1},
        {"layers": 1 << 15},
        {"layers": 0},
        {"request": ""},
        {"request": "x" * (wire.REQUEST_BYTES_MAX + 1)},
    ],
)
def test_announce_of_what_cannot_be_is_refused(changed: dict[str, object]) -> None:
    with pytest.raises(dmaplane.ProtocolError):
        wire.Announce.decode(dataclasses.replace(ANNOUNCE, **changed).encode())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changed",
    [
        {"blocks": 0},
        {"transfers": 0},
        {"transfers": wire.TRANSFERS_MAX + 1},
        {"layer_bytes": 1},
        {"key": b""},
        {"key": b"k" * (wire.KEY_BYTES_MAX + 1)},
        {"role": wire.Role.SENDER},
        {"first_byte": 1 << 63},
    ],
)
def test_hello_of_what_cannot_be_is_refused(changed: dict[str, object]) -> None:
    with pytest.raises(dmaplane.ProtocolError):
        wire.Hello.decode(dataclasses.replace(HELLO, **changed).encode())  # type: ignore[arg-type]


def test_blocks_of_any_number_come_in_parts_that_fit() -> None:
    blocks = np.arange(2 * wire.BLOCKS_PER_ACCEPT + 5)
    parts = wire.encode_accept(blocks)
    assert all(len(part) <= wire.BODY_BYTES_MAX for part in parts)
    read = [wire.decode_accept(part) for part in parts]
    assert [first for first, _, _ in read] == [0, 60000, 120000]
    assert (np.concatenate([some for _, _, some in read]) == blocks).all()


def test_largest_ask_is_one_message() -> None:
    room = np.arange(wire.ROOM_BLOCKS_MAX)
    asked = wire.encode_ask("r" * wire.REQUEST_BYTES_MAX, bytes(wire.PAYLOAD_BYTES_MAX), room)
    assert len(wire.pack(wire.Kind.ASK, asked)) <= wire.MESSAGE_BYTES_MAX


@pytest.mark.parametrize("room", [[1, 1], [2, 1], range(wire.ROOM_BLOCKS_MAX + 1)])
def test_room_whose_blocks_do_not_rise_or_are_too_many_is_refused(room: Sequence[int]) -> None:
    asked = wire.encode_ask("r", b"", np.array(room))
    with pytest.raises(dmaplane.ProtocolError):
        wire.decode_ask(wire.Kind.ASK, asked)


def test_tag_and_ordinal_fill_the_immediate_and_come_back() -> None:
    ordinals = np.array([0, 1, wire.CHUNKS_MAX - 1])
    for tag in (0, 1, wire.TAGS_MAX - 1):
        tags, read = wire.tags_and_ordinals(
            np.array([wire.immediate_of(tag, each) for each in ordinals.tolist()])
        )
        assert (tags == tag).all()
        assert (read == ordinals).all()


def test_reason_of_a_peer_is_short_and_can_be_shown() -> None:
    told = wire.Reason("a\nb\x00c" + "é" * 2000).encode()
    reason = wire.Reason.decode(wire.Kind.ABORT, told)
    assert reason.cause.isprintable()
    assert len(reason.cause.encode()) <= wire.REASON_BYTES_MAX


# ---- sums


@given(st.lists(st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=5), min_size=1))
@settings(max_examples=100, deadline=None)
def test_sum_of_runs_is_the_sum_of_the_whole(groups: list[list[bytes]]) -> None:
    runs = [run for group in groups for run in group]
    crcs = np.array([dmaplane.crc32c(run) for run in runs], dtype=np.uint32)
    lengths = np.array([len(run) for run in runs])
    starts = np.cumsum([0] + [len(group) for group in groups[:-1]])
    wanted = [dmaplane.crc32c(b"".join(group)) for group in groups]
    assert sums.combined(crcs, lengths, starts).tolist() == wanted
    memory = np.frombuffer(b"".join(runs), dtype=np.uint8)
    offsets = np.cumsum(lengths) - lengths
    assert sums.of_memory(memory.ctypes.data, offsets, lengths, starts).tolist() == wanted


@pytest.mark.parametrize("length", [1 << 16, (1 << 20) + 1, wire.CHUNK_BYTES_MAX - 1])
def test_sum_goes_on_over_long_runs(length: int) -> None:
    head, tail = b"\x07" * 100, bytes(length)
    crcs = np.array([dmaplane.crc32c(head), dmaplane.crc32c(tail)], dtype=np.uint32)
    found = sums.combined(crcs, np.array([100, length]), np.array([0]))
    assert found.tolist() == [dmaplane.crc32c(tail, dmaplane.crc32c(head))]


# ---- pieces


LAYOUTS = st.builds(
    dataclasses.replace,
    st.just(TINY),
    block_tokens=st.sampled_from([1, 3, 4, 8]),
    order=st.sampled_from(["NHD", "HND"]),
)


@given(
    source=LAYOUTS,
    target=LAYOUTS,
    tokens=st.integers(1, 50),
    chunk_bytes=st.sampled_from([16, 100, 512, 1 << 20]),
    seed=st.integers(0, 9),
)
@settings(max_examples=150, deadline=None)
def test_both_sides_cut_the_same_chunks_of_the_same_bytes(
    source: Layout, target: Layout, tokens: int, chunk_bytes: int, seed: int
) -> None:
    plan = compile_plan(source, target)
    order = np.random.default_rng(seed)
    ours = np.sort(order.permutation(60)[: source.blocks_for(tokens)])
    theirs = np.sort(order.permutation(60)[: target.blocks_for(tokens)])
    direct = pieces.direct(plan, tokens, ours, theirs, chunk_bytes)
    staged = pieces.staged(plan, tokens, theirs, chunk_bytes)
    assert direct.chunks == staged.chunks
    assert direct.total_bytes == staged.total_bytes == pieces.layer_bytes(plan, tokens)
    for one in (direct, staged):
        sizes = np.add.reduceat(one.length, one.starts[:-1])
        assert (sizes[:-1] == chunk_bytes).all()
        assert 0 < sizes[-1] <= chunk_bytes

    def places(one: pieces.Pieces, chunk: int) -> list[int]:
        begin, end = one.starts[chunk : chunk + 2]
        return [
            place
            for far, length in zip(one.far[begin:end], one.length[begin:end], strict=True)
            for place in range(far, far + length)
        ]

    for chunk in range(direct.chunks):
        assert places(direct, chunk) == places(staged, chunk)

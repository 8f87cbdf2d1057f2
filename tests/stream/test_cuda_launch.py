# SPDX-License-Identifier: MIT
"""What a kernel is told copies exactly what was asked, whatever was asked; no GPU, no package."""

from __future__ import annotations

import ctypes
import itertools
import threading
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from dmaplane import (
    DeviceLostError,
    DmaplaneError,
    InvalidError,
    LimitError,
    NotAllowedError,
    UnsupportedError,
)
from dmaplane.stream import Copies
from dmaplane.stream.cuda import _bar
from dmaplane.stream.cuda._bar import _understood, store_fence
from dmaplane.stream.cuda._chunks import (
    CHUNK_MIN,
    FIRST_BYTES,
    chunk_bytes,
    chunks,
    counts,
    packed,
)
from dmaplane.stream.cuda._descriptors import DescriptorRing
from dmaplane.stream.cuda._driver import error_of, is_sticky
from dmaplane.stream.cuda._events import asked, foreign_event, foreign_stream
from dmaplane.stream.cuda._lane import inlined
from dmaplane.stream.cuda._launch import (
    BLOCK_MAX,
    ROWS_END,
    Launch,
    bounded,
    cut,
    cut_at,
    in_pieces,
    launches,
    listed,
)
from dmaplane.stream.cuda._settings import PIECE_MAX, CudaSettings

if TYPE_CHECKING:
    from dmaplane.stream import Direction

SPACE = 1 << 20


def blocks(launch: Launch) -> list[tuple[int, int, int]]:
    """What copy.cu does with it: source, destination and length of each block."""
    told = []
    for block in range(launch.count):
        ends = []
        for base, stride, array in (
            (launch.source, launch.source_stride, launch.sources),
            (launch.destination, launch.destination_stride, launch.destinations),
        ):
            if launch.form == "list" and array is not None:
                ends.append(int(array[block]))
            else:
                ends.append(base + stride * (block if array is None else int(array[block])))
        length = launch.length if launch.lengths is None else int(launch.lengths[block])
        told.append((ends[0], ends[1], length))
    return told


def bytes_of(copies: list[tuple[int, int, int]]) -> dict[int, int]:
    """Which byte goes where; each destination once."""
    told: dict[int, int] = {}
    for source, destination, length in copies:
        for at in range(length):
            assert destination + at not in told
            told[destination + at] = source + at
    return told


def keeps_its_word(launch: Launch) -> None:
    for source, destination, length in blocks(launch):
        assert source % launch.word == destination % launch.word == 0
        assert 0 < length <= launch.length <= BLOCK_MAX
        assert launch.ragged or length % launch.word == 0
    assert launch.rows * launch.count < ROWS_END


LISTS = st.lists(
    st.tuples(st.integers(1, 9000), st.sampled_from([0, 1, 4, 8, 16])), min_size=1, max_size=12
)


@settings(max_examples=60, deadline=None)
@given(lists=LISTS, descriptor_bytes=st.integers(68, 400), uniform=st.booleans())
def test_launches_copy_each_byte_of_a_list_once(
    lists: list[tuple[int, int]], descriptor_bytes: int, uniform: bool
) -> None:
    lengths = np.array([lists[0][0] if uniform else one for one, _ in lists])
    skew = np.array([two for _, two in lists])
    starts = np.arange(len(lists)) * 16384 + skew
    copies = Copies.many(starts[::-1] + (1 << 30), starts + (1 << 20), lengths)
    given_bytes = bytes_of(
        list(
            zip(
                copies.sources.tolist(), copies.destinations.tolist(), lengths.tolist(), strict=True
            )
        )
    )
    told: list[tuple[int, int, int]] = []
    for launch in launches(copies, descriptor_bytes=descriptor_bytes):
        keeps_its_word(launch)
        assert launch.descriptor_bytes <= max(descriptor_bytes, 3 * 16)
        told += blocks(launch)
    assert bytes_of(told) == given_bytes


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 700),
    strides=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    count=st.integers(1, 40),
    descriptor_bytes=st.integers(60, 500),
    seed=st.integers(0, 99),
)
def test_a_grid_stays_a_grid(
    length: int, strides: tuple[int, int], count: int, descriptor_bytes: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    copies = Copies.indexed(
        source=1 << 20,
        destination=1 << 30,
        source_stride=length + strides[0],
        destination_stride=length + strides[1],
        length=length,
        source_index=random.integers(0, 100, count),
        destination_index=random.permutation(100)[:count],
    )
    told: list[tuple[int, int, int]] = []
    for launch in launches(copies, descriptor_bytes=descriptor_bytes):
        assert launch.form == "grid"
        assert all(one is None or one.dtype == np.uint32 for one in launch.arrays)
        keeps_its_word(launch)
        told += blocks(launch)
    lists = zip(copies.sources.tolist(), copies.destinations.tolist(), strict=True)
    assert told == [(source, destination, length) for source, destination in lists]


@settings(max_examples=80, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 5000), min_size=1, max_size=10),
    piece=st.sampled_from([1, 7, 64, 4096]),
    place=st.integers(0, 10_000),
)
def test_cuts_keep_every_byte_and_cross_no_edge(lengths: list[int], piece: int, place: int) -> None:
    array = np.array(lengths, dtype=np.uint64)
    starts = np.cumsum(array) - array
    sources, places = starts + np.uint64(1 << 20), starts + np.uint64(place)
    given_bytes = bytes_of(list(zip(sources.tolist(), places.tolist(), lengths, strict=True)))
    out, to, parts = cut_at(sources, places, array, place=places, piece=piece)
    assert (to // np.uint64(piece) == (to + parts - np.uint64(1)) // np.uint64(piece)).all()
    assert (
        bytes_of(list(zip(out.tolist(), to.tolist(), parts.tolist(), strict=True))) == given_bytes
    )
    out, to, parts = cut(sources, places, array, piece)
    assert int(parts.max()) <= piece
    assert (
        bytes_of(list(zip(out.tolist(), to.tolist(), parts.tolist(), strict=True))) == given_bytes
    )


def test_long_and_short_copies_become_at_most_twice_as_many_pieces() -> None:
    lengths = np.array([1 << 30] + [4096] * 999, dtype=np.uint64)
    starts = np.cumsum(lengths) - lengths + np.uint64(1 << 40)
    made = listed(starts, starts + np.uint64(1 << 40), lengths)
    assert made.count <= 2000
    assert made.length <= 1 << 24


def test_a_launch_of_too_many_rows_becomes_several() -> None:
    count = 1 << 14
    index = np.arange(count)
    block = 1 << 30
    copies = Copies.indexed(
        source=1,
        destination=1 << 45,
        source_stride=block,
        destination_stride=block,
        length=block,
        source_index=index,
        destination_index=index,
    )
    made = list(launches(copies, descriptor_bytes=8 << 20))
    assert sum(one.count for one in made) == count
    assert all(one.rows * one.count < ROWS_END and one.word == 1 for one in made)
    whole = Launch("list", 16, 512, 5_000_000, False)
    assert [one.count for one in bounded(whole, descriptor_bytes=64)] == [5_000_000]


@pytest.mark.parametrize("count", [1, 2, 100, 240])
def test_inlined_descriptors_are_where_the_kernel_looks(count: int) -> None:
    sources = np.random.default_rng(1).integers(1, 1 << 40, count).astype(np.uint64)
    destinations = sources + np.uint64(1 << 41)
    made = inlined(Launch("list", 16, 64, count, False, sources=sources, destinations=destinations))
    room = bytes(made.inlined)
    for place, array in (
        (made.copy.sources, sources),
        (made.copy.destinations, destinations),
    ):
        assert place % 16 == 1
        assert room[place - 1 : place - 1 + array.nbytes] == array.tobytes()
    assert made.copy.lengths == 0
    assert made.copy.count == count


class _Mark:
    """A mark that is reached when somebody waits for it."""

    def __init__(self, order: list[int], number: int) -> None:
        self.order, self.number = order, number

    def reach(self) -> None:
        self.order.append(self.number)


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=40))
def test_the_ring_overwrites_nothing_before_its_mark(sizes: list[int]) -> None:
    room = np.zeros(256, dtype=np.uint8)
    freed: list[bool] = []
    ring = DescriptorRing(
        int(room.ctypes.data),
        256,
        reach=lambda mark: mark.reach(),  # type: ignore[attr-defined]
        free=lambda: freed.append(True),
    )
    waited: list[int] = []
    live: dict[int, tuple[int, bytes]] = {}
    for number, size in enumerate(sizes):
        array = np.full(size, number % 251, dtype=np.uint8)
        before = len(waited)
        none, place = ring.put((None, array))
        assert none == 0
        for reached in waited[before:]:
            del live[reached]
        at = place - int(room.ctypes.data)
        assert 0 <= at <= 256 - size
        assert at % 16 == 0
        assert room[at : at + size].tobytes() == array.tobytes()
        live[number] = at, array.tobytes()
        ring.seal(_Mark(waited, number))  # type: ignore[arg-type]
        for start, content in live.values():
            assert room[start : start + len(content)].tobytes() == content
    assert waited == sorted(waited)
    with pytest.raises(LimitError):
        ring.put((np.zeros(300, dtype=np.uint8),))
    ring.close()
    ring.close()
    assert freed == [True]


@given(length=st.integers(1, 1 << 34), slot=st.integers(16, 1 << 14))
def test_a_chunk_fits_its_slot_and_leaves_something_to_overlap(length: int, slot: int) -> None:
    chunk = chunk_bytes(length, slot * 4096)
    assert 0 < chunk <= slot * 4096
    if length >= 4 * CHUNK_MIN and slot * 4096 >= CHUNK_MIN:
        assert -(-length // chunk) >= 3


@settings(deadline=None)
@given(
    blocks=st.integers(1, 40_000), block=st.integers(1, 70_000), slot=st.integers(70_000, 9 << 20)
)
def test_chunks_of_a_grid_grow_from_a_short_one_to_a_slot(
    blocks: int, block: int, slot: int
) -> None:
    made = counts(blocks, block, slot)
    assert sum(made) == blocks
    assert all(0 < one * block <= slot for one in made)
    assert made[0] * block <= max(1.5 * FIRST_BYTES, block)
    assert all(after <= 2.5 * one for one, after in itertools.pairwise(made))
    growing = made[:-1]
    assert growing == sorted(growing)


@settings(max_examples=150, deadline=None)
@given(
    direction=st.sampled_from(["h2d", "d2h"]),
    length=st.integers(1, 40),
    gap=st.integers(0, 3),
    count=st.integers(1, 40),
    seed=st.integers(0, 99),
    slot_bytes=st.sampled_from([64, 100, 4096]),
    shuffled=st.booleans(),
)
def test_chunks_carry_each_block_between_its_place_in_the_slot_and_the_device(
    direction: Direction,
    length: int,
    gap: int,
    count: int,
    seed: int,
    slot_bytes: int,
    shuffled: bool,
) -> None:
    random = np.random.default_rng(seed)
    host = 7 + (random.permutation(count) if shuffled else np.arange(count))
    there = random.permutation(100)[:count]
    ends = {
        "h2d": {"source": 1 << 20, "source_stride": length, "source_index": host},
        "d2h": {"destination": 1 << 20, "destination_stride": length, "destination_index": host},
    }
    others = {
        "h2d": {
            "destination": 1 << 30,
            "destination_stride": length + gap,
            "destination_index": there,
        },
        "d2h": {"source": 1 << 30, "source_stride": length + gap, "source_index": there},
    }
    gridded = Copies.indexed(length=length, **ends[direction], **others[direction])  # type: ignore[arg-type]
    as_lists = Copies.many(gridded.destinations, gridded.sources, length)
    assert packed(gridded, direction, slot_bytes) is not None
    assert packed(gridded, direction, length - 1) is None
    assert packed(as_lists, direction, slot_bytes) is None
    for copies in (gridded, as_lists):
        extent = copies.extent(direction)
        assert extent is not None
        told: list[tuple[int, int, int]] = []
        place, slot = extent[0], 1 << 40
        for chunk in chunks(copies, direction, extent, slot_bytes):
            assert chunk.host == place
            assert chunk.length <= slot_bytes
            launch = chunk.launch(slot)
            keeps_its_word(launch)
            assert launch.form == ("grid" if copies is gridded else "list")
            for source, destination, size in blocks(launch):
                if direction == "h2d":
                    assert slot <= source <= slot + chunk.length - size
                    told.append((source - slot + place, destination, size))
                else:
                    assert slot <= destination <= slot + chunk.length - size
                    told.append((source, destination - slot + place, size))
            place += chunk.length
        assert place == extent[0] + extent[1]
        given_bytes = zip(copies.sources.tolist(), copies.destinations.tolist(), strict=True)
        assert bytes_of(told) == bytes_of([(out, to, length) for out, to in given_bytes])


def test_a_grid_whose_host_side_has_a_gap_is_in_no_chunks_of_a_grid() -> None:
    for stride, index in ((17, [0, 1, 2]), (16, [0, 1, 3]), (16, [0, 1, 1])):
        copies = Copies.indexed(
            source=1 << 20,
            destination=1 << 30,
            source_stride=stride,
            destination_stride=16,
            length=16,
            source_index=index,
            destination_index=[4, 9, 6],
        )
        assert copies.extent("h2d") is None
        assert packed(copies, "h2d", 4096) is None


@settings(max_examples=80, deadline=None)
@given(
    base=st.integers(0, 200),
    stride=st.sampled_from([16, 24, 64]),
    length=st.integers(1, 64),
    piece=st.sampled_from([64, 96, 128]),
    direction=st.sampled_from(["h2d", "d2h"]),
)
def test_no_copy_engine_crosses_from_one_registration_into_the_next(
    base: int, stride: int, length: int, piece: int, direction: Direction
) -> None:
    index = np.random.default_rng(base).permutation(30)
    copies = Copies.indexed(
        source=base if direction == "h2d" else 1 << 30,
        destination=1 << 30 if direction == "h2d" else base,
        source_stride=stride if direction == "h2d" else 64,
        destination_stride=64 if direction == "h2d" else stride,
        length=length,
        source_index=index,
        destination_index=index,
    )
    to, out, lengths = in_pieces(direction, copies, piece)
    host = (out if direction == "h2d" else to).astype(np.int64)
    assert (host // piece == (host + lengths.astype(np.int64) - 1) // piece).all()
    moved = sorted(
        (source + at, destination + at)
        for destination, source, size in zip(
            to.tolist(), out.tolist(), lengths.tolist(), strict=True
        )
        for at in range(size)
    )
    assert moved == sorted(
        (source + at, destination + at)
        for destination, source in zip(
            copies.destinations.tolist(), copies.sources.tolist(), strict=True
        )
        for at in range(length)
    )


def test_asking_ends_with_an_answer_an_error_or_the_time() -> None:
    answers = iter([False, False, True])
    assert asked(lambda: next(answers), None)
    assert asked(lambda: True, 0)
    assert not asked(lambda: False, 0)
    assert not asked(lambda: False, 0.003)
    with pytest.raises(StopIteration):
        asked(lambda: next(answers), None)


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (1, InvalidError, "live memory"),
        (2, DmaplaneError, "free some"),
        (201, DeviceLostError, "cuda:0"),
        (209, UnsupportedError, "machine code"),
        (222, UnsupportedError, "PTX"),
        (400, InvalidError, "stream"),
        (500, UnsupportedError, "newer driver"),
        (700, DeviceLostError, "cuda:0"),
        (701, LimitError, "threads"),
        (712, InvalidError, "unregister"),
        (800, NotAllowedError, "not allowed"),
        (808, LimitError, "MPS"),
        (4242, InvalidError, "CUresult"),
    ],
)
def test_what_the_driver_answers_is_said_for_what_it_is(
    code: int, kind: type[DmaplaneError], words: str
) -> None:
    error = error_of(code, "cuCall: CUDA_ERROR", device="cuda:0")
    assert isinstance(error, kind)
    assert words in str(error)
    assert "cuCall" in str(error)
    assert ("live memory" in str(error)) == (code == 1)
    assert error.errno == code
    assert is_sticky(code) == isinstance(error, DeviceLostError)


def test_a_store_fence_counts_its_semaphore_up_and_down_from_any_thread() -> None:
    def many() -> None:
        for _ in range(2000):
            store_fence()

    threads = [threading.Thread(target=many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (room,) = (
        cell.cell_contents
        for cell in _bar._fence().__closure__ or ()
        if isinstance(cell.cell_contents, ctypes.Array)
    )
    value = ctypes.c_int(-1)
    assert not ctypes.CDLL(None).sem_getvalue(room, ctypes.byref(value))
    assert value.value == 0


def test_how_long_one_waits_is_no_part_of_what_a_profile_is_of() -> None:
    assert repr(CudaSettings(patience_s=1)) == repr(CudaSettings())
    assert repr(CudaSettings(priority=0)) != repr(CudaSettings())


@pytest.mark.parametrize(
    "wrong",
    [
        {"groups": 0},
        {"threads": 33},
        {"threads": 1024},
        {"slots": 1},
        {"slot_bytes": 5000},
        {"piece_bytes": PIECE_MAX + 4096},
        {"bulk_slots": 5},
        {"order": "whenever"},
        {"hint": "magic"},
        {"busy": "maybe"},
        {"batch_max": 0},
        {"priority": 1},
        {"patience_s": 0},
        {"patience_s": float("nan")},
    ],
)
def test_settings_that_no_device_can_keep_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidError) as caught:
        CudaSettings(**wrong)
    assert caught.value.field == next(iter(wrong))
    assert caught.value.fix


class _Of:
    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)


def test_foreign_streams_are_known_by_protocol_or_by_torchs_name() -> None:
    assert foreign_stream(_Of(__cuda_stream__=lambda: (0, 77))) == 77
    assert foreign_stream(_Of(__cuda_stream__=(0, 78))) == 78
    assert foreign_stream(_Of(cuda_stream=0)) == 0
    assert foreign_stream(object()) is None
    assert foreign_event(_Of(cuda_event=5)) == 5
    assert foreign_event(_Of(handle=6)) == 6
    assert foreign_event(object()) is None
    with pytest.raises(InvalidError, match="version 0"):
        foreign_stream(_Of(__cuda_stream__=lambda: (1, 77)))


@pytest.mark.parametrize("output", ["", "{", '{"works": true}', "[1]", "null"])
def test_a_child_that_dies_or_babbles_is_no_mapping(output: str) -> None:
    finding = _understood(output, "Segmentation fault\n", -11, 0)
    assert not finding.works
    assert finding.step == "child"
    assert "-11" in finding.error
    assert "Segmentation" in finding.error


def test_arguments_keep_every_field() -> None:
    launch = Launch(
        "grid", 8, 584, 3, False, source=1, destination=2, source_stride=3, destination_stride=4
    )
    made = launch.arguments((5, 6, 7))
    told = [getattr(made, name) for name, _ in made._fields_]
    assert told == [1, 2, 3, 4, 5, 6, 7, 584, 3, 3, 0]
    assert launch.arguments((0, 0, 0), bulk=True).rows == 1
    assert ctypes.sizeof(made) == 72

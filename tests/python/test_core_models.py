# SPDX-License-Identifier: MIT
"""The shared core against small Python models: rings, credits, histograms (T4)."""

from __future__ import annotations

import ctypes
import errno
import itertools
import pathlib
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmaplane import abi
from dmaplane._statistics import Histogram, bucket_bounds, bucket_of

ROOT = pathlib.Path(__file__).parents[2]
WRAP = 1 << 32


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """core/ as a shared library, as any compiler here makes it."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    assert compiler, "a C compiler builds this project, so one must be here"
    built = tmp_path_factory.mktemp("core") / "core.so"
    sources = [str(ROOT / "core" / f"{name}.c") for name in ("ring", "credit", "histogram")]
    include = [f"-I{ROOT / 'include' / 'uapi'}", f"-I{ROOT / 'core'}"]
    subprocess.run(
        [compiler, "-std=gnu11", "-O1", "-shared", "-fPIC", *include, *sources, "-o", str(built)],
        check=True,
        timeout=120,
    )
    return ctypes.CDLL(str(built))


class Ring(ctypes.Structure):
    _fields_ = (
        ("own_word", ctypes.POINTER(ctypes.c_uint32)),
        ("other_word", ctypes.POINTER(ctypes.c_uint32)),
        ("own", ctypes.c_uint32),
        ("slots", ctypes.c_uint32),
    )


class Pair:
    """A producer and a consumer over two shared words."""

    def __init__(self, core: ctypes.CDLL, slots: int, start: int) -> None:
        self.core = core
        self.head, self.tail = ctypes.c_uint32(start), ctypes.c_uint32(start)
        self.producer, self.consumer = Ring(), Ring()
        head, tail = ctypes.byref(self.head), ctypes.byref(self.tail)
        assert core.dmp_ring_init(ctypes.byref(self.producer), tail, head, slots) == 0
        assert core.dmp_ring_init(ctypes.byref(self.consumer), head, tail, slots) == 0

    def _count(self, function: str, ring: Ring) -> int:
        count = ctypes.c_uint32(0xDEAD)
        answer: int = getattr(self.core, function)(ctypes.byref(ring), ctypes.byref(count))
        return answer if answer < 0 else count.value

    def room(self) -> int:
        return self._count("dmp_ring_room", self.producer)

    def ready(self) -> int:
        return self._count("dmp_ring_ready", self.consumer)

    def produce(self, count: int) -> None:
        self.core.dmp_ring_advance(ctypes.byref(self.producer), count)

    def consume(self, count: int) -> None:
        self.core.dmp_ring_advance(ctypes.byref(self.consumer), count)


def _play(core: ctypes.CDLL, slots: int, start: int, steps: list[tuple[bool, int]]) -> None:
    pair = Pair(core, slots, start)
    held = 0  # the model of a ring is one number
    for produce, wanted in steps:
        count = min(wanted, slots - held if produce else held)
        if produce:
            pair.produce(count)
        else:
            pair.consume(count)
        held += count if produce else -count
        assert pair.room() == slots - held
        assert pair.ready() == held
        assert (pair.tail.value - pair.head.value) % WRAP == held


@settings(max_examples=200, deadline=None)
@given(
    power=st.integers(0, 16),
    start=st.one_of(st.integers(0, WRAP - 1), st.integers(WRAP - 40, WRAP - 1)),
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, 1 << 16)), max_size=60),
)
def test_ring_is_its_model(
    core: ctypes.CDLL, power: int, start: int, steps: list[tuple[bool, int]]
) -> None:
    _play(core, 1 << power, start, steps)


def test_ring_of_four_in_every_order(core: ctypes.CDLL) -> None:
    """Every sequence of six moves of up to four entries, across the wrap of the index."""
    moves = [(True, 1), (True, 3), (True, 4), (False, 1), (False, 2), (False, 4)]
    for steps in itertools.product(moves, repeat=5):
        _play(core, 4, WRAP - 3, list(steps))


@settings(max_examples=300, deadline=None)
@given(power=st.integers(0, 16), start=st.integers(0, WRAP - 1), word=st.integers(0, WRAP - 1))
def test_ring_refuses_impossible_words(
    core: ctypes.CDLL, power: int, start: int, word: int
) -> None:
    slots = 1 << power
    pair = Pair(core, slots, start)
    pair.head.value = word
    distance = (start - word) % WRAP
    assert pair.room() == (slots - distance if distance <= slots else -errno.EPROTO)
    pair.head.value = start
    pair.tail.value = word
    distance = (word - start) % WRAP
    assert pair.ready() == (distance if distance <= slots else -errno.EPROTO)
    assert (pair.producer.own, pair.consumer.own) == (start, start), "our own index moved"


@pytest.mark.parametrize("slots", [0, 3, 5, abi.SLOTS_MAX + 1, WRAP - 1])
def test_ring_refuses_sizes_that_are_no_power_of_two(core: ctypes.CDLL, slots: int) -> None:
    word = ctypes.byref(ctypes.c_uint32())
    assert core.dmp_ring_init(ctypes.byref(Ring()), word, word, slots) == -errno.EINVAL


VALUES = st.one_of(
    st.integers(0, 100),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, 63).map(lambda n: 1 << n),
    st.integers(1, 63).map(lambda n: (1 << n) - 1),
)


@settings(max_examples=500, deadline=None)
@given(value=VALUES)
def test_bucket_of_a_value_holds_it_within_three_percent(core: ctypes.CDLL, value: int) -> None:
    core.dmp_histogram_bucket.argtypes = [ctypes.c_uint64]
    core.dmp_histogram_bucket.restype = ctypes.c_uint32
    bucket = core.dmp_histogram_bucket(value)
    assert bucket == bucket_of(value)
    low, end = bucket_bounds(bucket)
    last = bucket == abi.HISTOGRAM_BUCKETS - 1
    assert low <= value < end or (last and value >= low)
    if not last:
        assert abs((low + end - 1) / 2 - value) <= 0.03 * value


class Counts(ctypes.Structure):
    _fields_ = (
        ("samples", ctypes.c_uint64),
        ("sum", ctypes.c_uint64),
        ("maximum", ctypes.c_uint64),
        ("counts", ctypes.c_uint64 * abi.HISTOGRAM_BUCKETS),
    )

    def snapshot(self) -> Histogram:
        return Histogram(self.samples, self.sum, self.maximum, tuple(self.counts))


LATENCIES = st.lists(st.integers(0, 1 << 39), min_size=1, max_size=80)


@settings(max_examples=100, deadline=None)
@given(first=LATENCIES, second=LATENCIES, percent=st.sampled_from([1, 25, 50, 90, 99, 99.9, 100]))
def test_histogram_is_its_model(
    core: ctypes.CDLL, first: list[int], second: list[int], percent: float
) -> None:
    core.dmp_histogram_record.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64]
    made = [Counts(), Counts()]
    for counts, values in zip(made, (first, second), strict=True):
        for value in values:
            core.dmp_histogram_record(ctypes.addressof(counts), value, 1)
    merged = made[0].snapshot() + made[1].snapshot()
    core.dmp_histogram_merge(ctypes.byref(made[0]), ctypes.byref(made[1]))
    assert made[0].snapshot() == merged
    together = sorted(first + second)
    assert merged.samples == len(together)
    assert merged.sum == sum(together)
    assert merged.maximum == together[-1]
    exact = together[max(1, -(-len(together) * percent // 100)).__int__() - 1]
    assert abs(merged.percentile(percent) - exact) <= 0.03 * exact


class Amount(ctypes.Structure):
    _fields_ = (("slots", ctypes.c_uint64), ("bytes", ctypes.c_uint64))


class Ledger(ctypes.Structure):
    _fields_ = (
        ("granted", Amount),
        ("available", Amount),
        ("in_flight", Amount),
        ("completed", Amount),
        ("sequence", ctypes.c_uint64),
        ("epoch", ctypes.c_uint32),
    )


class Sender(ctypes.Structure):
    _fields_ = (
        ("ledger", Ledger),
        ("stalls", ctypes.c_uint64),
        ("stall_ns", ctypes.c_uint64),
        ("stalled_since_ns", ctypes.c_uint64),
        ("stalled", ctypes.c_bool),
    )


class Grant(ctypes.Structure):
    _fields_ = (("total", Amount), ("sequence", ctypes.c_uint64), ("epoch", ctypes.c_uint32))


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("grant"), st.integers(0, 4), st.integers(0, 200)),
        st.tuples(st.just("repeat"), st.integers(0, 30), st.just(0)),
        st.tuples(st.just("stale"), st.integers(1, 9), st.just(0)),
        st.tuples(st.just("take"), st.integers(0, 120), st.just(0)),
        st.tuples(st.just("complete"), st.just(0), st.just(0)),
        st.tuples(st.just("return"), st.just(0), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(steps=STEPS)
def test_credit_ledger_is_its_model(core: ctypes.CDLL, steps: list[tuple[str, int, int]]) -> None:
    for name in ("take", "complete", "return"):
        getattr(core, f"dmp_credit_{name}").argtypes = [ctypes.c_void_p, ctypes.c_uint64]
    sender = Sender()
    at = ctypes.addressof(sender)
    core.dmp_credit_sender_init.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    core.dmp_credit_sender_init(at, 7)
    core.dmp_credit_check.argtypes = [ctypes.c_void_p]
    core.dmp_credit_hear.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    totals = [(0, 0)]  # of each grant; index is its sequence
    flying: list[int] = []
    free_slots = free_bytes = 0
    for step, first, second in steps:
        if step == "grant":
            slots, size = totals[-1]
            totals.append((slots + first, size + second))
            grant = Grant(Amount(*totals[-1]), len(totals) - 1, 7)
            assert core.dmp_credit_hear(at, ctypes.addressof(grant)) == 0
            free_slots, free_bytes = free_slots + first, free_bytes + second
        elif step == "repeat":
            sequence = first % len(totals)
            if sequence:
                grant = Grant(Amount(*totals[sequence]), sequence, 7)
                assert core.dmp_credit_hear(at, ctypes.addressof(grant)) == 0  # mints nothing
        elif step == "stale":
            grant = Grant(Amount(1 << 40, 1 << 40), len(totals) + first, 7 + first)
            assert core.dmp_credit_hear(at, ctypes.addressof(grant)) == -errno.ESTALE
        elif step == "take":
            enough = free_slots >= 1 and free_bytes >= first
            assert core.dmp_credit_take(at, first) == (0 if enough else -errno.EAGAIN)
            if enough:
                flying.append(first)
                free_slots, free_bytes = free_slots - 1, free_bytes - first
        elif flying:
            size = flying.pop(0)
            if step == "complete":
                assert core.dmp_credit_complete(at, size) == 0
            else:
                assert core.dmp_credit_return(at, size) == 0
                free_slots, free_bytes = free_slots + 1, free_bytes + size
        else:
            assert core.dmp_credit_complete(at, 0) == -errno.EPROTO
        available = sender.ledger.available
        assert (available.slots, available.bytes) == (free_slots, free_bytes)
        in_flight = sender.ledger.in_flight
        assert (in_flight.slots, in_flight.bytes) == (len(flying), sum(flying))
        assert core.dmp_credit_check(at) == 0

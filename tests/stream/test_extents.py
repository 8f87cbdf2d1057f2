# SPDX-License-Identifier: MIT
"""The book of a host pool against a map of its bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dmaplane import InvalidError, LimitError
from dmaplane.stream._extents import ALIGNMENT_BYTES, Spans, rounded

UNIT = ALIGNMENT_BYTES
PIECES = (8 * UNIT, 8 * UNIT, 5 * UNIT)


class Book(RuleBasedStateMachine):
    """Takes and gives; the model is a byte a unit: free, or the number of who has it."""

    def __init__(self) -> None:
        super().__init__()
        self.copied: set[int] = set()  # units a copy touches
        self.spans = Spans(PIECES, self._touches)
        self.units = np.zeros(sum(PIECES) // UNIT, np.int64)
        self.held: dict[int, int] = {}  # begin -> units
        self.ending: dict[int, int] = {}
        self.number = 0

    def _touches(self, start: int, length: int) -> bool:
        return any(start <= unit * UNIT < start + length for unit in self.copied)

    def _first_fit(self, units: int) -> int | None:
        at = 0
        for piece in PIECES:
            room = self.units[at : at + piece // UNIT]
            for start in range(len(room) - units + 1):
                if not room[start : start + units].any():
                    return at + start
            at += len(room)
        return None

    def _settle(self) -> None:
        for start, units in list(self.ending.items()):
            if not self._touches(start * UNIT, units * UNIT):
                self.units[start : start + units] = 0
                del self.ending[start]

    @rule(units=st.integers(1, 9))
    def take(self, units: int) -> None:
        self._settle()
        expected = self._first_fit(units)
        if expected is None:
            with pytest.raises(LimitError, match="bytes is free"):
                self.spans.take(units * UNIT)
            return
        assert self.spans.take(units * UNIT) == expected * UNIT
        self.number += 1
        self.units[expected : expected + units] = self.number
        self.held[expected] = units

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def give(self, data: st.DataObject) -> None:
        start = data.draw(st.sampled_from(sorted(self.held)))
        self.ending[start] = self.held.pop(start)
        self.spans.give(start * UNIT)

    @rule(units=st.sets(st.integers(0, sum(PIECES) // UNIT - 1), max_size=3))
    def copy(self, units: set[int]) -> None:
        self.copied = units

    @invariant()
    def books_agree(self) -> None:
        self._settle()
        account = self.spans.audit()
        assert account.free_bytes == int((self.units == 0).sum()) * UNIT
        assert account.taken_bytes + account.free_bytes == account.length_bytes == sum(PIECES)
        assert account.extents == len(self.held) + len(self.ending)


TestBook = Book.TestCase
TestBook.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_neighbours_are_one_span_again_when_given_back_in_any_order() -> None:
    spans = Spans([4 * UNIT])
    begins = [spans.take(UNIT) for _ in range(4)]
    for start in (begins[2], begins[0], begins[3], begins[1]):
        spans.give(start)
    assert spans.audit().largest_free_bytes == 4 * UNIT
    assert spans.account().free_spans == 1


def test_no_span_reaches_from_one_piece_into_the_next() -> None:
    spans = Spans([2 * UNIT, 2 * UNIT])
    assert spans.take(UNIT) == 0
    assert spans.take(2 * UNIT) == 2 * UNIT
    spans.give(0)
    spans.give(2 * UNIT)
    assert spans.audit().free_spans == 2
    with pytest.raises(LimitError, match="the largest 512"):
        spans.take(3 * UNIT)


def test_what_a_copy_touches_is_given_to_nobody() -> None:
    under_way = [True]
    spans = Spans([2 * UNIT], lambda start, length: under_way[0] and start == 0)
    start = spans.take(UNIT)
    spans.give(start)
    assert spans.take(UNIT) == UNIT
    with pytest.raises(LimitError):
        spans.take(UNIT)
    under_way[0] = False
    assert spans.take(UNIT) == 0


@pytest.mark.parametrize("length", [0, -1, 1025])
def test_a_length_that_no_piece_has_is_refused_with_what_would_do(length: int) -> None:
    with pytest.raises(InvalidError, match=r"1 \.\. 1024"):
        rounded(length, 1024)


def test_lengths_are_rounded_up_to_whole_lines() -> None:
    assert [rounded(n, 1 << 20) for n in (1, 256, 257)] == [256, 256, 512]


def test_what_is_free_is_found_behind_many_that_are_not_yet() -> None:
    """A call looks at some of those that have ended, and at all before it says no."""
    count = 200
    spans = Spans([count * UNIT], lambda start, _: start != (count - 1) * UNIT)
    begins = [spans.take(UNIT) for _ in range(count)]
    for start in begins:
        spans.give(start)
    assert spans.take(UNIT) == (count - 1) * UNIT
    with pytest.raises(LimitError):
        spans.take(UNIT)


def test_what_somebody_still_reaches_is_given_to_nobody() -> None:
    reached = [True]
    spans = Spans([UNIT])
    spans.give(spans.take(UNIT), lambda: reached[0])
    with pytest.raises(LimitError):
        spans.take(UNIT)
    assert spans.audit().taken_bytes == UNIT
    reached[0] = False
    assert spans.take(UNIT) == 0


def test_looking_for_room_does_not_look_at_all_that_has_ended() -> None:
    asked: list[int] = []
    spans = Spans([1000 * UNIT], lambda start, _: bool(asked.append(start) or True))
    for start in [spans.take(UNIT) for _ in range(500)]:
        spans.give(start)
    spans.take(UNIT)
    assert len(asked) < 100

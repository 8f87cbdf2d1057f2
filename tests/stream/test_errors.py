# SPDX-License-Identifier: MIT
"""Errors of copies and callbacks: each is told once, to whoever asks first."""

from __future__ import annotations

from typing import Any

import pytest
from ground import until_begun
from hypothesis import given, settings
from hypothesis import strategies as st

from dmaplane import CallbackError, CopyError
from dmaplane.stream import Operation
from dmaplane.stream._failures import Failures


def test_an_error_nobody_asked_for_is_told_by_synchronize_once(rig: Any) -> None:
    ground = rig(fail=frozenset({1, 2}))
    with ground.stream() as stream:
        stream.copy(ground.up(0, 64))
        stream.copy(ground.up(0, 64))
        stream.copy(ground.up(0, 64))
        with pytest.raises(CopyError, match="copy 1 failed, and 1 more"):
            stream.synchronize(30)
        stream.synchronize(30)


@given(
    asked=st.sets(st.integers(0, 79)),
    early=st.integers(0, 80),
    failed=st.integers(0, 80),
)
@settings(max_examples=60, deadline=None)
def test_every_failure_is_told_once_or_was_asked_for(
    asked: set[int], early: int, failed: int
) -> None:
    """Of any number of them, asked for while they come or afterwards."""

    class Step:
        def __init__(self, number: int) -> None:
            self.number = number
            self._told = False
            self._error = CopyError(f"of {number}")

    failures = Failures()
    steps = [Step(number) for number in range(failed)]
    for turn in (1, 2):
        for step in steps:
            if turn == 1:
                failures.add(step)  # type: ignore[arg-type]
            if step.number in asked and (step.number < early) == (turn == 1):
                step._told = True
                failures.told(step)  # type: ignore[arg-type]
    left = sorted(set(range(failed)) - asked)
    told = failures.of_copies()
    if not left:
        assert told is None
    else:
        assert told is not None
        assert (f"and {len(left) - 1} more" in str(told)) == (len(left) > 1)
        assert str(told).startswith("copy ")
    assert failures.of_copies() is None


def test_a_failure_behind_many_that_were_asked_for_is_told(rig: Any) -> None:
    ground = rig(fail=frozenset(range(1, 66)))
    with ground.stream() as stream:
        for _ in range(64):
            with pytest.raises(CopyError):
                stream.copy(ground.up(0, 64)).wait(30)
        stream.copy(ground.up(0, 64))
        with pytest.raises(CopyError, match="copy 65 failed: "):
            stream.synchronize(30)


def test_a_callback_and_a_copy_that_failed_are_both_told(rig: Any) -> None:
    ground = rig(fail=frozenset({1}))

    def wrong() -> None:
        raise KeyError("mine")

    with ground.stream() as stream:
        stream.copy(ground.up(0, 64))
        for _ in range(70):
            stream.call(wrong)
        with pytest.raises(CallbackError, match="64 callbacks"):
            stream.synchronize(30)
        assert stream.statistics().raised == 70
        with pytest.raises(CopyError, match="copy 1 failed"):
            stream.synchronize(30)
        stream.synchronize(30)


def _fail_after(_: Operation) -> None:
    raise ZeroDivisionError


def test_close_tells_of_a_copy_that_failed_if_nobody_asked(rig: Any) -> None:
    ground = rig(fail=frozenset({1, 2, 3}))
    stream = ground.stream()
    until_begun(stream.copy(ground.up(0, 64)))
    with pytest.raises(CopyError, match="copy 1 failed"):
        stream.close()
    stream.close()
    with pytest.raises(CopyError, match="copy 1 failed"), ground.stream() as stream:
        until_begun(stream.copy(ground.up(0, 64)))
    with pytest.raises(ZeroDivisionError), ground.stream() as stream:  # that matters more
        _fail_after(until_begun(stream.copy(ground.up(0, 64))))

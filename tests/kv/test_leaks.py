# SPDX-License-Identifier: MIT
"""The books of a pool in another process: what leaks is named, and what is no book refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given
from small_pool import Clock

import dmaplane
from dmaplane.kv import Layout, Pool
from dmaplane.kv._leaks import HEADINGS, Books, age_text, as_json, cells_of

LAYOUT = Layout(layers=1, kv_heads=1, head_size=4, dtype="int8", block_tokens=4)


@pytest.fixture
def pool(clock: Clock) -> Iterator[Pool]:
    """With a lease of each kind: quarantined, past its time, live."""
    with dmaplane.open(plane="embedded") as plane, Pool(plane, LAYOUT, 20, clock=clock) as made:
        aborted = made.lease(3, holder="request 7", trace="t7")
        aborted.quarantine("connection 2", why="cancelled by the client")
        aborted.release()
        clock.now += 100
        with made.lease(4, holder="request 8", trace="t8", seconds=8):
            clock.now += 3
            with made.lease(5, holder="request 9"):
                clock.now += 5.5
                yield made


def test_books_survive_the_way_through_json(pool: Pool) -> None:
    books = Books.of_json(json.loads(json.dumps(as_json(pool))))
    assert books.leases == pool.leases()
    assert books.account == pool.account()
    assert books.leaks(60) == pool.leaks(60)


def test_leak_is_told_with_holder_age_trace_and_who_has_not_let_go(pool: Pool) -> None:
    books = Books.of_json(as_json(pool))
    assert [row.holder for row in books.leaks(60)] == ["request 7"]
    told = books.verdict(60)
    assert "1 lease is older than 1.0 min and holds 3 of 20 blocks" in told
    assert "request 7, trace t7, 1.8 min, aborted, waits for connection 2" in told
    assert "2 leases are older than 6.0 s and hold 7 of 20" in books.verdict(6)
    assert books.verdict(3600) == (
        "no lease is older than 1.0 h: 20 blocks = 8 free + 9 leased + 3 quarantined"
    )
    cells = [dict(zip(HEADINGS, cells_of(row), strict=True)) for row in books.leases]
    assert [one["expires"] for one in cells] == ["ended", "0.5 s ago", "never"]
    assert cells[0]["why"] == "cancelled by the client"
    assert cells[0]["held by"] == "connection 2"
    assert cells[1]["held by"] == "request 8"
    assert (cells[2]["age"], cells[2]["blocks"], cells[2]["state"]) == ("5.5 s", "5", "live")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (59.94, "59.9 s"), (90, "1.5 min"), (7200, "2.0 h"), (200000, "2.3 d")],
)
def test_ages_are_in_the_unit_people_use(seconds: float, text: str) -> None:
    assert age_text(seconds) == text


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("leases",), {}),
        (("leases",), [None]),
        (("account",), None),
        (("account", "free"), 7),  # does not balance
        (("account", "free"), True),
        (("account", "leased"), -1),
        (("leases", 0, "holder"), "two\nlines"),
        (("leases", 0, "trace"), "x" * 257),
        (("leases", 0, "who"), ["ok", 3]),
        (("leases", 0, "who"), "connection"),
        (("leases", 0, "who"), ["x"] * 2000),
        (("leases", 0, "state"), "lost"),
        (("leases", 0, "state"), ["live"]),
        (("leases", 0, "age_seconds"), float("nan")),
        (("leases", 0, "age_seconds"), "1"),
        (("leases", 1, "expires_in"), 1e300),
        (("leases", 0, "blocks"), 1 << 60),
        (("leases", 0, "more"), 1),
        (("more",), 1),
    ],
)
def test_books_that_are_none_are_refused(pool: Pool, path: tuple[Any, ...], value: object) -> None:
    data: Any = copy.deepcopy(as_json(pool))
    Books.of_json(data)
    place = data
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(dmaplane.InvalidError):
        Books.of_json(data)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.integers(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["account", "leases", "id"]), inner, max_size=3)
        ),
        max_leaves=8,
    )
)
def test_nothing_but_an_invalid_error_comes_of_any_json(data: object) -> None:
    with pytest.raises(dmaplane.InvalidError):
        Books.of_json(data)

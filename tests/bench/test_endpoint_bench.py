# SPDX-License-Identifier: MIT
"""The parts of `bench endpoint` that can be wrong without anything being timed."""

from __future__ import annotations

import os
import pathlib
import socket
import sys
import threading
from typing import Any, Final

import numpy as np
import pytest

from dmaplane import _abi
from dmaplane._errors import DmaplaneError
from dmaplane.bench import _link, _loops, _peers, endpoint

BLOCK: Final = 4096
COUNT: Final = 300


def shuffled_rows() -> np.ndarray[Any, np.dtype[np.void]]:
    order = np.random.default_rng(5)
    return _link.rows_over(1, 2, 3, BLOCK, order.permutation(COUNT), order.permutation(COUNT))


def source_bytes() -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(6).integers(0, 256, COUNT * BLOCK, dtype=np.uint8)


def test_rows_name_every_block_of_both_sides_once() -> None:
    rows = shuffled_rows()
    every = np.arange(COUNT, dtype=np.uint64) * BLOCK
    assert np.array_equal(np.sort(rows["source_offset"]), every)
    assert np.array_equal(np.sort(rows["target_offset"]), every)
    assert set(rows["operation"]) == {_abi.OP_WRITE_IMM}
    assert rows["immediate"].tolist() == rows["user_data"].tolist() == list(range(COUNT))


def test_the_plain_socket_puts_every_block_where_the_rows_say() -> None:
    rows, source = shuffled_rows(), source_bytes()
    target = np.zeros_like(source)
    near, far = socket.socketpair()
    with near, far:
        receiver = threading.Thread(target=_loops.socket_receive, args=(far.fileno(), target, rows))
        receiver.start()
        assert _loops.socket_send(near.fileno(), source, rows) > 0
        receiver.join()
    expected = np.zeros_like(source)
    for row in rows:
        start, end = int(row["source_offset"]), int(row["target_offset"])
        expected[end : end + BLOCK] = source[start : start + BLOCK]
    assert np.array_equal(target, expected)


def test_a_plain_socket_whose_other_end_is_gone_is_an_error() -> None:
    near, far = socket.socketpair()
    with near:
        far.close()
        with pytest.raises(DmaplaneError):
            _loops.socket_send(near.fileno(), source_bytes(), shuffled_rows())


def test_each_round_trip_of_the_plain_socket_is_timed() -> None:
    near, far = socket.socketpair()
    with near, far:
        other = threading.Thread(
            target=_loops.socket_pingpong, args=(far.fileno(), 20), kwargs={"first": False}
        )
        other.start()
        each = _loops.socket_pingpong(near.fileno(), 20, first=True)
        other.join()
    assert len(each) == 20
    assert (each > 0).all()


def test_every_side_has_its_turn_at_being_first() -> None:
    order: list[str] = []

    def side(name: str) -> float:
        order.append(name)
        return float(len(order))

    names = ("a", "b", "c")
    samples = endpoint.in_turns(3, {name: lambda name=name: side(name) for name in names})
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"
    assert {name: len(found) for name, found in samples.items()} == {"a": 3, "b": 3, "c": 3}
    assert samples["a"] == [4.0, 9.0, 11.0]


class FakeChannel:
    """Completes what was pushed, in order, when it is waited for; the last with @result."""

    def __init__(self, result: int = 0) -> None:
        self.result = result
        self.pushed = 0
        self.taken = 0
        self.in_flight_max = 0

    def push(self, rows: np.ndarray[Any, np.dtype[np.void]]) -> None:
        self.pushed += len(rows)
        self.in_flight_max = max(self.in_flight_max, self.pushed - self.taken)

    def completions(self, wait: int) -> np.ndarray[Any, np.dtype[np.void]]:
        assert self.taken + wait <= self.pushed, "waits for what was never submitted"
        done = np.zeros(wait, dtype=_abi.COMPLETION)
        done["result"][-1:] = self.result
        self.taken += wait
        return done


@pytest.mark.parametrize("batch", [1, 64, 128, 299, 300, 1024])
def test_a_stream_submits_everything_with_two_batches_in_flight(batch: int) -> None:
    channel = FakeChannel()
    endpoint.stream(channel, shuffled_rows(), batch)  # type: ignore[arg-type]
    assert channel.pushed == channel.taken == COUNT
    assert channel.in_flight_max == min(2 * batch, COUNT)


def test_a_stream_does_not_hide_a_write_that_failed() -> None:
    with pytest.raises(DmaplaneError):
        endpoint.stream(FakeChannel(-104), shuffled_rows(), 64)  # type: ignore[arg-type]


def test_a_peer_that_is_not_installed_says_how_to_get_it() -> None:
    absent = _peers.Kind("Nobody", ("nowhere",), ("a_module_nobody_has",), "pip install nobody")
    with pytest.raises(_peers.MissingPeerError, match="not installed: pip install nobody"):
        _peers.Peer(absent, _peers.Shared(0, 1, 2, BLOCK, 1))


def test_a_peer_that_does_not_start_says_its_last_word(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_peer_that_fails.py").write_text("raise SystemExit('no such device')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), *sys.path)))
    failing = _peers.Kind("Failing", ("a_peer_that_fails",), ("json",), "")
    with pytest.raises(_peers.MissingPeerError, match="does not run here: no such device"):
        _peers.Peer(failing, _peers.Shared(0, 1, 2, BLOCK, 1))


def test_every_claim_about_bytes_has_its_size_path_and_peer() -> None:
    sizes = {size.name for size in endpoint.SIZES}
    for versus in endpoint.CLAIMED:
        peers = {kind.name: kind.sizes for kind in endpoint.PEERS[versus.path]}
        peers[endpoint.LIMITS[versus.path]] = tuple(sizes)
        assert versus.size in peers[versus.peer]
        assert versus.claim.startswith(f"endpoint/{versus.path}-{versus.size}")
        assert set(versus.orders) <= set(endpoint.ORDERS)

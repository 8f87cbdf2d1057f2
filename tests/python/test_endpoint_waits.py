# SPDX-License-Identifier: MIT
"""Waits on endpoints under signals and threads: nothing is lost, nothing comes twice (L1)."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import pytest

import dmaplane

SOON = 20.0


class Stop(Exception):  # noqa: N818 - a signal, no error
    """Raised by a signal handler."""


def test_signals_that_raise_lose_no_immediate_and_repeat_none(link: Any) -> None:
    count, armed = 5000, False
    buffer, region, remote = link.opened(64)

    def interrupt(_: int, __: object) -> None:
        if armed:
            raise Stop

    def send() -> None:
        running: list[dmaplane.Operation] = []
        for number in range(count):
            running.append(link.near.write_imm(src, remote, number))
            if len(running) > 100:
                running.pop(0).wait(SOON)
        for operation in running:
            operation.wait(SOON)

    came: list[int] = []
    stopped = 0
    with buffer, region, link.near_plane.buffer(64) as src:
        sending = threading.Thread(target=send)
        sending.start()
        before = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        try:
            while len(came) < count:
                try:
                    try:
                        armed = True
                        link.far._wait(1 if stopped % 2 else 20, 0)
                    finally:
                        armed = False
                except Stop:
                    stopped += 1
                came += link.far.immediates()["immediate"].tolist()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        sending.join(SOON)
    assert came == list(range(count))
    assert stopped


def test_threads_exchange_on_one_channel_without_mixing_answers(link: Any) -> None:
    rounds, peers = 100, 4
    failures: list[BaseException] = []

    def answer(endpoint: dmaplane.Endpoint, key: bytes, ball: dmaplane.Buffer) -> None:
        back = endpoint.region(key)
        for _ in range(rounds):
            number = endpoint.immediate().wait(SOON).immediate
            endpoint.write_imm(ball, back, number + 1).wait(SOON)

    def ask(endpoint: dmaplane.Endpoint, key: bytes, ball: dmaplane.Buffer, first: int) -> None:
        there = endpoint.region(key)
        for number in range(first, first + rounds):
            assert endpoint.exchange(ball, there, number, timeout=SOON).immediate == number + 1

    def guarded(act: Any, *arguments: Any) -> None:
        try:
            act(*arguments)
        except BaseException as failure:
            failures.append(failure)

    with (
        link.near_plane.channel() as channel,
        link.near_plane.buffer(64) as ours,
        link.far_plane.buffer(64) as theirs,
        ours.region() as here,
        theirs.region() as there,
    ):
        pairs = [link.again(channel=channel) for _ in range(peers)]
        threads = []
        for index, (near, far) in enumerate(pairs):
            first = index * 1_000_000
            threads += [
                threading.Thread(target=guarded, args=(answer, far, here.key, theirs)),
                threading.Thread(target=guarded, args=(ask, near, there.key, ours, first)),
            ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not failures
        assert channel.in_flight == 0
        for near, far in pairs:
            near.close()
            far.close()


@pytest.mark.parametrize("closes", ["endpoint", "channel", "plane"])
def test_close_from_another_thread_ends_every_kind_of_wait(link: Any, closes: str) -> None:
    buffer, region, remote = link.opened(64)
    src = link.near_plane.buffer(64)
    ended: list[BaseException] = []

    def wait(act: Any) -> None:
        try:
            act()
        except BaseException as failure:
            ended.append(failure)

    waits = (
        lambda: link.near.immediate().wait(SOON),
        lambda: link.near.immediates(3, timeout=SOON),
        lambda: link.near.exchange(src, remote, 1, timeout=SOON),
        lambda: link.near.recv(src).wait(SOON),
    )
    threads = [threading.Thread(target=wait, args=(act,)) for act in waits]
    for thread in threads:
        thread.start()
    while link.near.channel.in_flight < 1 or not link.near.channel._taker._followers:
        time.sleep(0.001)
    {"endpoint": link.near, "channel": link.near.channel, "plane": link.near_plane}[closes].close()
    for thread in threads:
        thread.join(SOON)
        assert not thread.is_alive()
    assert len(ended) == len(waits)
    assert all(isinstance(one, dmaplane.DmaplaneError) for one in ended), ended
    assert not any(isinstance(one, TimeoutError) for one in ended), ended
    src.close()
    region.close()
    buffer.close()

# SPDX-License-Identifier: MIT
"""Closing under other threads: they get ClosedError or their answer, never a crash (L3, L12)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

import dmaplane


def _ends_when_closed(
    plane: dmaplane.Plane, act: Callable[[], object], close: Callable[[], None]
) -> list[BaseException]:
    """Runs @act in a thread, closes under it, and gives what it raised."""
    raised: list[BaseException] = []

    def body() -> None:
        try:
            act()
        except BaseException as reason:
            raised.append(reason)

    thread = threading.Thread(target=body)
    thread.start()
    time.sleep(0.05)
    began = time.monotonic()
    close()
    thread.join(5)
    assert not thread.is_alive(), "it still waits"
    assert time.monotonic() - began < 2
    return raised


def test_close_ends_a_plane_wait() -> None:
    plane = dmaplane.open(plane="embedded")
    raised = _ends_when_closed(plane, plane.wait, plane.close)
    assert isinstance(raised[0], dmaplane.ClosedError)
    assert plane._ended


def test_close_ends_a_drain() -> None:
    plane = dmaplane.open(plane="embedded")
    buffer = plane.buffer(4096)
    array = buffer.numpy()
    raised = _ends_when_closed(plane, lambda: buffer.destroy(drain=True), plane.close)
    assert isinstance(raised[0], dmaplane.ClosedError)
    array[:] = 1
    del array
    assert plane._ended


def test_close_of_a_channel_ends_a_wait() -> None:
    with (
        dmaplane.open(plane="embedded") as plane,
        plane.buffer(128 << 20) as src,
        plane.buffer(128 << 20) as dst,
    ):
        channel = plane.channel()
        running = [channel.copy(dst, src) for _ in range(30)]
        raised = _ends_when_closed(plane, running[-1].wait, channel.close)
        assert isinstance(raised[0], dmaplane.OperationCancelledError)


def test_close_while_threads_work_is_clean() -> None:
    for _ in range(15):
        plane = dmaplane.open(plane="embedded")
        channel = plane.channel(slots=16)
        failures: list[BaseException] = []

        def work(
            plane: dmaplane.Plane = plane,
            channel: dmaplane.Channel = channel,
            failures: list[BaseException] = failures,
        ) -> None:
            try:
                while True:
                    with plane.buffer(4096) as buffer:
                        buffer.numpy()[:] = 1
                        channel.nop().wait(timeout=10)
                        plane.statistics()
                        with plane.channel(slots=2) as own:
                            own.fill(buffer, 7).wait(timeout=10, check=False)
            except (dmaplane.ClosedError, dmaplane.OperationCancelledError):
                pass
            except BaseException as reason:
                failures.append(reason)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.02)
        plane.close()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
        assert not failures
        assert plane._ended


def test_close_is_idempotent_and_final() -> None:
    plane = dmaplane.open(plane="embedded")
    plane.close()
    plane.close()
    with pytest.raises(dmaplane.ClosedError), plane:
        pass

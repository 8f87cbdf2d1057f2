# SPDX-License-Identifier: MIT
"""Signals, forked children, and other processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable

import pytest

import dmaplane


class StoppedError(Exception):
    """What a signal handler raises."""


def _in_fork(body: Callable[[], None]) -> None:
    """Runs @body in a forked child; its failure is ours."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(read)
            signal.alarm(30)
            body()
            status = 0
        except BaseException as reason:
            os.write(write, f"{type(reason).__name__}: {reason}".encode()[:2000])
        finally:
            os._exit(status)
    os.close(write)
    said = b""
    while part := os.read(read, 4096):
        said += part
    os.close(read)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, said.decode()


def test_interrupted_wait_ends_at_once(plane: dmaplane.Plane) -> None:
    def stop(*_: object) -> None:
        raise StoppedError

    before = signal.signal(signal.SIGUSR1, stop)
    try:
        with plane.channel() as channel:
            timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1))
            timer.start()
            began = time.monotonic()
            with pytest.raises(StoppedError):
                plane.wait(timeout=20)
            assert time.monotonic() - began < 2
            timer.join()
            assert channel.nop().wait(timeout=5).ok
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_signals_lose_no_completion(plane: dmaplane.Plane) -> None:
    """A handler that raises, at random moments, between any two steps of wait()."""

    armed = [False]

    def stop(*_: object) -> None:
        if armed[0]:
            armed[0] = False
            raise StoppedError

    before = signal.signal(signal.SIGALRM, stop)
    interrupted = 0
    try:
        with plane.channel(slots=64) as channel:
            signal.setitimer(signal.ITIMER_REAL, 0.0007, 0.0007)
            limit = time.monotonic() + 2.0
            while time.monotonic() < limit:
                running: list[dmaplane.Operation] = []
                try:
                    armed[0] = True
                    for _ in range(8):
                        running.append(channel.nop())
                    for operation in running:
                        operation.wait(timeout=10)
                except StoppedError:
                    interrupted += 1
                armed[0] = False
                for operation in running:
                    assert operation.wait(timeout=10).ok
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert channel.nop().wait(timeout=5).ok
            channel.close(drain=True, timeout=10)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 20


def test_keyboard_interrupt_stops_a_wait() -> None:
    # A shell's background job is started with SIGINT ignored, and hands that down.
    code = textwrap.dedent(
        """
        import signal
        import dmaplane
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with dmaplane.open() as plane, plane.channel() as ch:
            src, dst = plane.buffer(64 << 20), plane.buffer(64 << 20)
            with src, dst:
                print("ready", flush=True)
                try:
                    while True:
                        ch.copy(dst, src).wait()
                except KeyboardInterrupt:
                    print("interrupted", flush=True)
        """
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(0.1)
        began = time.monotonic()
        child.send_signal(signal.SIGINT)
        assert child.stdout.read() == "interrupted\n"
        assert child.wait(10) == 0
        assert time.monotonic() - began < 5


def test_forked_child_must_open_its_own(plane: dmaplane.Plane, channel: dmaplane.Channel) -> None:
    buffer = plane.buffer(4096)
    array = buffer.numpy()

    def body() -> None:
        for act in (
            lambda: plane.buffer(1),
            lambda: channel.nop(),
            lambda: buffer.numpy(),
            plane.statistics,
        ):
            with pytest.raises(dmaplane.ClosedError, match="opens its own"):
                act()
        channel.close()
        buffer.close()
        plane.close()
        with dmaplane.open() as mine, mine.channel() as ch, mine.buffer(4096) as own:
            own.numpy()[:] = 5
            assert ch.nop().wait(timeout=5).ok

    _in_fork(body)
    array[:] = 9
    assert channel.nop().wait(timeout=5).ok
    del array
    buffer.close()
    assert plane.statistics().buffers == 0


def test_view_that_dies_in_a_forked_child_does_no_harm(plane: dmaplane.Plane) -> None:
    buffer = plane.buffer(4096)
    views = [buffer.numpy()]
    buffer.close()
    _in_fork(views.clear)
    assert plane.statistics().buffers == 1
    views[0][:] = 1
    views.clear()
    assert plane.statistics().buffers == 0


def test_buffer_goes_to_another_process_by_socket(plane: dmaplane.Plane) -> None:
    ours, theirs = socket.socketpair()
    buffer = plane.buffer(1 << 20)

    def body() -> None:
        _, fds, _, _ = socket.recv_fds(theirs, 16, 1)
        with dmaplane.open(plane=plane.name) as mine, mine.import_buffer(fds[0]) as twin:
            twin.numpy()[:] = 0x42
        os.close(fds[0])

    with buffer, buffer.export() as export:
        socket.send_fds(ours, [b"buffer"], [export.fd])
        _in_fork(body)
        assert (buffer.numpy() == 0x42).all()
    ours.close()
    theirs.close()


def test_fds_do_not_leak() -> None:
    with dmaplane.open():
        pass
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        with dmaplane.open() as plane:
            with plane.buffer(4096) as buffer, buffer.export() as export:
                plane.import_buffer(export).close()
            with plane.channel():
                pass
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_forgotten_channel_costs_no_fd_after_the_plane_is_closed() -> None:
    with dmaplane.open():
        pass
    before = len(os.listdir("/proc/self/fd"))
    with dmaplane.open() as plane:
        for _ in range(5):
            plane.channel(slots=4)
    assert len(os.listdir("/proc/self/fd")) == before

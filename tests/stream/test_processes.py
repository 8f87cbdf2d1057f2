# SPDX-License-Identifier: MIT
"""A forked child has no stream: the threads are its parent's, and it is told so."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import warnings

import pytest
from ground import Ground

import dmaplane
from dmaplane import ClosedError
from dmaplane.stream import HostPool, Registration, open_device
from dmaplane.stream._pool import PIECE_BYTES_MIN


def _in_child(ground: Ground, stream, operation, event) -> int:
    """How many things were not refused."""
    wrong = 0
    uses = (
        lambda: stream.copy(ground.up(0, 16)),
        stream.record,
        stream.synchronize,
        stream.statistics,
        lambda: operation.wait(5),
        lambda: event.wait(5),
        lambda: stream.cancel(operation),
        lambda: ground.device.memory(4096),
        ground.device.lane,
    )
    for use in uses:
        try:
            use()
            wrong += 1
        except ClosedError:
            pass
    assert stream.closed
    assert ground.device.closed
    stream.close()
    ground.memory.close()
    ground.device.close()
    return wrong


def test_a_forked_child_is_refused_and_its_parent_goes_on(ground: Ground) -> None:
    if ground.device.name != "sim":
        pytest.skip("missing-feature: a process that uses this device is not forked")
    gate = threading.Event()

    def choose(*_: object) -> str:
        gate.wait(30)
        return "single"

    content = ground.random(1)
    with ground.stream(choose=choose) as stream:
        operation = stream.copy(ground.up(0, 4096))
        event = stream.record()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            status = 99
            try:
                signal.alarm(20)
                status = _in_child(ground, stream, operation, event)
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        gate.set()
        operation.wait(30)
        event.wait(30)
    assert (ground.seen()[:4096] == content[:4096]).all()


def _pool_in_child(pool: HostPool, registration: Registration) -> int:
    """How many things were not refused; locks of the parent's threads are held for ever here."""
    wrong = 0
    try:
        pool.extent(16)
        wrong += 1
    except ClosedError:
        pass
    assert pool.closed
    with contextlib.suppress(ClosedError), pool:
        wrong += 1
    pool.close()
    registration.close()
    return wrong


def test_a_forked_child_does_not_wait_for_what_the_parents_threads_had() -> None:
    with (
        dmaplane.open(plane="embedded") as plane,
        open_device("sim") as device,
        HostPool(plane, device, PIECE_BYTES_MIN) as pool,
        plane.buffer(4096) as buffer,
        Registration(device, buffer) as registration,
    ):
        with pool._lock, registration._lock, warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
            if child == 0:
                status = 99
                try:
                    signal.alarm(20)
                    status = _pool_in_child(pool, registration)
                finally:
                    os._exit(status)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        with pool.extent(16):
            pass

# SPDX-License-Identifier: MIT
"""How a cuda device ends: kernels that hang, and close() under others. Cases as in cuda_cases.py.

    python cuda_endings.py NAME

The stand-in for the driver ends the process where a driver would wait for ever.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from cuda_cases import leaks, raises
from ground import LENGTH, Ground

from dmaplane import ClosedError, DeviceLostError, DmaplaneError
from dmaplane.stream import Copies, open_device
from dmaplane.stream.cuda._ceiling import burn_seconds
from dmaplane.stream.cuda._entries import Entries


def hung() -> None:
    """A kernel that never ends: who waits for it is told so, and nothing is freed under it."""
    device = open_device("cuda", patience_s=0.2)
    ground = Ground(device)
    lane = device.lane()
    lane.execute("kernel", "h2d", ground.up(0, 4096))
    mark = lane.mark()
    assert not mark.wait(0.01)
    stream = ground.stream(require="single")
    stream.copy(ground.up(0, 4096)).wait(30)  # what does not wait for it goes on
    raises(DeviceLostError, lane.drain, "patience_s", "cuda:0", "until this process ends")
    raises(DeviceLostError, mark.reached, "patience_s")
    raises(DeviceLostError, lambda: mark.wait(None), "patience_s")
    raises(DeviceLostError, lambda: stream.copy(ground.up(0, 4096)).wait(30), "patience_s")
    raises(DeviceLostError, device.lane, "patience_s")
    raises(DeviceLostError, lambda: device.memory(4096), "patience_s")
    stream.close()
    lane.close()
    ground.close()
    device.close()
    assert device.closed


def hung_at_close() -> None:
    """The same, and nobody waits before close() does: it ends, and leaves all as it is."""
    for end in ("lane", "device"):
        device = open_device("cuda", patience_s=0.2)
        ground = Ground(device)
        lane = device.lane()
        lane.execute("staged", "d2h", ground.down(0, 64 << 10))
        if end == "lane":
            lane.close()
            raises(DeviceLostError, device.lane, "patience_s")
        device.close()
        assert device.closed
        assert "patience_s" in str(device._lost)  # type: ignore[attr-defined]
        os.environ["STAND_IN_HANG"] = "2"


def hung_ring() -> None:
    """A launch that needs the room of one that never ends is the end of the device."""
    with open_device("cuda", patience_s=0.2, descriptor_bytes=64 << 10) as device:
        ground = Ground(device)
        order = np.random.default_rng(5).permutation(LENGTH // 64) * 64
        lane = device.lane()
        lists = Copies.many(ground.there + order, ground.at + order[::-1], 64)
        raises(DeviceLostError, lambda: lane.execute("kernel", "h2d", lists), "patience_s")
        lane.close()


def hung_ceiling() -> None:
    """What is measured ends, too."""
    with open_device("cuda", patience_s=0.2) as device:
        raises(
            DeviceLostError,
            lambda: burn_seconds(device, groups=1, turns=1),  # type: ignore[arg-type]
            "patience_s",
        )


def _held(patience_s: float) -> tuple[Ground, Any, Any, threading.Event]:
    """A ground, a stream and its copy, which is inside execute() until the event is set."""
    entered, gate, up = threading.Event(), threading.Event(), Entries.up

    def slow(self: Entries, **given: Any) -> int:
        entered.set()
        assert gate.wait(60)
        return up(self, **given)

    device = open_device("cuda", patience_s=patience_s)
    ground = Ground(device)
    stream = ground.stream(require="single")
    Entries.up = slow  # type: ignore[method-assign]
    operation = stream.copy(ground.up(0, 4096))
    assert entered.wait(60)
    Entries.up = up  # type: ignore[method-assign]
    return ground, stream, operation, gate


def closing() -> None:
    """close() of a device waits for the call another thread has under way on a lane of it."""
    ground, stream, operation, gate = _held(60)
    device: Any = ground.device
    closer = threading.Thread(target=device.close)
    closer.start()
    while not device._ending:
        time.sleep(0.001)
    closer.join(0.1)
    assert closer.is_alive()
    assert not device.closed
    raises(ClosedError, device.lane, "being closed")
    raises(ClosedError, lambda: device.memory(4096), "being closed")
    gate.set()
    closer.join(60)
    assert device.closed
    try:
        operation.wait(60)
    except DmaplaneError:
        pass  # what it asked of the lane next may have come too late
    stream.close()
    assert leaks() == 0


def closing_stuck() -> None:
    """A call that never comes back does not hold close() for ever; nothing is freed then."""
    ground, stream, operation, gate = _held(0.2)
    device: Any = ground.device
    device.close()
    assert device.closed
    assert "patience_s" in device._lost
    assert leaks() == 1
    gate.set()
    raises(DmaplaneError, lambda: operation.wait(60))
    stream.close()


def closing_busy() -> None:
    """Threads that ask for marks all the time notice a close(), and it is safe from them."""
    device: Any = open_device("cuda")
    lane = device.lane()
    marks = [lane.mark() for _ in range(8)]
    told: list[BaseException] = []

    def ask() -> None:
        try:
            while True:
                for mark in marks:
                    mark._reached = False
                    mark.reached()
        except BaseException as error:
            told.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    device.close()
    for thread in threads:
        thread.join(60)
    assert [type(error) for error in told] == [ClosedError] * 3, told
    assert leaks() == 0


if __name__ == "__main__":
    globals()[sys.argv[1]]()

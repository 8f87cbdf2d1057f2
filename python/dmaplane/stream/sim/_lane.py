# SPDX-License-Identifier: MIT
"""A lane of the simulated device: an ordered queue, a thread that empties it, and its clock.

Whatever is put in is done in order: copies by a channel of the device's plane, marks by being
reached, joins by waiting for another lane's mark.

The clock is the model's. Paced, it is this machine's monotonic time: a copy begins when it was
put in or when what is before it has ended, and has not ended before the model says so. Not
paced, it counts from 0 what copies cost and nothing else, so it is the same each time.

The lock guards the queue and `_ending`. All else belongs to the lane's thread.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import threading
import time
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from dmaplane import _abi
from dmaplane._errors import ClosedError, CopyError, DmaplaneError, InvalidError

if TYPE_CHECKING:
    import numpy.typing as npt

    from dmaplane._buffer import Buffer
    from dmaplane.stream._copies import Copies, Direction
    from dmaplane.stream._device import Marker, TierName
    from dmaplane.stream.sim._device import SimDevice
    from dmaplane.stream.sim._memory import Backing

SLOT_BYTES: Final = 8 << 20
"""What `staged` gathers before it crosses."""
_ROWS: Final = 4096
"""Slots of the channel."""
_PART: Final = 1 << 16
"""Copies made into rows at a time."""
_LOOK_S: Final = 0.05


class SimMarker:
    """A place in a lane of the simulated device."""

    __slots__ = ("_done", "_error", "_time", "never", "put_s")

    def __init__(self, put_s: float) -> None:
        self.put_s = put_s
        self.never = False
        """Once it is settled: what is before it was left out, so it never comes."""
        self._done = threading.Event()
        self._error: DmaplaneError | None = None
        self._time = 0.0

    def settle(self, at: float, error: DmaplaneError | None) -> None:
        """It is reached, or never will be. By the lane's thread, once."""
        self._time, self._error = at, error
        self._done.set()

    @property
    def clock_s(self) -> float:
        """When it was reached, by the device's clock."""
        return self._time

    def settled(self, timeout: float) -> bool:
        """True once it is reached or never will be; raises nothing."""
        return self._done.wait(timeout)

    def reached(self) -> bool:
        """True once all before it has ended; raises what failed."""
        return self.wait(0)

    def wait(self, timeout: float | None) -> bool:
        """Blocks until it is reached, at most @timeout seconds; raises what failed."""
        if not self._done.wait(timeout):
            return False
        if self._error is not None:
            raise self._error.with_traceback(None)
        return True

    def seconds_since(self, earlier: Marker) -> float:
        """Seconds of the model between @earlier and this."""
        if not isinstance(earlier, SimMarker):
            raise InvalidError("earlier", f"{earlier!r}", fix="a mark of the same device")
        if not (self._done.is_set() and earlier._done.is_set()):
            raise InvalidError("earlier", "not both are reached", fix="wait() for both first")
        return self._time - earlier._time


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Work:
    tier: TierName
    direction: Direction
    copies: Copies
    number: int
    put_s: float


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Join:
    marker: SimMarker


class SimLane:
    """An ordered queue on the simulated device. Made by SimDevice.lane()."""

    def __init__(self, device: SimDevice) -> None:
        self._device = device
        self._queue: collections.deque[_Work | _Join | SimMarker] = collections.deque()
        self._lock = threading.Condition()
        self._ending = False
        self._clock = 0.0
        self._failure: CopyError | None = None
        self._barred: CopyError | None = None  # why nothing is copied any more
        self._skipped = False  # something was left out
        self._staging: Buffer | None = None
        self._channel = device.plane.channel(slots=_ROWS)
        self._thread = threading.Thread(target=self._run, name="dmaplane-sim-lane", daemon=True)
        self._thread.start()

    def _put(self, what: _Work | _Join | SimMarker) -> None:
        with self._lock:
            if self._ending:
                raise ClosedError("this lane of sim is closed")
            self._queue.append(what)
            self._lock.notify()

    def execute(self, tier: TierName, direction: Direction, copies: Copies) -> None:
        """Puts @copies at the end."""
        device = self._device
        device._check_lost()
        device._row(tier)
        number = device._begin(self, direction)
        try:
            self._put(_Work(tier, direction, copies, number, time.monotonic()))
        except ClosedError:
            device._end(self, direction)
            raise

    def mark(self) -> SimMarker:
        """A mark after all that is in it now."""
        made = SimMarker(time.monotonic())
        self._put(made)
        return made

    def wait_for(self, what: Any) -> None:
        """@what: a mark of this device."""
        if not isinstance(what, SimMarker):
            raise InvalidError(
                "what", f"{type(what).__name__} is nothing sim can wait for", fix="a mark of it"
            )
        self._put(_Join(what))

    def wake(self) -> None:
        """Something has changed that its thread may be waiting for."""
        with self._lock:
            self._lock.notify_all()

    def close(self) -> None:
        """What has begun ends; marks not reached raise ClosedError. Idempotent."""
        with self._lock:
            self._ending = True
            self._lock.notify_all()
        ours = self._thread is threading.current_thread()
        if not ours:
            self._thread.join()
        with contextlib.ExitStack() as last_first:  # all of it, whatever one of them raises
            last_first.callback(self._device._leave, self)
            if not ours:
                if self._staging is not None:
                    last_first.callback(self._staging.close)
                last_first.callback(self._channel.close)

    # The lane's thread.

    def _run(self) -> None:
        while True:
            with self._lock:
                while not self._queue and not self._ending:
                    self._lock.wait()
                if not self._queue:
                    return
                what = self._queue.popleft()
            if isinstance(what, SimMarker):
                self._reach(what)
            elif isinstance(what, _Join):
                self._join(what.marker)
            else:
                try:
                    self._work(what)
                except DmaplaneError as failure:
                    self._failure = CopyError(f"sim: call {what.number}: {failure}")
                except Exception as broken:  # of ours: nothing it says can be believed any more
                    self._device.lose(f"call {what.number} broke it: {broken!r}")
                finally:
                    self._device._end(self, what.direction)

    def _reach(self, marker: SimMarker) -> None:
        failure: DmaplaneError | None = self._failure
        self._failure = None
        lost = self._device.lost
        if lost is not None:
            failure = lost
        elif self._ending:
            failure = ClosedError("this lane of sim was closed before the mark was reached")
        if self._device.paced:
            self._clock = max(self._clock, marker.put_s)
        marker.never = self._skipped
        marker.settle(self._clock, failure)

    def _join(self, marker: SimMarker) -> None:
        while not marker.settled(_LOOK_S):
            if self._ending or self._device.lost is not None:
                return
        if marker.never:
            # What was to come before the mark was left out: what is behind may not run as if not.
            self._barred = CopyError("sim: the mark it waits for never comes; its lane was closed")
        self._clock = max(self._clock, marker.clock_s)

    def _work(self, work: _Work) -> None:
        device = self._device
        if self._barred is not None:
            self._skipped = True
            raise self._barred.with_traceback(None)
        if work.number == device.faults.lose:
            device.lose(f"call {work.number} lost it, as ordered")
        with self._lock:
            while device._stalled(work.number) and not self._ending:
                self._lock.wait()
            if self._ending or device.lost is not None:
                self._skipped = True
                return  # the mark behind it says so
        if device.paced:
            self._clock = max(self._clock, work.put_s)
        end = self._clock + device._row(work.tier).seconds(
            work.copies,
            work.direction,
            two_ways=device._two_ways(self, work.direction),
            busy=device.busy(),
        )
        failing = work.number in device.faults.fail
        copies = work.copies
        if work.tier == "batch":
            copies = device.registry.cut(copies.merged())
        if work.tier == "staged" and not failing:
            self._stage(copies, work.direction)
        else:
            self._copy(self._rows(copies), copies.count // 2 if failing else copies.count)
        if device.paced:
            with self._lock:
                while not self._ending and device.lost is None:
                    left = end - time.monotonic()
                    if left <= 0:
                        break
                    self._lock.wait(left)
            end = max(end, time.monotonic())
        self._clock = end
        if failing:
            raise CopyError("it failed half way, as ordered")

    def _rows(self, copies: Copies) -> npt.NDArray[np.void]:
        """What a channel takes: by buffer and offset."""
        rows = np.zeros(copies.count, dtype=_abi.SUBMISSION)
        rows["operation"] = _abi.OP_COPY
        rows["length_bytes"] = copies.lengths
        for name, addresses in (("source", copies.sources), ("target", copies.destinations)):
            which, offsets, ranges = self._device.registry.locate(addresses)
            backings = (cast("Backing", one.owner) for one in ranges)
            ids = np.fromiter((one.id for one in backings), dtype=np.uint32, count=len(ranges))
            rows[f"{name}_id"] = ids[which]
            rows[f"{name}_offset"] = offsets
        return rows

    def _copy(self, rows: npt.NDArray[np.void], count: int) -> None:
        for start in range(0, count, _PART):
            done = self._channel.submit(rows[start : min(start + _PART, count)])
            bad = done["result"] != 0
            if bool(bad.any()):
                first = int(bad.argmax())
                raise CopyError(f"the plane answered {int(done['result'][first])}")

    def _stage(self, copies: Copies, direction: Direction) -> None:
        """Gathers in the device and crosses in one piece a slot; or crosses, then scatters."""
        if self._staging is None:
            self._staging = self._device.plane.buffer(SLOT_BYTES)
        near, far = ("source", "target") if direction == "h2d" else ("target", "source")
        rows = self._rows(copies)
        host = copies.side("source" if direction == "h2d" else "destination")
        order = np.argsort(host, kind="stable")
        rows = rows[order]
        lengths = rows["length_bytes"]
        ends = np.cumsum(lengths)
        first = 0
        while first < len(rows):  # once a slot
            base = int(ends[first] - lengths[first])
            last = int(np.searchsorted(ends, np.uint64(base + SLOT_BYTES), side="right"))
            elsewhere = rows[f"{near}_id"][first:last] != rows[f"{near}_id"][first]
            if bool(elsewhere.any()):
                last = first + int(elsewhere.argmax())  # where another registration begins
            part = rows[first:last]
            crossing = part[:1].copy()
            crossing["length_bytes"] = part["length_bytes"].sum()
            crossing[f"{far}_id"], crossing[f"{far}_offset"] = self._staging.id, 0
            part[f"{near}_id"] = self._staging.id
            part[f"{near}_offset"] = ends[first:last] - lengths[first:last] - np.uint64(base)
            for each in (crossing, part) if direction == "h2d" else (part, crossing):
                self._copy(each, len(each))
            first = last

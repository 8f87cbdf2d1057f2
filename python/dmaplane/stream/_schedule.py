# SPDX-License-Identifier: MIT
"""The schedule of a stream: two threads that bring its steps from the caller to their end.

The scheduler takes steps up in order, chooses a tier and puts them in the lane; the completer
waits for their marks, in order, and settles them. A caller only checks, appends and goes on.

Invariants
- A step that is `queued` has touched nothing; taking it back is all there is to its cancel.
- Steps that have begun are settled in their order, each once, and its ranges are let go first.
- At most `ahead` steps have begun and not ended: what is behind can be taken back, and the lane
  always has the next thing to do.
- Once `failed` is set it stays, and nothing is put in the lane any more.
- No copy is settled while it may still be moving: one that is in the lane without a mark behind it
  ends the stream, and the lane is ended before the copy is settled.

Who owns what. The schedule owns its lane and threads; close() ends them. The threads hold the
schedule, not the CopyStream. One lock guards all of the state here and of the steps; the
registry's lock is taken inside it. No device, chooser or callback is called under it.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import threading
import time
from typing import TYPE_CHECKING, Final

from dmaplane._errors import (
    ClosedError,
    CopyError,
    DeviceLostError,
    DmaplaneError,
    InvalidError,
    OperationCancelledError,
    TimedOutError,
    UnsupportedError,
    WouldBlock,
)
from dmaplane.stream._chooser import ByProfile
from dmaplane.stream._device import TIERS, tier_of
from dmaplane.stream._failures import Failures
from dmaplane.stream._operation import Call, Join, Operation, StreamEvent

if TYPE_CHECKING:
    import asyncio
    from typing import Any

    from dmaplane.stream._chooser import Chooser
    from dmaplane.stream._copies import Copies, Direction
    from dmaplane.stream._device import Device, TierName
    from dmaplane.stream._operation import Step

_LOOK_S: Final = 0.05


@dataclasses.dataclass(frozen=True, slots=True)
class StreamStatistics:
    """What a stream has done up to now."""

    submitted: int
    """Calls of copy()."""
    completed: int
    """Of these: done, and the bytes are there."""
    failed: int
    cancelled: int
    in_flight: int
    """Neither."""
    blocks: int
    """Of the completed ones."""
    h2d_bytes: int
    d2h_bytes: int
    seconds: float
    """By the device's clock, of all that completed."""
    tiers: tuple[tuple[TierName, int], ...]
    """How many calls each tier completed."""
    raised: int
    """Callbacks that raised; synchronize() tells what, of 64 at a time."""


def limit_of(timeout: float | None) -> float | None:
    """@timeout as a lock takes it; InvalidError unless it is a time to wait."""
    if timeout is None or timeout > threading.TIMEOUT_MAX:
        return None
    if not timeout >= 0:
        raise InvalidError("timeout", f"{timeout}", fix="seconds >= 0, or None")
    return timeout


class Schedule:
    """The steps of one stream."""

    def __init__(
        self,
        device: Device,
        *,
        choose: Chooser | None,
        require: TierName | None,
        depth: int,
        ahead: int,
    ) -> None:
        """@choose: None for the device's profile."""
        self.device = device
        self.depth = depth
        self.ahead = ahead
        self.failed: Exception | None = None
        self._choose = choose or ByProfile(self._check_going)
        self._require = require
        self._lane = device.lane()
        self._process = os.getpid()
        lock = threading.Lock()
        self._lock = lock
        self._work = threading.Condition(lock)  # the scheduler waits for steps
        self._landed = threading.Condition(lock)  # the completer, for steps in the lane
        self._settled = threading.Condition(lock)  # callers, for the end of steps
        self._queued: collections.deque[Step] = collections.deque()
        self._begun: collections.deque[tuple[Step, Exception | None]] = collections.deque()
        self._undone: dict[int, Step] = {}  # by number, the oldest first
        self._number = 0
        self._flying = 0  # begun, and not done
        self._ending = False
        self._planned = False  # the scheduler has ended
        self._closed = False
        self._failures = Failures()
        self._counts = dict.fromkeys(("submitted", "completed", "failed", "cancelled"), 0)
        self._blocks = 0
        self._bytes: dict[Direction, int] = {"h2d": 0, "d2h": 0}
        self._seconds = 0.0
        self._tiers: dict[TierName, int] = dict.fromkeys(TIERS, 0)
        self._threads = tuple(
            threading.Thread(target=target, name=f"dmaplane-{name}", daemon=True)
            for name, target in (("scheduler", self._schedule), ("completer", self._complete))
        )
        started: list[threading.Thread] = []
        try:
            for thread in self._threads:
                thread.start()
                started.append(thread)
        except BaseException:
            with lock:
                self._ending = True
                self._work.notify_all()
            for thread in started:
                thread.join()
            self._lane.close()
            raise

    # What callers do.

    def check(self) -> None:
        """ClosedError after close(), and in a forked child."""
        if os.getpid() != self._process:
            raise ClosedError("the stream belongs to the process that was forked; open another")
        if self._ending:
            raise ClosedError("the stream is closed")

    @property
    def closed(self) -> bool:
        """True after close(), and in a forked child."""
        return self._ending or os.getpid() != self._process

    def put(self, step: Step, timeout: float | None) -> None:
        """Appends @step; waits while `depth` are in flight."""
        self.check()
        limit = limit_of(timeout)
        end = None if limit is None else time.monotonic() + limit
        with self._lock:
            while True:
                self.check()
                if self.failed is not None:
                    raise self._consequence(self.failed)
                if len(self._undone) < self.depth:
                    break
                if threading.current_thread() in self._threads:
                    raise WouldBlock(
                        f"{self.depth} steps are in flight, and a callback cannot wait for them, "
                        "nor a chooser; a stream of more depth, or another thread"
                    )
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    raise TimedOutError(f"{self.depth} steps are in flight, and none has ended")
                self._settled.wait(left)
            self._accept(step)

    def _accept(self, step: Step) -> None:
        """Under the lock: the step is ours, or, if a signal handler raises, it is not."""
        number = self._number + 1
        try:
            self._undone[number] = step
            self._queued.append(step)
            step.number = self._number = number
        except BaseException:
            self._undone.pop(number, None)
            if self._queued and self._queued[-1] is step:
                self._queued.pop()
            step.number = 0
            raise
        if isinstance(step, Operation):
            self._counts["submitted"] += 1
        self._work.notify()

    def wait_for(self, step: Step, timeout: float | None) -> None:
        """Until @step is done; TimedOutError."""
        if step.done:
            return
        self._check_waiting()
        limit = limit_of(timeout)
        with self._lock:
            if not self._settled.wait_for(lambda: step.done, limit):
                raise TimedOutError(f"{step!r} has not ended in time; it goes on")

    def _check_waiting(self) -> None:
        if os.getpid() != self._process:
            raise ClosedError("the stream belongs to the process that was forked")
        if threading.current_thread() in self._threads:
            raise InvalidError(
                "wait",
                "a callback or a chooser waits for what can only end after it",
                fix="wait in another thread",
            )

    def _check_going(self) -> None:
        """For what takes long on the scheduler's thread."""
        if self._ending:
            raise OperationCancelledError("the stream was closed before a tier was chosen")

    def watch(self, step: Step, future: asyncio.Future[None]) -> bool:
        """Will @future be set when @step is done? Not if it is already."""
        if step.done:
            return False
        if os.getpid() != self._process:
            raise ClosedError("the stream belongs to the process that was forked")
        with self._lock:
            if step.state == "done":  # meanwhile
                return False
            if step._futures is None:
                step._futures = []
            step._futures.append(future)
            return True

    def unwatch(self, step: Step, future: asyncio.Future[None]) -> None:
        """Nobody waits for @future any more."""
        with self._lock:
            if step._futures is not None and future in step._futures:
                step._futures.remove(future)

    def take_back(self, step: Step) -> bool:
        """Cancels @step if it has not begun."""
        with self._lock:
            if step.state != "queued" or self._ending:
                return False
            self._queued.remove(step)
            self._settle(step, OperationCancelledError(f"copy {step.number} was cancelled"))
            return True

    def cancel(self, step: Operation, timeout: float | None) -> bool:
        """Takes it back, or waits until it has ended; was it taken back?"""
        if step._schedule is not self:
            raise InvalidError("operation", "it is another stream's", fix="that one's cancel()")
        if step.done:
            return False
        if os.getpid() == self._process and self.take_back(step):
            return True
        self.wait_for(step, timeout)
        return False

    def order(self, event: StreamEvent, foreign: Any) -> None:
        """StreamEvent.before()."""
        if os.getpid() != self._process:
            raise ClosedError("the stream belongs to the process that was forked")
        if not event.placed(0):
            # The scheduler may be waiting for the callback that asks, to put more in the lane.
            self._check_waiting()
        while not event.placed(_LOOK_S):
            pass  # it is placed by the scheduler, or settled by close()
        if event.done and event._error is None:
            return  # it has come: whatever is put anywhere from now on is after it
        if event._marker is None:
            raise InvalidError(
                "event", f"it never comes: {event._error}", fix="one of a stream that goes on"
            )
        self.device.follow(foreign, event._marker)

    def synchronize(self, timeout: float | None) -> None:
        """CopyStream.synchronize()."""
        self.check()
        self._check_waiting()
        limit = limit_of(timeout)
        with self._lock:
            last = self._number
            if not self._settled.wait_for(lambda: self._oldest() > last, limit):
                raise TimedOutError(f"{len(self._undone)} steps have not ended in time; they go on")
            owed: Exception | None = self._failures.raised()
            if owed is None and self.failed is not None:
                owed = self._consequence(self.failed)
            elif owed is None:
                owed = self._failures.of_copies()
        if owed is not None:
            raise owed

    def told(self, step: Operation) -> None:
        """Somebody has asked for its error."""
        step._told = True
        if os.getpid() == self._process:  # a fork may have inherited the lock as it was held
            with self._lock:
                self._failures.told(step)

    def _oldest(self) -> int:
        return next(iter(self._undone), self._number + 1)

    def statistics(self) -> StreamStatistics:
        """CopyStream.statistics()."""
        with self._lock:
            counts = self._counts
            ended = counts["completed"] + counts["failed"] + counts["cancelled"]
            return StreamStatistics(
                submitted=counts["submitted"],
                completed=counts["completed"],
                failed=counts["failed"],
                cancelled=counts["cancelled"],
                in_flight=counts["submitted"] - ended,
                blocks=self._blocks,
                h2d_bytes=self._bytes["h2d"],
                d2h_bytes=self._bytes["d2h"],
                seconds=self._seconds,
                tiers=tuple((name, count) for name, count in self._tiers.items() if count),
                raised=self._failures.callbacks,
            )

    def close(self, timeout: float | None) -> None:
        """CopyStream.close()."""
        if os.getpid() != self._process or self._closed:
            return
        if threading.current_thread() in self._threads:
            raise InvalidError("close", "a callback cannot end its stream", fix="another thread")
        limit = limit_of(timeout)
        end = None if limit is None else time.monotonic() + limit
        with self._lock:
            self._ending = True
            while self._queued:
                step = self._queued.popleft()
                self._settle(
                    step,
                    OperationCancelledError(f"step {step.number}: the stream was closed before it"),
                )
            self._work.notify_all()
            self._settled.notify_all()
        for thread in self._threads:
            thread.join(None if end is None else max(0.0, end - time.monotonic()))
            if thread.is_alive():
                raise TimedOutError(
                    f"{len(self._undone)} steps have begun and not ended in time; "
                    "close() again waits on"
                )
        self._closed = True
        self._lane.close()
        with self._lock:
            owed = self._failures.raised() or self._failures.of_copies()
        if owed is not None:
            raise owed

    # The scheduler's thread.

    def _schedule(self) -> None:
        try:
            self._plan()
        finally:  # whatever ends it, the completer does not wait for more
            with self._lock:
                self._planned = True
                self._landed.notify()

    def _plan(self) -> None:
        while True:
            with self._lock:
                while not self._ending and (not self._queued or self._flying >= self.ahead):
                    self._work.wait()
                if not self._queued:
                    return
                step = self._queued.popleft()
                step.state = "begun"
                self._flying += 1
                failed = self.failed
            error: Exception | None = None if failed is None else self._consequence(failed)
            if error is None:
                error = self._place(step)
            with self._lock:
                self._begun.append((step, error))
                self._landed.notify()

    def _place(self, step: Step) -> Exception | None:
        """Puts @step in the lane; why that failed."""
        try:
            if isinstance(step, Operation):
                return self._start(step)
            if isinstance(step, StreamEvent):
                step._marker = self._lane.mark()
                step._placed.set()
            elif isinstance(step, Join):
                self._join(step.what)
        except (DeviceLostError, ClosedError) as lost:
            return self._fail(lost)
        except DmaplaneError as failure:
            if isinstance(step, Operation) or self._ending:
                return failure
            return self._fail(failure)  # order is lost, and with it what is behind
        except BaseException as unknown:  # the device's, and nobody knows what holds after it
            return self._fail(unknown)
        return None

    def _start(self, step: Operation) -> Exception | None:
        copies, direction = step._copies, step.direction
        assert copies is not None
        name = step._require or self._require or self._chosen(copies, direction)
        refusal = tier_of(self.device, name).refusal(copies, direction)
        if refusal:
            raise UnsupportedError(f"tier {name} for this copy", f"another tier ({refusal})")
        step.tier = name
        step._first = self._lane.mark()
        put = False
        try:
            self._lane.execute(name, direction, copies)
            put = True
            step._marker = self._lane.mark()
        except BaseException as error:
            if isinstance(error, DmaplaneError) and not put:
                raise  # nothing of it moves then: Lane.execute()
            return self._strand(step, error)
        return None

    def _strand(self, step: Operation, error: BaseException) -> Exception:
        """@step may be in the lane, and no mark behind it will say when it has ended.

        So the stream ends, and the lane at once: with it the copy does, before it is settled and
        its ranges are let go. If the lane cannot be ended, they stay held while the device is open.
        """
        failed = self._fail(error)
        try:
            self._lane.close()
        except BaseException:
            step.keep()
        return failed

    def _chosen(self, copies: Copies, direction: Direction) -> TierName:
        try:
            return self._choose(copies, direction, self.device)
        except DmaplaneError:
            raise
        except BaseException as failure:  # an exit, too: this thread is not whose it is
            raise CopyError(f"no tier was chosen: {failure!r}") from failure

    def _join(self, what: object) -> None:
        if not isinstance(what, StreamEvent):
            self._lane.wait_for(what)
            return
        while not what.placed(_LOOK_S):
            if self._ending:
                raise OperationCancelledError("the stream was closed while it waited")
        marker = what._marker
        if marker is None:
            raise CopyError(f"the event it waits for never comes: {what._error}")
        if what._schedule.device is self.device:
            self._lane.wait_for(marker)
            return
        try:
            while not marker.wait(_LOOK_S):
                if self._ending:
                    raise OperationCancelledError("the stream was closed while it waited")
        except CopyError:
            pass  # that copy's own; an event is about order

    def _fail(self, given: BaseException) -> Exception:
        """The stream ends with @given, unless it has ended already."""
        error = given if isinstance(given, Exception) else CopyError(f"it ended by {given!r}")
        with self._lock:
            if self.failed is not None:
                return self._consequence(self.failed)
            self.failed = error
            self._settled.notify_all()
        return error

    @staticmethod
    def _consequence(failed: Exception) -> DmaplaneError:
        made: DmaplaneError
        if isinstance(failed, DeviceLostError):
            made = DeviceLostError(failed.device, failed.cause)
        else:
            made = CopyError(f"the stream has ended: {failed}")
        made.__cause__ = failed
        return made

    # The completer's thread.

    def _complete(self) -> None:
        while True:
            with self._lock:
                while not self._begun and not self._planned:
                    self._landed.wait()
                if not self._begun:
                    return
                step, error = self._begun.popleft()
            if error is None:
                error = self._finish(step)
            with self._lock:
                self._settle(step, error)

    def _finish(self, step: Step) -> Exception | None:
        """Waits until @step has ended; what it failed of."""
        if isinstance(step, Call):
            if self.failed is not None:
                return self._consequence(self.failed)
            try:
                step.function()
            except BaseException as raised:
                with self._lock:
                    self._failures.add_raised(raised)
            return None
        marker = step._marker
        if marker is None:
            return None
        try:
            while not marker.wait(1.0):
                pass
            if isinstance(step, Operation) and step._first is not None:
                step.seconds = marker.seconds_since(step._first)
        except CopyError as failure:
            return failure if isinstance(step, Operation) else None  # an event is about order
        except Exception as lost:
            return self._fail(lost)
        return None

    def _settle(self, step: Step, error: Exception | None) -> None:
        """Under the lock: @step has ended."""
        if isinstance(step, Operation):
            self._count(step, error)
        if step.state == "begun":
            self._flying -= 1
            self._work.notify()
        step._error = error
        step.release()
        step.state = "done"
        del self._undone[step.number]
        step.wake()
        self._settled.notify_all()

    def _count(self, step: Operation, error: Exception | None) -> None:
        if isinstance(error, OperationCancelledError):
            self._counts["cancelled"] += 1
        elif error is not None:
            self._counts["failed"] += 1
            if self.failed is None:
                self._failures.add(step)
        else:
            self._counts["completed"] += 1
            self._blocks += step.count
            self._bytes[step.direction] += step.bytes
            self._seconds += step.seconds or 0.0
            if step.tier is not None:
                self._tiers[step.tier] += 1

# SPDX-License-Identifier: MIT
"""A copy stream: copies between host memory and a device's, asynchronous and in order.

What holds (L: the same on every device):
- Steps of a stream take effect in the order they were given; the blocks of one copy have no
  order among themselves. Streams have no order but by events.
- copy() checks all of it first: an address outside, or a tier that cannot, is raised there, and
  nothing was started.
- A copy that fails has its own error, and the stream goes on. A device that is lost ends the
  stream: that copy and each after it carries the cause.
- cancel() is a fence: when it returns, no byte of that copy changes any more.
- Ranges a copy touches cannot be released before it has ended.

The stream is its caller's; what it does is its schedule's (_schedule.py). Thread-safe.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Final

from dmaplane._errors import CallbackError, CopyError, InvalidError, UnsupportedError
from dmaplane._scope import Scope
from dmaplane.stream._device import tier_of
from dmaplane.stream._operation import Call, Join, Operation, StreamEvent
from dmaplane.stream._schedule import Schedule

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from dmaplane.stream._chooser import Chooser
    from dmaplane.stream._copies import Copies
    from dmaplane.stream._device import Device, Tier, TierName
    from dmaplane.stream._schedule import StreamStatistics

DEPTH_MAX: Final = 1 << 16


class CopyStream(Scope):
    """An ordered stream of copies on @device. Use it in a `with` block.

    @choose: which tier a copy takes; by default the one that costs least by this device's
    profile, which the first copy measures where none is kept: two seconds, once for all streams
    of the device; where it cannot be measured a CalibrationWarning says so, and the copy goes.
    @require: the only tier there is for this stream; UnsupportedError with the reason where it is
    not there.
    @depth: steps in flight before copy() waits. @ahead: of these, how many are in the device's
    queue; what is not yet there can be cancelled at once.
    """

    __slots__ = ("__weakref__", "_schedule", "device", "require")

    def __init__(
        self,
        device: Device,
        *,
        choose: Chooser | None = None,
        require: TierName | None = None,
        depth: int = 1024,
        ahead: int = 32,
    ) -> None:
        if not 1 <= depth <= DEPTH_MAX:
            raise InvalidError("depth", f"{depth}", fix=f"1 .. {DEPTH_MAX} steps")
        if not 1 <= ahead <= DEPTH_MAX:
            raise InvalidError("ahead", f"{ahead}", fix=f"1 .. {DEPTH_MAX} steps")
        if require is not None:
            _there(device, require)
        self.device = device
        self.require = require
        self._schedule = Schedule(device, choose=choose, require=require, depth=depth, ahead=ahead)

    def copy(
        self, copies: Copies, *, require: TierName | None = None, timeout: float | None = None
    ) -> Operation:
        """Appends @copies and returns; the caller's arrays may be reused at once.

        @require: this tier or UnsupportedError. @timeout: seconds to wait for room, if `depth`
        steps are in flight; TimedOutError.
        Raises NotFoundError for an address that is not registered, InvalidError for copies
        that are not all one way or write a byte twice. Costs some searches over the arrays.
        """
        self._schedule.check()
        hold = self.device.registry.hold(copies)
        operation = None
        try:
            name = require or self.require
            if name is not None:
                refusal = _there(self.device, name).refusal(copies, hold.direction)
                if refusal:
                    raise UnsupportedError(
                        f'require="{name}" for this copy', f"another tier ({refusal})"
                    )
            operation = Operation(self._schedule, copies, hold, name)
            self._schedule.put(operation, timeout)
        except BaseException:
            if operation is None or not operation.number:
                hold.release()  # else it was accepted, and lets go when it has ended
            raise
        return operation

    def record(self) -> StreamEvent:
        """An event that comes when all that was given up to now has ended."""
        event = StreamEvent(self._schedule)
        self._schedule.put(event, None)
        return event

    def wait(self, event: StreamEvent) -> None:
        """What is given from now on begins after @event, of any stream.

        Does not wait for it; like every step, for room if `depth` are in flight.

        If that never comes, because its stream has ended before it, this stream ends, too:
        what is behind may not run as if it had.
        """
        if not isinstance(event, StreamEvent):
            raise InvalidError(
                "event", f"{type(event).__name__} is none", fix="record(); after() for your own"
            )
        self._schedule.put(Join(self._schedule, event), None)

    def after(self, foreign: Any) -> None:
        """What is given from now on begins after what is now in @foreign.

        Does not wait for it; like every step, for room if `depth` are in flight.

        @foreign: a stream or event of the caller's own that the device knows: for CUDA an
        object with `__cuda_stream__`, a torch stream; for sim a lane. StreamEvent.before() is
        the other direction.
        """
        self._schedule.check()
        self._schedule.put(Join(self._schedule, self.device.capture(foreign)), None)

    def call(self, function: Callable[[], object]) -> None:
        """Calls @function when all that was given up to now has ended.

        On the stream's own thread, in order with other callbacks; copies behind it do not wait
        for it, but are not done before it. What it raises, synchronize() raises. It may give
        more to the stream, but not wait for it, nor have StreamEvent.before() wait for what is
        not in the lane yet: InvalidError. Not called if the stream ends first.
        """
        if not callable(function):
            raise InvalidError("function", f"{function!r} cannot be called", fix="a function")
        self._schedule.put(Call(self._schedule, function), None)

    def synchronize(self, timeout: float | None = None) -> None:
        """Waits until all that was given up to now has ended.

        Raises what nobody was told yet: why the stream ended, what callbacks raised
        (CallbackError), a copy that failed whose error nobody asked for. TimedOutError after
        @timeout seconds; all goes on.
        """
        self._schedule.synchronize(timeout)

    def cancel(self, operation: Operation, timeout: float | None = None) -> bool:
        """A fence: when it returns, no byte of that copy changes any more.

        True if it was taken back before it began; False if it ran to its end, for which this
        waits. A copy whose tier is being chosen has begun: the first one without `choose` may be
        measuring the device. TimedOutError after @timeout seconds: it still runs.
        """
        return self._schedule.cancel(operation, timeout)

    def statistics(self) -> StreamStatistics:
        """What it has done up to now."""
        self._schedule.check()
        return self._schedule.statistics()

    @property
    def failed(self) -> Exception | None:
        """Why it has ended, if it has: it takes nothing any more."""
        return self._schedule.failed

    @property
    def closed(self) -> bool:
        """True after close(), and in a forked child."""
        return self._schedule.closed

    def _check(self) -> None:
        self._schedule.check()

    def close(self, timeout: float | None = None) -> None:
        """Cancels what has not begun, waits for what has, and ends; idempotent.

        TimedOutError after @timeout seconds: it takes nothing any more, and close() once more
        waits on. Raises what synchronize() would of callbacks, and of copies that failed.
        """
        self._schedule.close(timeout)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except (CallbackError, CopyError):
            if error is None:  # else the error on its way out is what matters
                raise

    def __del__(self) -> None:
        schedule = getattr(self, "_schedule", None)
        if schedule is not None and not schedule.closed:
            warnings.warn(f"{self!r} was never closed", ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        state = "closed" if self.closed else "ended" if self.failed else "open"
        return f"<copy stream on {self.device.name}, {state}>"


def _there(device: Device, name: TierName) -> Tier:
    tier = tier_of(device, name)
    if not tier.available:
        raise UnsupportedError(f"tier {name} on {device.name}", f"another tier ({tier.reason})")
    return tier

# SPDX-License-Identifier: MIT
"""The simulated device: what a device does, over host memory, by a stated cost model.

It is the reference: the bytes are really copied, by a channel of its own embedded plane, and
what has to hold of a stream is tested on it. Its times are a model's, never a measurement:
with `paced` a copy takes as long as the model says (or longer, where this machine is slower
than the model); without, it runs as fast as it can, and marks tell the model's time.

Who owns what. The device owns its plane, memory, registrations and lanes; close() ends lanes
first. The lock guards what lanes share: the count of calls, what is pending each way, the
loss. A lane's own state is its own lock's (_lane.py); lanes take the device's lock inside
theirs, never the other way round.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
import weakref
from typing import TYPE_CHECKING, Any, Final, cast

from dmaplane._embedded import EmbeddedPlane
from dmaplane._errors import ClosedError, CopyError, DeviceLostError, InvalidError
from dmaplane._scope import Scope
from dmaplane.stream._device import BLOCK_MAX, TIERS, Tier
from dmaplane.stream._registry import Registry
from dmaplane.stream.sim._cost import CostModel, TierCost
from dmaplane.stream.sim._faults import Faults
from dmaplane.stream.sim._lane import SLOT_BYTES, SimLane
from dmaplane.stream.sim._memory import Backing, SimMemory, host_backing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dmaplane.stream._copies import Direction
    from dmaplane.stream._device import Marker, TierName
    from dmaplane.stream._registry import Range
    from dmaplane.stream.sim._lane import SimMarker

_NO_CARD: Final = "the simulation has no network card; with_network(device) adds one"


class SimDevice(Scope):
    """A device that is simulated. Made by open_device("sim", ...). Use it in a `with` block.

    @costs: what copies cost; a tier without a row is not there. @paced: copies take as long
    as that says. @faults: what goes wrong. @unavailable: tiers that are not there, and why.
    @node: the NUMA node it claims to be on.
    """

    def __init__(
        self,
        *,
        costs: CostModel | None = None,
        paced: bool = False,
        faults: Faults | None = None,
        unavailable: Mapping[TierName, str] | None = None,
        node: int | None = None,
    ) -> None:
        self.name = "sim"
        self.node = node
        self.costs = costs or CostModel()
        self.paced = paced
        self.faults = faults or Faults()
        self.registry = Registry(self.name)
        self._missing = dict(unavailable or {})
        for name, reason in self._missing.items():
            if name not in TIERS or not reason:
                raise InvalidError(
                    "unavailable", f"{name!r}: {reason!r}", fix=f"{', '.join(TIERS)}: why not"
                )
        self._tiers = tuple(self._tier(name) for name in TIERS)
        self._lock = threading.Lock()
        self._lanes: set[SimLane] = set()
        self._memories: weakref.WeakSet[SimMemory] = weakref.WeakSet()
        self._pending: dict[Direction, dict[SimLane, int]] = {"h2d": {}, "d2h": {}}
        self._calls = 0
        self._busy = False
        self._lost: DeviceLostError | None = None
        self._resumed = 0
        self._open = [True]  # popped by whoever closes it: list.pop() happens once
        self.plane = EmbeddedPlane("of a simulated device")

    @property
    def identity(self) -> str:
        """Changes with the cost model and with the tiers that are there."""
        there = ",".join(tier.name for tier in self._tiers if tier.available)
        return f"sim:{self.costs.digest}:{there}"

    @property
    def closed(self) -> bool:
        """True after close(), and in a forked child."""
        return not self._open or self.plane.closed

    def _check(self) -> None:
        if not self._open:
            raise ClosedError("device sim is closed")
        self.plane._check()

    def _tier(self, name: TierName) -> Tier:
        row = self.costs.of(name)
        reason = self._missing.get(name, "")
        if row is None and not reason:
            reason = _NO_CARD if name == "nic" else "the cost model has no row for it"
        return Tier(
            name,
            available=not reason,
            reason=reason,
            needs_extent=name == "staged",
            merges=name == "batch",
            busy_penalty=1.0 if row is None else row.busy_penalty,
            largest=SLOT_BYTES if name == "staged" else BLOCK_MAX,
        )

    def tiers(self) -> tuple[Tier, ...]:
        """All six, those that are not there with the reason."""
        return self._tiers

    def memory(self, length: int) -> SimMemory:
        """Memory of its own: pinned pages of its plane, zeroed."""
        self._check_lost()
        made = SimMemory(self, length)
        self._memories.add(made)
        return made

    def register(self, address: int, length: int) -> Range:
        """Lets it touch host memory, which has to stay until unregister() or close()."""
        self._check_lost()
        if address <= 0 or length <= 0:
            raise InvalidError(
                "address, length", f"{length} bytes at {address:#x}", fix="memory there is"
            )
        backing = host_backing(self.plane, address, length)
        try:
            return self.registry.register(
                address, length, kind="host", owner=backing, why_text="register()"
            )
        except BaseException:
            backing.close()
            raise

    def unregister(self, given: Range) -> None:
        """Ends that; BusyError while a copy touches it."""
        if given.kind != "host":
            raise InvalidError("given", f"{given}", fix="memory of the device is freed by close()")
        self.registry.release(given)
        cast("Backing", given.owner).close()

    def lane(self) -> SimLane:
        """A new ordered queue, with a channel and a thread behind it."""
        self._check_lost()
        made = SimLane(self)
        with self._lock:
            self._lanes.add(made)
        return made

    def capture(self, foreign: Any) -> SimMarker:
        """A mark of what is now in @foreign: a lane of this device stands for a caller's stream."""
        return self._foreign(foreign).mark()

    def follow(self, foreign: Any, marker: Marker) -> None:
        """What is put in the lane @foreign from now on begins after @marker."""
        self._foreign(foreign).wait_for(marker)

    def _foreign(self, foreign: Any) -> SimLane:
        if not isinstance(foreign, SimLane):
            raise InvalidError(
                "foreign", f"{type(foreign).__name__} is no stream of sim", fix="SimDevice.lane()"
            )
        return foreign

    def busy(self) -> bool:
        """What set_busy() said last."""
        return self._busy

    def set_busy(self, busy: bool) -> None:
        """From now on its processors do something else, too; or not any more."""
        self._busy = busy

    # Faults.

    def lose(self, reason: str = "it was told to") -> None:
        """From now on it is lost, and says so to everybody."""
        with self._lock:
            if self._lost is None:
                self._lost = DeviceLostError(self.name, reason)
        self._wake()

    def resume(self) -> None:
        """What is stalled goes on."""
        with self._lock:
            self._resumed = self._calls
        self._wake()

    def _wake(self) -> None:
        with self._lock:
            lanes = list(self._lanes)
        for lane in lanes:
            lane.wake()

    @property
    def lost(self) -> DeviceLostError | None:
        """Why it is lost, if it is."""
        return self._lost

    def _check_lost(self) -> None:
        self._check()
        if self._lost is not None:
            raise DeviceLostError(self.name, self._lost.cause)

    # For lanes.

    def _begin(self, lane: SimLane, direction: Direction) -> int:
        """One more call; its number. Raises what @faults say."""
        with self._lock:
            self._calls += 1
            number = self._calls
            if number in self.faults.refuse:
                raise CopyError(f"sim: call {number} was refused, as ordered")
            pending = self._pending[direction]
            pending[lane] = pending.get(lane, 0) + 1
            return number

    def _end(self, lane: SimLane, direction: Direction) -> None:
        with self._lock:
            pending = self._pending[direction]
            pending[lane] -= 1
            if not pending[lane]:
                del pending[lane]

    def _two_ways(self, lane: SimLane, direction: Direction) -> bool:
        """Does another lane have something to do the other way?"""
        with self._lock:
            return any(
                other is not lane for other in self._pending["d2h" if direction == "h2d" else "h2d"]
            )

    def _stalled(self, number: int) -> bool:
        return number in self.faults.stall and number > self._resumed and self._lost is None

    def _row(self, name: TierName) -> TierCost:
        row = self.costs.of(name)
        if row is None or name in self._missing:
            raise InvalidError("tier", f"{name} is not there", fix="one of tiers() that is")
        return row

    def _leave(self, lane: SimLane) -> None:
        with self._lock:
            self._lanes.discard(lane)

    def close(self) -> None:
        """Ends lanes, then registrations and memory, then its plane; idempotent."""
        try:
            self._open.pop()
        except IndexError:
            return
        if self.plane.closed:
            return
        with self._lock:
            lanes = list(self._lanes)
        with contextlib.ExitStack() as last_first:  # all of it, whatever interrupts one of them
            last_first.callback(self.plane.close)
            for one in self.registry.ranges:
                last_first.callback(cast("Backing", one.owner).close)
            for lane in lanes:
                last_first.callback(lane.close)

    def __del__(self) -> None:
        if getattr(self, "_open", None) and hasattr(self, "plane") and not self.plane.closed:
            warnings.warn(f"{self!r} was never closed", ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        state = "closed" if self.closed else "lost" if self._lost else f"{self._calls} calls"
        return f"<device sim, {state}>"

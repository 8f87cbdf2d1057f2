# SPDX-License-Identifier: MIT
"""A profile: what each tier of one device costs, measured here, and kept for the next time.

A value. `Profile.of(device)` takes the kept one if it is of this device, driver, link and set of
tiers, else it measures (at most two seconds, _calibration.py) and keeps that. The file is in the
user's cache folder (_cabinet.py); one that cannot be read or kept is no reason to fail, and
`origin` says so.

One at a time in this process: two that measured at once would each measure the other, and keep it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from dmaplane._errors import DmaplaneError, InvalidError, SystemCallError, TimedOutError
from dmaplane.stream import _cabinet
from dmaplane.stream._calibration import DeviceMeter, calibrate
from dmaplane.stream._curve import Curve, Row
from dmaplane.stream._device import Tier, TierName

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable

    from dmaplane.stream._copies import Direction
    from dmaplane.stream._device import Device

SECONDS: Final = 2.0

# Of whichever process asks: a fork may come while another thread has the parent's.
_turns: dict[int, contextlib.AbstractContextManager[Any]] = {}
_left: list[contextlib.ExitStack] = []
"""Of meters that are stuck: memory that a device may still write, kept until the process ends."""


@dataclasses.dataclass(frozen=True, slots=True)
class Profile(_cabinet.Kept):
    """What is kept of a device, and where this one is from."""

    origin: str = dataclasses.field(default="", compare=False)
    """For people."""

    @classmethod
    def measure(
        cls,
        device: Device,
        *,
        seconds: float = SECONDS,
        progress: Callable[[float], None] | None = None,
    ) -> Profile:
        """Measures @device for about so many seconds, memory for it included.

        @progress: told the part that has passed, 0 .. 1; what it raises ends it. Takes 64 MiB on
        each side meanwhile. TimedOutError: a copy never ended; what it may write is not given back.
        """
        return cls._measured(device, seconds, progress)[0]

    @classmethod
    def _measured(
        cls, device: Device, seconds: float, progress: Callable[[float], None] | None
    ) -> tuple[Profile, bool]:
        """As measure(), and whether copies of somebody else were under way meanwhile."""
        import dmaplane

        if not 0 < seconds <= 600:
            raise InvalidError("seconds", f"{seconds}", fix="more than 0, at most 600")
        with _turn(), contextlib.ExitStack() as stack:
            began = time.monotonic()
            tiers = device.tiers()
            plane = stack.enter_context(dmaplane.open(plane="embedded"))
            meter = stack.enter_context(DeviceMeter(plane, device))
            left = max(seconds * 0.9 - (time.monotonic() - began), seconds / 10)
            ended = device.registry.ended
            try:
                found = calibrate(meter, tiers, seconds=left, progress=progress)
            except TimedOutError:
                if meter.stuck:
                    _left.append(stack.pop_all())
                raise
            beside = device.registry.ended != ended  # the meter's own end with it
        made = cls(
            identity=device.identity,
            device=device.name,
            tiers=tiers,
            failed=found.failed,
            rows=found.rows,
            made=time.time(),
            seconds=time.monotonic() - began,
            samples=found.samples,
            origin="measured now",
        )
        return made, beside

    @classmethod
    def unmeasured(cls, device: Device, why: str) -> Profile:
        """One without a row, of a device that cannot be measured: a choice is then by order."""
        return cls(
            identity=device.identity,
            device=device.name,
            tiers=device.tiers(),
            failed=(),
            rows=(),
            made=time.time(),
            seconds=0.0,
            samples=0,
            origin=f"not measured: {why}",
        )

    @classmethod
    def load(cls, device: Device) -> Profile | None:
        """The kept profile of this device with the tiers it has now; None if there is none.

        InvalidError if there is one that is damaged: the field, and what to do.
        """
        path = _cabinet.path_of(device.identity, _names(device.tiers()))
        kept = _cabinet.read(path)
        if kept is None:
            return None
        if kept.identity != device.identity or _names(kept.tiers) != _names(device.tiers()):
            return None
        fields = {name: getattr(kept, name) for name in _cabinet.FIELDS}
        # What a tier may do is the device's to say, and may have changed; only costs are read.
        fields["tiers"] = device.tiers()
        return cls(**fields, origin=f"kept in {path}")

    def save(self) -> pathlib.Path:
        """Keeps it for load(); gives where. SystemCallError if the folder cannot be written."""
        path = _cabinet.path_of(self.identity, _names(self.tiers))
        _cabinet.write(path, self)
        return path

    @classmethod
    def of(
        cls,
        device: Device,
        *,
        seconds: float = SECONDS,
        refresh: bool = False,
        progress: Callable[[float], None] | None = None,
    ) -> Profile:
        """The kept one, or one measured now and kept; @refresh: measured now in any case.

        One in which a tier failed, or of a device that was busy or copied something else
        meanwhile, is not kept: the next time it may be otherwise.
        """
        with _turn():  # who waited for another's finds it kept
            return cls._of(device, seconds, refresh, progress)

    @classmethod
    def _of(
        cls,
        device: Device,
        seconds: float,
        refresh: bool,
        progress: Callable[[float], None] | None,
    ) -> Profile:
        why = "asked to" if refresh else "none was kept"
        if not refresh:
            try:
                kept = cls.load(device)
            except (InvalidError, SystemCallError) as damaged:
                kept, why = None, str(damaged)
            if kept is not None:
                return kept
        busy = device.busy()
        made, beside = cls._measured(device, seconds, progress)
        try:
            if busy:
                where = "not kept: the device was busy"
            elif beside:
                where = "not kept: other copies were under way meanwhile"
            elif made.failed:
                where = f"not kept: {', '.join(name for name, _ in made.failed)} failed"
            else:
                where = f"kept in {made.save()}"
        except DmaplaneError as refused:
            where = f"not kept: {refused}"
        return dataclasses.replace(made, origin=f"measured now ({why}), {where}")

    def curves(self) -> dict[tuple[TierName, Direction], Curve]:
        """The rows as curves; made anew each time."""
        found: dict[tuple[TierName, Direction], list[Row]] = {}
        for row in self.rows:
            found.setdefault((row.tier, row.direction), []).append(row)
        return {pair: Curve(rows) for pair, rows in found.items()}


def _turn() -> contextlib.AbstractContextManager[Any]:
    return _turns.setdefault(os.getpid(), threading.RLock())


def _names(tiers: tuple[Tier, ...]) -> tuple[str, ...]:
    return tuple(sorted(tier.name for tier in tiers if tier.available))

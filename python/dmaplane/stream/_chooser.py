# SPDX-License-Identifier: MIT
"""Choosers: who says by which tier a stream copies, and the one of a stream that was given none.

That one chooses by the profile of its device (_choice.py). A device is measured once, by the first
stream that has to choose, and all its streams share what came of it. Where it cannot be measured
(no memory for it, a copy that never ends) the copy goes all the same: by the first tier that may
take it, for good, and one CalibrationWarning says why.

Who owns what. What a device's streams share is found by the device, for as long as it lives. Its
lock is held while the device is measured, and guards only that; who waits for it looks whether its
own stream has ended meanwhile.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from typing import TYPE_CHECKING, Final, Protocol

from dmaplane._errors import DeviceLostError, OperationCancelledError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dmaplane.stream._copies import Copies, Direction
    from dmaplane.stream._device import Device, TierName

_LOOK_S: Final = 0.05


class CalibrationWarning(UserWarning):
    """A device could not be measured: its copies take the first tier that may do them."""


class Chooser(Protocol):
    """Says by which tier to copy. Called on the stream's own thread, once a copy."""

    def __call__(self, copies: Copies, direction: Direction, device: Device) -> TierName:
        """The name of a tier that may take @copies."""


class _Shared:
    """What the streams of one device choose by, once one of them had to."""

    __slots__ = ("_known", "_lock")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: tuple[str, Chooser] | None = None  # by the identity that was measured

    def chooser(self, device: Device, check: Callable[[], None]) -> Chooser:
        """Measures @device if nobody has. @check raises once nobody wants that any more."""
        identity = device.identity
        while not self._lock.acquire(timeout=_LOOK_S):
            check()
        try:
            if self._known is not None and self._known[0] == identity:
                return self._known[1]
            chooser, why = _measured(device, check)
            self._known = identity, chooser
        finally:
            self._lock.release()
        if why:
            warnings.warn(
                f"{device.name} could not be measured ({why}); its copies take the first tier that"
                " may do them. CopyStream(choose=Choice.of(device)) measures it again",
                CalibrationWarning,
                stacklevel=2,
            )
        return chooser


_shared: weakref.WeakKeyDictionary[Device, _Shared] = weakref.WeakKeyDictionary()


def _measured(device: Device, check: Callable[[], None]) -> tuple[Chooser, str]:
    """By what to choose, and why it could not be measured, if so."""
    # Late: who names a tier or gives a chooser never calibrates.
    from dmaplane.stream._choice import Choice
    from dmaplane.stream._profile import Profile

    try:
        return Choice.of(device, progress=lambda _: check()), ""
    except (DeviceLostError, OperationCancelledError):
        raise
    except Exception as failure:  # whatever it was: that a copy is slower is no reason to fail it
        if device.closed:
            raise
        why = f"{type(failure).__name__}: {failure}"
        return Choice(Profile.unmeasured(device, why)), why


class ByProfile:
    """The chooser of a stream that was given none. @check: raises once that stream is closed."""

    __slots__ = ("_check", "_chooser")

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check
        self._chooser: Chooser | None = None

    def __call__(self, copies: Copies, direction: Direction, device: Device) -> TierName:
        """As the profile of @device says; measures it first if nobody has."""
        if self._chooser is None:
            try:
                shared = _shared.setdefault(device, _Shared())
            except TypeError:  # a device that nothing weak can be kept of
                shared = _Shared()
            self._chooser = shared.chooser(device, self._check)
        return self._chooser(copies, direction, device)

# SPDX-License-Identifier: MIT
"""Faults to order: what the simulated device does wrong, and at which call.

Calls are counted from 1, over all lanes of the device, in the order of execute().
"""

from __future__ import annotations

import dataclasses

from dmaplane._errors import InvalidError


@dataclasses.dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong."""

    refuse: frozenset[int] = frozenset()
    """Calls that are not even taken: execute() raises CopyError."""
    fail: frozenset[int] = frozenset()
    """Calls that copy half of their blocks and then fail."""
    stall: frozenset[int] = frozenset()
    """Calls that do not begin before SimDevice.resume()."""
    lose: int | None = None
    """The call at which the device is lost, and nothing of it is copied."""

    def __post_init__(self) -> None:
        lost = () if self.lose is None else (self.lose,)
        for number in (*self.refuse, *self.fail, *self.stall, *lost):
            if number < 1:
                raise InvalidError("faults", f"call {number}", fix="calls are counted from 1")

# SPDX-License-Identifier: MIT
"""What a copy costs on the simulated device: a stated model, to be changed by who tests with it.

    seconds = launch + items * per item + bytes / bandwidth

for each tier and direction. Items are what the tier submits: copies for most, merged runs for
`batch`. While a lane of the same device copies the other way, the bandwidth is `two_way_share`
of it; while the device is busy, all of it takes the tier's `busy_penalty` times as long.

The figures here are those published for a machine of the kind we aim at (64 GB/s link);
they are nobody's measurement of ours.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING, Final

from dmaplane._errors import InvalidError

if TYPE_CHECKING:
    from dmaplane.stream._copies import Copies, Direction
    from dmaplane.stream._device import TierName


@dataclasses.dataclass(frozen=True, slots=True)
class Cost:
    """Of one tier in one direction."""

    launch_s: float
    item_s: float
    bytes_per_s: float

    def __post_init__(self) -> None:
        for field in ("launch_s", "item_s"):
            if not 0 <= getattr(self, field) < 3600:
                raise InvalidError(field, f"{getattr(self, field)}", fix="seconds, 0 .. 3600")
        if not 1 <= self.bytes_per_s < 1e18:
            raise InvalidError("bytes_per_s", f"{self.bytes_per_s}", fix="bytes a second, >= 1")


@dataclasses.dataclass(frozen=True, slots=True)
class TierCost:
    """Of one tier: there and back, and while the device is busy."""

    name: TierName
    h2d: Cost
    d2h: Cost
    two_way_share: float = 0.75
    busy_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.two_way_share <= 1:
            raise InvalidError("two_way_share", f"{self.two_way_share}", fix="above 0, at most 1")
        if not 1 <= self.busy_penalty < 1e6:
            raise InvalidError("busy_penalty", f"{self.busy_penalty}", fix="at least 1")

    def seconds(self, copies: Copies, direction: Direction, *, two_ways: bool, busy: bool) -> float:
        """How long @copies take."""
        cost = self.h2d if direction == "h2d" else self.d2h
        items = copies.merged().count if self.name == "batch" else copies.count
        share = self.two_way_share if two_ways else 1.0
        taken = cost.launch_s + items * cost.item_s + copies.bytes / (cost.bytes_per_s * share)
        return taken * self.busy_penalty if busy else taken


_DEFAULT: Final = (
    TierCost("single", Cost(2e-6, 2.5e-6, 55e9), Cost(2e-6, 2.5e-6, 55e9)),
    TierCost("batch", Cost(5e-6, 0.5e-6, 55e9), Cost(5e-6, 0.5e-6, 55e9)),
    TierCost(
        "kernel",
        Cost(4e-6, 11e-9, 51.5e9),
        Cost(4e-6, 7e-9, 52.8e9),
        two_way_share=0.65,
        busy_penalty=2.0,
    ),
    TierCost("staged", Cost(14e-6, 2e-9, 54.5e9), Cost(14e-6, 2e-9, 54.5e9), busy_penalty=1.3),
    TierCost("bar", Cost(0.3e-6, 0.05e-6, 12e9), Cost(0.9e-6, 0.1e-6, 0.52e9)),
)


@dataclasses.dataclass(frozen=True, slots=True)
class CostModel:
    """Of a device: one row a tier. A tier without a row is not there."""

    tiers: tuple[TierCost, ...] = _DEFAULT

    def __post_init__(self) -> None:
        names = [tier.name for tier in self.tiers]
        if len(set(names)) < len(names):
            raise InvalidError("tiers", f"{', '.join(names)}", fix="each of them once")
        if "nic" in names:
            raise InvalidError("tiers", "nic is no tier of its own", fix="with_network(device)")

    def of(self, name: TierName) -> TierCost | None:
        """The row of that tier, if there is one."""
        return next((tier for tier in self.tiers if tier.name == name), None)

    @property
    def digest(self) -> str:
        """Another one for another model."""
        return hashlib.sha256(repr(self.tiers).encode()).hexdigest()[:16]

# SPDX-License-Identifier: MIT
"""The choice: which tier a call takes, by a profile, and why.

The cheapest of those that may take the call, as the profile says for its count and size of
block. A tier that merges neighbours is judged by the runs it would have, one that needs the
device's processors by its stated penalty while they are busy.

Invariant, proven against cost models in tests/stream/: at any count and size the tier chosen
costs at most 5 % more than the best one. A value: nothing here is locked, and one Choice may
serve many streams.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final

from dmaplane._errors import InvalidError, UnsupportedError
from dmaplane.stream._profile import Profile

if TYPE_CHECKING:
    from collections.abc import Callable

    from dmaplane.stream._copies import Copies, Direction
    from dmaplane.stream._device import Device, Tier, TierName

_UNMEASURED: Final = "it was not measured"


@dataclasses.dataclass(frozen=True, slots=True)
class Estimate:
    """What one tier would cost for a call."""

    tier: TierName
    seconds: float | None
    """None if it was not measured."""
    allowed: bool
    why: str
    """Why it is taken, or why not."""


class Choice:
    """Chooses by a profile; a stream's `choose`."""

    __slots__ = ("_curves", "_failed", "profile")

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self._curves = profile.curves()
        self._failed = dict(profile.failed)

    @classmethod
    def of(cls, device: Device, *, progress: Callable[[float], None] | None = None) -> Choice:
        """By the kept profile of @device; measures it if there is none: two seconds, once.

        @progress: as of Profile.of().
        """
        return cls(Profile.of(device, progress=progress))

    def __call__(self, copies: Copies, direction: Direction, device: Device) -> TierName:
        """The tier this call takes. UnsupportedError if none may, with the reason of each."""
        busy = device.busy()
        best: TierName | None = None
        least = float("inf")
        unmeasured: TierName | None = None
        refusals: list[str] = []
        for tier in device.tiers():
            refusal = self._failed.get(tier.name) or tier.refusal(copies, direction)
            if refusal:
                refusals.append(f"{tier.name}: {refusal}")
                continue
            one = copies.merged() if tier.merges else copies
            seconds = self._seconds(tier, direction, one.count, one.bytes / one.count, busy=busy)
            if seconds is None:
                unmeasured = unmeasured or tier.name
            elif seconds < least:
                best, least = tier.name, seconds
        if best is None and unmeasured is None:
            raise UnsupportedError(
                f"a way for {copies.count} copies {direction} on {device.name}",
                "one of its tiers to take them (" + "; ".join(refusals) + ")",
            )
        return best or unmeasured or "single"

    def _seconds(
        self, tier: Tier, direction: Direction, count: float, block_bytes: float, *, busy: bool
    ) -> float | None:
        curve = self._curves.get((tier.name, direction))
        if curve is None:
            return None
        return curve.seconds(count, block_bytes) * (tier.busy_penalty if busy else 1.0)

    def estimate(
        self,
        count: int,
        block_bytes: int,
        direction: Direction,
        *,
        busy: bool = False,
        extent: bool = False,
    ) -> tuple[Estimate, ...]:
        """What each tier would cost for @count blocks that nothing merges, cheapest first.

        @busy: the device's processors are busy. @extent: the host's side is in one piece.
        The first that is allowed is the one that would be taken.
        """
        if count < 1:
            raise InvalidError("count", f"{count} blocks", fix="1 or more")
        if block_bytes < 1:
            raise InvalidError("block_bytes", f"{block_bytes}", fix="1 or more")
        if direction not in ("h2d", "d2h"):
            raise InvalidError("direction", f"{direction!r}", fix='"h2d" or "d2h"')
        found: list[tuple[Tier, float | None, str]] = []
        for tier in self.profile.tiers:
            refusal = self._failed.get(tier.name) or _refusal(
                tier, block_bytes, direction, extent=extent
            )
            seconds = None
            if tier.available:
                seconds = self._seconds(tier, direction, count, block_bytes, busy=busy)
            if not refusal and seconds is None:
                refusal = _UNMEASURED
            found.append((tier, seconds, refusal))
        allowed = [seconds for _, seconds, why in found if seconds is not None and not why]
        least = min(allowed, default=0.0)
        for at, (tier, seconds, refusal) in enumerate(found):
            if not allowed and refusal == _UNMEASURED:  # as __call__(): rather that than nothing
                found[at] = tier, seconds, ""
                break
        found.sort(key=lambda one: (bool(one[2]), one[1] is None, one[1] or 0.0))
        estimates = []
        for at, (tier, seconds, refusal) in enumerate(found):
            why = refusal
            if not why and seconds is None:
                why = "none that may was measured, and it comes first"
            elif not why and seconds is not None:
                why = "the cheapest" if at == 0 else f"{seconds / least:.2f} times the cheapest"
                if busy and tier.busy_penalty != 1.0:
                    why += f"; busy costs it {tier.busy_penalty:.2f} times"
            estimates.append(Estimate(tier.name, seconds, not refusal, why))
        return tuple(estimates)


def _refusal(tier: Tier, block_bytes: int, direction: Direction, *, extent: bool) -> str:
    """As Tier.refusal(), for blocks there are none of."""
    if not tier.available:
        return tier.reason
    if direction not in tier.directions:
        return f"it goes {' and '.join(tier.directions)} only"
    if not tier.smallest <= block_bytes <= tier.largest:
        return f"it takes blocks of {tier.smallest} .. {tier.largest} bytes"
    if tier.needs_extent and not extent:
        return "it needs the host's side in one piece: an extent of a HostPool"
    return ""

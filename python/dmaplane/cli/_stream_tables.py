# SPDX-License-Identifier: MIT
"""Profiles on a terminal: the way each number and size of blocks takes, and one call's ways."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from dmaplane.stream import Choice, Direction, Estimate, Profile, TierName

SIZES: Final = tuple(512 << power for power in range(14))
COUNTS: Final = (1, 16, 256, 4096, 16384)
_WAYS: Final = {"h2d": "host to device", "d2h": "device to host"}


@dataclasses.dataclass(frozen=True, slots=True)
class Chosen:
    """The way one size and number of blocks takes; None if there is none."""

    direction: Direction
    block_bytes: int
    count: int
    tier: TierName | None
    seconds: float | None

    @property
    def rate(self) -> float | None:
        """Bytes a second."""
        return self.count * self.block_bytes / self.seconds if self.seconds else None


def choices(
    choice: Choice, ways: Sequence[Direction], *, extent: bool, busy: bool
) -> list[dict[str, Any]]:
    """A row for each direction, size and count of the table, as --json has it."""
    found = []
    for way in ways:
        for size in SIZES:
            for count in COUNTS:
                first = choice.estimate(count, size, way, extent=extent, busy=busy)[0]
                one = Chosen(
                    direction=way,
                    block_bytes=size,
                    count=count,
                    tier=first.tier if first.allowed else None,
                    seconds=first.seconds if first.allowed else None,
                )
                found.append({**dataclasses.asdict(one), "bytes_per_second": one.rate})
    return found


def show_table(profile: Profile, found: list[dict[str, Any]], ways: Sequence[Direction]) -> None:
    """What there is, then a table for each direction."""
    from rich import box
    from rich.table import Table

    from dmaplane.cli import _output

    out = _output.console()
    _head(out, profile)
    cells = {(one["direction"], one["block_bytes"], one["count"]): one for one in found}
    for way in ways:
        out.print(
            f"\n{_WAYS[way]}: the fastest way and its GB/s, for so many blocks at once",
            markup=False,
        )
        table: Any = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
        table.add_column("block", justify="right", no_wrap=True)
        for count in COUNTS:
            table.add_column(f"{count}", justify="right", no_wrap=True)
        for size in SIZES:
            table.add_row(_size(size), *(_cell(cells[way, size, count]) for count in COUNTS))
        out.print(table)


def _size(block_bytes: int) -> str:
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if block_bytes % unit == 0:
            return f"{block_bytes // unit} {name}"
    return f"{block_bytes} B"


def _cell(one: dict[str, Any]) -> str:
    rate = one["bytes_per_second"]
    if one["tier"] is None:
        return "none"
    return f"{one['tier']} {'-' if rate is None else _rate(rate)}"


def _rate(bytes_per_second: float) -> str:
    rate = bytes_per_second / 1e9
    return f"{rate:.2f}" if rate < 10 else f"{rate:.1f}"


def show_call(
    profile: Profile,
    calls: Mapping[Direction, tuple[Estimate, ...]],
    *,
    count: int,
    block_bytes: int,
) -> None:
    """Every way of one call, the fastest first, and why."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from dmaplane.cli import _output

    out = _output.console()
    _head(out, profile, tiers=False)
    for way, found in calls.items():
        out.print(f"\n{_WAYS[way]}, {count} blocks of {_size(block_bytes)}:", markup=False)
        table: Any = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
        for name, right in (("way", False), ("time", True), ("GB/s", True), ("why", False)):
            table.add_column(name, justify="right" if right else "left", no_wrap=name != "why")
        for one in found:
            rate = "-" if not one.seconds else _rate(count * block_bytes / one.seconds)
            mark = "> " if one is found[0] and one.allowed else "  "
            table.add_row(mark + one.tier, _time(one.seconds), rate, Text(one.why))
        out.print(table)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1e6:.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


def _head(out: Console, profile: Profile, *, tiers: bool = True) -> None:
    from rich.text import Text

    out.print(f"{profile.device}: {profile.origin}", markup=False, soft_wrap=True)
    out.print(f"{profile.samples} samples in {profile.seconds:.2f} s", markup=False)
    if not tiers:
        return
    reasons = dict(profile.failed)
    for tier in profile.tiers:
        why = reasons.get(tier.name) or tier.reason
        if why:
            out.print(Text(f"no {tier.name}: {why}", "dim"))

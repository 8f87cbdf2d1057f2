# SPDX-License-Identifier: MIT
"""The block sizes of `bench stream-tiers` as a PNG: a panel a direction, a line a tier.

Both axes are logarithms. The ceilings that were measured are dashed lines. Nothing is drawn that
was not measured; on a simulated device the heading says that it is a model's.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dmaplane.bench._tiers_bed import DIRECTIONS, MIB, size_text

if TYPE_CHECKING:
    from dmaplane.bench._tiers_findings import Findings
    from dmaplane.stream import Direction, TierName

WIDTH: Final = 1600
HEIGHT: Final = 820
_TOP: Final = 170
_BOTTOM: Final = 90
_LEFT: Final = 90
_GAP: Final = 90
_INK: Final = "#1b1f24"
_FAINT: Final = "#d0d7de"
_SOFT: Final = "#57606a"
COLOURS: Final[dict[TierName, str]] = {
    "single": "#8250df",
    "batch": "#0969da",
    "kernel": "#1a7f37",
    "staged": "#bc4c00",
    "bar": "#cf222e",
    "nic": "#bf8700",
}


class Point(NamedTuple):
    """A cell of the sweep."""

    block_bytes: int
    gb_per_s: float


def lines(findings: Findings, direction: Direction) -> dict[TierName, list[Point]]:
    """What was measured that way over the whole of the memory, by tier."""
    found: dict[TierName, list[Point]] = {}
    for (tier, cell), seconds in findings.cells.items():
        if cell.direction == direction and cell.bytes > 0.9 * findings.total_bytes:
            point = Point(cell.block_bytes, cell.bytes / seconds / 1e9)
            found.setdefault(tier, []).append(point)
    return {tier: sorted(points) for tier, points in found.items()}


class _Panel:
    """One direction's axes."""

    def __init__(self, pen: Any, left: int, low: float, high: float, sizes: list[int]) -> None:
        self._pen = pen
        self._left = left
        self._width = (WIDTH - _LEFT - 2 * _GAP) // 2
        self._low, self._high = math.log10(low), math.log10(high)
        self._sizes = sizes

    def x(self, block_bytes: int) -> float:
        first, last = math.log2(self._sizes[0]), math.log2(self._sizes[-1])
        part = (math.log2(block_bytes) - first) / max(last - first, 1.0)
        return self._left + part * self._width

    def y(self, rate: float) -> float:
        part = (math.log10(rate) - self._low) / (self._high - self._low)
        return HEIGHT - _BOTTOM - min(max(part, 0.0), 1.0) * (HEIGHT - _BOTTOM - _TOP)

    def axes(self, title: str) -> None:
        pen, right = self._pen, self._left + self._width
        pen.text((self._left, _TOP - 40), title, font=_font(22), fill=_INK)
        for power in range(math.floor(self._low), math.ceil(self._high) + 1):
            for times in (1, 2, 5):
                rate = times * 10.0**power
                if self._low <= math.log10(rate) <= self._high:
                    y = self.y(rate)
                    pen.line((self._left, y, right, y), fill=_FAINT)
                    pen.text(
                        (self._left - 10, y), f"{rate:g}", font=_font(16), fill=_SOFT, anchor="rm"
                    )
        shown = -math.inf
        for size in self._sizes:
            x = self.x(size)
            pen.line((x, _TOP, x, HEIGHT - _BOTTOM), fill=_FAINT)
            if x - shown > 60:
                text = size_text(size).replace(" ", "\n")
                pen.multiline_text(
                    (x, HEIGHT - _BOTTOM + 8),
                    text,
                    font=_font(16),
                    fill=_SOFT,
                    anchor="ma",
                    align="center",
                )
                shown = x

    def ceiling(self, rate: float) -> None:
        y = self.y(rate)
        for x in range(self._left, self._left + self._width, 14):
            self._pen.line((x, y, x + 7, y), fill=_INK)

    def line(self, points: list[Point], colour: str) -> None:
        places = [(self.x(point.block_bytes), self.y(point.gb_per_s)) for point in points]
        if len(places) > 1:
            self._pen.line(places, fill=colour, width=3)
        for x, y in places:
            self._pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def draw(findings: Findings, file: str) -> None:
    """Writes it to @file; a heading alone if no block size was measured."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen = ImageDraw.Draw(image)
    times = "times of the model, not measured" if findings.modelled else "measured"
    pen.text(
        (24, 20),
        f"Blocks between host memory and {findings.device}: GB/s by block size",
        font=_font(32),
        fill=_INK,
    )
    pen.text(
        (24, 66),
        f"{times}; {findings.total_bytes / MIB:g} MiB a call, at random on both sides "
        "(staged: the host's side in one piece); dashed: one large copy",
        font=_font(20),
        fill=_SOFT,
    )
    both = {direction: lines(findings, direction) for direction in DIRECTIONS}
    points = [point for tiers in both.values() for found in tiers.values() for point in found]
    if points:
        _legend(pen, [tier for tier in COLOURS if any(tier in tiers for tiers in both.values())])
        sizes = sorted({point.block_bytes for point in points})
        ceilings = [findings.ceiling(direction) for direction in DIRECTIONS]
        rates = [point.gb_per_s for point in points] + [rate for rate in ceilings if rate]
        low, high = 0.8 * min(rates), 1.25 * max(rates)
        for number, direction in enumerate(DIRECTIONS):
            left = _LEFT + number * ((WIDTH - _LEFT - 2 * _GAP) // 2 + _GAP)
            panel = _Panel(pen, left, low, high, sizes)
            panel.axes("host to device" if direction == "h2d" else "device to host")
            rate = ceilings[number]
            if rate:
                panel.ceiling(rate)
            for tier, found in both[direction].items():
                panel.line(found, COLOURS[tier])
    image.save(file, format="PNG")


def _legend(pen: Any, names: list[TierName]) -> None:
    x = 24
    for name in names:
        pen.rectangle((x, 102, x + 22, 118), fill=COLOURS[name])
        pen.text((x + 32, 99), name, font=_font(19), fill=_INK)
        x += 62 + int(pen.textlength(name, font=_font(19)))

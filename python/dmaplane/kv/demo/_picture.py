# SPDX-License-Identifier: MIT
"""The timeline as a PNG: three lanes a request, an axis, a legend, and the sums below.

Invariants: nothing is drawn outside the picture, text never lies on bars, and a bar is at least
one pixel wide, so that a layer that crossed in microseconds can be seen.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from dmaplane.kv.demo._lanes import NAMES, What, end, groups

if TYPE_CHECKING:
    from dmaplane.kv.demo._outcome import Outcome

WIDTH: Final = 1600
_LEFT: Final = 240
_RIGHT: Final = 40
_TOP: Final = 150
_LANE: Final = 26
_GAP: Final = 26
_BOTTOM: Final = 130
REQUESTS_MAX: Final = 40
_INK: Final = "#1b1f24"
_FAINT: Final = "#d0d7de"
_SOFT: Final = "#57606a"
_COLOURS: Final[dict[What, tuple[str, str]]] = {
    "wait": ("#eaeef2", "#eaeef2"),
    "prefill": ("#0969da", "#54aeff"),
    "transfer": ("#bc4c00", "#bc4c00"),
    "decode": ("#1a7f37", "#4ac26b"),
}
"""Neighbours take turns, so that layers and tokens can be counted."""


def draw(outcome: Outcome, file: str) -> None:
    """Writes it to @file."""
    from PIL import Image, ImageDraw

    shown = groups(outcome)[:REQUESTS_MAX]
    height = _TOP + len(shown) * (3 * _LANE + _GAP) + _BOTTOM
    image = Image.new("RGB", (WIDTH, height), "white")
    pen = ImageDraw.Draw(image)
    length = end(outcome)
    scale = (WIDTH - _LEFT - _RIGHT) / length
    _heading(pen, outcome)
    _axis(pen, length, scale, height)
    y = _TOP
    for group in shown:
        pen.text((24, y + _LANE), group.title, font=_font(22), fill=_INK)
        for lane in group.lanes:
            pen.text((_LEFT - 12, y + 4), lane.name, font=_font(17), fill=_SOFT, anchor="ra")
            for number, bar in enumerate(lane.bars):
                left = _LEFT + bar.begin * scale
                right = max(left + 1, _LEFT + bar.end * scale - 0.5)
                colour = _COLOURS[bar.what][number % 2]
                pen.rectangle((left, y + 3, min(right, WIDTH - 1), y + _LANE - 3), fill=colour)
            y += _LANE
        y += _GAP
    _sums(pen, outcome, height)
    image.save(file, format="PNG")


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _heading(pen: Any, outcome: Outcome) -> None:
    verdict = "tokens identical" if outcome.tokens_identical else "TOKENS DIFFER"
    pen.text(
        (24, 20),
        f"Prefill and decode in two processes: {outcome.requests} requests, {verdict}",
        font=_font(32),
        fill=_INK,
    )
    pen.text(
        (24, 66),
        f"{outcome.engine} engine, {outcome.plane} plane, path {outcome.path}; milliseconds",
        font=_font(20),
        fill=_SOFT,
    )
    x = 24
    for what, name in NAMES.items():
        pen.rectangle((x, 104, x + 22, 124), fill=_COLOURS[what][0])
        pen.text((x + 32, 103), name, font=_font(19), fill=_INK)
        x += 60 + int(pen.textlength(name, font=_font(19)))


def _axis(pen: Any, length: float, scale: float, height: int) -> None:
    """A line every 1, 2 or 5 of a power of ten, about ten of them."""
    rough = length / 10
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * times for times in (1, 2, 5, 10) if power * times >= rough)
    floor = height - _BOTTOM
    for number in range(int(length / step) + 1):
        x = _LEFT + number * step * scale
        pen.line((x, _TOP - 6, x, floor), fill=_FAINT)
        pen.text(
            (x, floor + 6), f"{number * step * 1e3:g}", font=_font(17), fill=_SOFT, anchor="ma"
        )


def _sums(pen: Any, outcome: Outcome, height: int) -> None:
    told = (
        f"{outcome.total('bytes') / 1e6:.1f} MB in {outcome.total('chunks'):.0f} chunks, "
        f"{outcome.gb_per_s:.2f} GB/s on their way, {outcome.total('stalls'):.0f} stalls, "
        f"checksums {outcome.total('checksum_seconds') * 1e3:.1f} ms"
    )
    then = (
        f"prefill {outcome.total('prefill_seconds') * 1e3:.0f} ms, "
        f"transfer {outcome.total('wire_seconds') * 1e3:.0f} ms, of which after the last layer was "
        f"computed {outcome.total('tail_seconds') * 1e3:.1f} ms"
    )
    pen.text((24, height - 78), told, font=_font(20), fill=_INK)
    pen.text((24, height - 46), then, font=_font(20), fill=_INK)

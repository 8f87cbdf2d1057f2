# SPDX-License-Identifier: MIT
"""Where output goes: results to stdout, progress and errors to stderr."""

from __future__ import annotations

import json
import sys
import textwrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def console() -> Console:
    """For results. Colour only on a terminal; 80 columns where the width is unknown."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=False)


def progress_console() -> Console:
    """For progress: never mixed into results."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def emit(answer: dict[str, Any]) -> None:
    """One JSON object on stdout, and nothing else."""
    json.dump(answer, sys.stdout, indent=2)
    sys.stdout.write("\n")


def failure(error: Exception, *, as_json: bool) -> None:
    """An error a user can act on, without a traceback."""
    if as_json:
        emit({"error": {"kind": type(error).__name__, "message": str(error)}})
    for line in textwrap.wrap(f"dmaplane: {error}", 80, subsequent_indent="  "):
        print(line, file=sys.stderr)


def gibibytes(length_bytes: int) -> str:
    """A size for people."""
    from dmaplane.doctor._check import size

    return size(length_bytes)


def parse_size(text: str) -> int:
    """'256M', '1GiB', '4096': bytes. ValueError says what would be right."""
    units = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
    digits = text.strip().lower().removesuffix("b").removesuffix("i")
    unit = digits[-1:] if digits[-1:].isalpha() else ""
    number = digits.removesuffix(unit) if unit else digits
    if unit not in units or not (number.isascii() and number.isdecimal()) or int(number) == 0:
        raise ValueError(f"{text!r} is no size; write for example 4096, 64K, 256M or 1G")
    return int(number) * units[unit]

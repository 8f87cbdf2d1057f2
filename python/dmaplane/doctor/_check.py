# SPDX-License-Identifier: MIT
"""A check and what it found."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

    from dmaplane.doctor._machine import Machine

Verdict = Literal["ok", "warn", "lack"]


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """What a check found. A lack always says why (`cause`) and what to type (`fix`).

    A `fix` that ends in a full stop is a sentence; any other can be pasted into a shell.
    """

    verdict: Verdict
    finding: str
    cause: str = ""
    fix: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """One question about a machine. `name` is stable: scripts ask for it by name."""

    name: str
    examine: Callable[[Machine], Finding]


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """A check's finding under its name."""

    name: str
    verdict: Verdict
    finding: str
    cause: str
    fix: str


def ok(finding: str) -> Finding:
    """Nothing to do."""
    return Finding("ok", finding)


def warn(finding: str, *, cause: str, fix: str) -> Finding:
    """Works, but less well than it could."""
    return Finding("warn", finding, cause, fix)


def lack(finding: str, *, cause: str, fix: str) -> Finding:
    """Not there."""
    return Finding("lack", finding, cause, fix)


def size(length_bytes: int) -> str:
    """1536 MiB for people: '1.5 GiB'."""
    amount = float(length_bytes)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.3g} {unit}" if amount < 1000 else f"{amount:.0f} {unit}"
        amount /= 1024
    return f"{amount:.3g} TiB" if amount < 1000 else f"{amount:.0f} TiB"

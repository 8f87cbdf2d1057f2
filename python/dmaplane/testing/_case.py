# SPDX-License-Identifier: MIT
"""Cases and the register of them. A case is a plain function that takes a plane maker."""

from __future__ import annotations

import dataclasses
import importlib
import sys
import unittest
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TextIO

from dmaplane._plane import Capability

if TYPE_CHECKING:
    from dmaplane._plane import Plane

MakePlane = Callable[[], "Plane"]
Check = Callable[[MakePlane], None]

Needs = tuple[Capability, ...]
"""Alternatives: a plane has to claim all of one of them."""

NOTHING: Final = Capability(0)
GROUPS: Final = (
    "commands",
    "completions",
    "lifetimes",
    "teardown",
    "cancelling",
    "placement",
    "staleness",
    "observation",
    "hostility",
    "sharing",
    "kinds",
)


class MissingCapability(unittest.SkipTest):
    """The plane does not claim what the case is about. A skip, to pytest and unittest."""

    def __init__(self, missing: Capability) -> None:
        self.missing = missing
        super().__init__(f"the plane does not claim {missing.name or missing}")


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """One named check."""

    group: str
    name: str
    law: str
    needs: Needs
    check: Check = dataclasses.field(repr=False)

    def __str__(self) -> str:
        return f"{self.group}-{self.name}"

    def missing(self, capabilities: Capability) -> Capability:
        """What a plane that claims @capabilities lacks for this; nothing if the case applies."""
        lacking = (alternative & ~capabilities for alternative in self.needs)
        return min(lacking, key=lambda absent: absent.bit_count(), default=NOTHING)

    def run(self, make_plane: MakePlane) -> None:
        """AssertionError if the plane breaks the law; MissingCapability if it is not about it."""
        if self.needs:
            with make_plane() as plane:
                missing = self.missing(plane.capabilities)
            if missing:
                raise MissingCapability(missing)
        self.check(make_plane)


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """What check_plane() found."""

    passed: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]


_register: dict[str, Case] = {}


def case(law: str, needs: Capability | Needs = ()) -> Callable[[Check], Check]:
    """Registers a function as a case of @law, for planes that claim @needs, or one of them."""
    alternatives = (needs,) if isinstance(needs, Capability) else needs

    def register(check: Check) -> Check:
        group = check.__module__.rpartition(".")[2]
        made = Case(group, check.__name__, law, alternatives, check)
        assert str(made) not in _register, f"two cases are called {made}"
        _register[str(made)] = made
        return check

    return register


def cases() -> tuple[Case, ...]:
    """All cases, in order."""
    for group in GROUPS:
        importlib.import_module(f"dmaplane.testing.{group}")
    return tuple(_register.values())


def check_plane(make_plane: MakePlane, *, out: TextIO | None = None) -> Report:
    """Runs every case on planes that @make_plane opens; stops at the first broken law.

    @out: where a line per case goes, standard output if left out.
    """
    out = out or sys.stdout
    passed: list[str] = []
    skipped: list[tuple[str, str]] = []
    for one in cases():
        try:
            one.run(make_plane)
        except MissingCapability as reason:
            skipped.append((str(one), str(reason)))
            print(f"{one.law:4} skip  {one}: {reason}", file=out)
        except BaseException:
            print(f"{one.law:4} FAIL  {one}", file=out)
            raise
        else:
            passed.append(str(one))
            print(f"{one.law:4} pass  {one}", file=out)
    return Report(tuple(passed), tuple(skipped))

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
    from dmaplane._plane import Path, Plane

MakePlane = Callable[[], "Plane"]
Check = Callable[[MakePlane], None]
FabricCheck = Callable[[MakePlane, "Path"], None]

Needs = tuple[Capability, ...]
"""Alternatives: a plane has to claim all of one of them."""

NOTHING: Final = Capability(0)
ENDPOINT: Final = Capability.ENDPOINT
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
ENDPOINT_GROUPS: Final = (
    "connecting",
    "strangers",
    "messages",
    "remote",
    "regions",
    "revoking",
    "credits",
    "interrupting",
    "spinning",
    "loss",
)
FABRICS: Final[tuple[Path, ...]] = ("shm", "tcp")
"""What a case about connections runs over, one after the other, required by name."""


class MissingCapability(unittest.SkipTest):
    """The plane does not claim what the case is about. A skip, to pytest and unittest."""

    def __init__(self, missing: Capability) -> None:
        self.missing = missing
        super().__init__(f"the plane does not claim {missing.name or missing}")


class MissingPath(MissingCapability):
    """The plane cannot take the path the case is about."""

    def __init__(self, path: Path) -> None:
        self.missing = NOTHING
        unittest.SkipTest.__init__(self, f"the plane does not have the path {path}")


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """One named check."""

    group: str
    name: str
    law: str
    needs: Needs
    check: Callable[..., None] = dataclasses.field(repr=False)
    path: Path | None = None
    """The fabric it runs over; None if it is about no fabric, or chooses by itself."""

    def __str__(self) -> str:
        return f"{self.group}-{self.name}" + (f"-{self.path}" if self.path else "")

    def missing(self, capabilities: Capability) -> Capability:
        """What a plane that claims @capabilities lacks for this; nothing if the case applies."""
        lacking = (alternative & ~capabilities for alternative in self.needs)
        return min(lacking, key=lambda absent: absent.bit_count(), default=NOTHING)

    def run(self, make_plane: MakePlane) -> None:
        """AssertionError if the plane breaks the law; MissingCapability if it is not about it."""
        if self.needs:
            with make_plane() as plane:
                missing, paths = self.missing(plane.capabilities), plane.paths
            if missing:
                raise MissingCapability(missing)
            if self.path and self.path not in paths:
                raise MissingPath(self.path)
        if self.path:
            self.check(make_plane, self.path)
        else:
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
        _add(law, alternatives, check, None)
        return check

    return register


def case_over_fabrics(
    law: str, needs: Capability = Capability.ENDPOINT
) -> Callable[[FabricCheck], FabricCheck]:
    """Registers a function as a case of @law for each fabric there is; it is told which."""

    def register(check: FabricCheck) -> FabricCheck:
        for path in FABRICS:
            _add(law, (needs | Capability.ENDPOINT,), check, path)
        return check

    return register


def _add(law: str, needs: Needs, check: Callable[..., None], path: Path | None) -> None:
    group = check.__module__.rpartition(".")[2]
    made = Case(group, check.__name__, law, needs, check, path)
    assert str(made) not in _register, f"two cases are called {made}"
    _register[str(made)] = made


def cases(*, endpoints: bool = True) -> tuple[Case, ...]:
    """All cases, in order; without those about connections if @endpoints is False."""
    for group in (*GROUPS, *ENDPOINT_GROUPS):
        importlib.import_module(f"dmaplane.testing.{group}")
    wanted = (*GROUPS, *ENDPOINT_GROUPS) if endpoints else GROUPS
    return tuple(one for one in _register.values() if one.group in wanted)


def check_plane(
    make_plane: MakePlane, *, endpoints: bool | None = None, out: TextIO | None = None
) -> Report:
    """Runs every case on planes that @make_plane opens; stops at the first broken law.

    @endpoints: True: the plane has to offer connections, and each case about them has to
    run over every fabric; False: none of them is run; None: where the plane offers them.
    @out: where a line per case goes, standard output if left out.
    """
    out = out or sys.stdout
    passed: list[str] = []
    skipped: list[tuple[str, str]] = []
    for one in cases(endpoints=endpoints is not False):
        try:
            one.run(make_plane)
        except MissingCapability as reason:
            if endpoints and (isinstance(reason, MissingPath) or ENDPOINT & reason.missing):
                print(f"{one.law:4} FAIL  {one}: {reason}", file=out)
                raise AssertionError(f"{one}: {reason}") from reason
            skipped.append((str(one), str(reason)))
            print(f"{one.law:4} skip  {one}: {reason}", file=out)
        except BaseException:
            print(f"{one.law:4} FAIL  {one}", file=out)
            raise
        else:
            passed.append(str(one))
            print(f"{one.law:4} pass  {one}", file=out)
    return Report(tuple(passed), tuple(skipped))

# SPDX-License-Identifier: MIT
"""What the experiments of `bench stream-tiers` fill in, cell by cell, in one process.

A cell is the least that can be lost: what goes wrong in it is noted and the next one begins, and
the sheet is kept before and after it, so that a process that hangs or dies in one leaves all
others behind and says which it was. Two things a process does not survive: a device that is lost,
for nothing works in its context any more, and a call that never ends. Who started it
(_tiers_groups.py) then starts another one for the cells behind.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from dmaplane._errors import DeviceLostError, DmaplaneError, TimedOutError, UnsupportedError
from dmaplane.bench import _result
from dmaplane.bench._tiers_bed import Bed, Box, Cell, Took
from dmaplane.bench._tiers_findings import Findings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

State = Literal["measured", "failed", "not run", "in part"]
OUT_OF_TIME: Final = "its time was used up"
_TRACE_CHARACTERS: Final = 4000
_IMPORTING_S: Final = 60.0
_FATAL: Final = (DeviceLostError, TimedOutError)


class NotHereError(Exception):
    """An experiment cannot be run here; the text says why."""


@dataclasses.dataclass
class Resumed:
    """What an experiment that another process began need not do again."""

    done: list[str] = dataclasses.field(default_factory=list)
    """Cells that were begun: what came of them is known."""
    left_out: list[str] = dataclasses.field(default_factory=list)
    blamed: list[str] = dataclasses.field(default_factory=list)
    """How the names of cells begin that more than one process died in."""


@dataclasses.dataclass(kw_only=True)
class Sheet(Findings):
    """All that was found out by this process."""

    bed: Bed
    report: Callable[[str], None]
    keep: Callable[[], None] = lambda: None
    """Called whenever there is something to keep."""
    watch: Callable[[float], None] = lambda seconds: None
    """Told how long what comes now may take; longer is a hang."""
    resumed: Resumed = dataclasses.field(default_factory=Resumed)
    """Of the first experiment."""
    experiment: str = ""
    """The one that runs."""
    case: str = ""
    """The cell that runs; "" between cells."""
    begun: list[str] = dataclasses.field(default_factory=list)
    """Cells of this experiment."""
    left_out: list[str] = dataclasses.field(default_factory=list)
    """Of this experiment."""

    @classmethod
    def over(cls, bed: Bed, measured: _result.Measured, report: Callable[[str], None]) -> Sheet:
        """An empty one for @bed."""
        tiers = bed.device.tiers()
        measured.notes["device"] = bed.device.name
        measured.notes["identity"] = bed.device.identity
        measured.notes["times"] = "of the model" if bed.modelled else "measured"
        measured.notes["tiers"] = {
            tier.name: "available" if tier.available else f"not available: {tier.reason}"
            for tier in tiers
        }
        return cls(
            measured=measured,
            device=bed.device.name,
            modelled=bed.modelled,
            total_bytes=bed.effort.total_bytes,
            reasons={tier.name: tier.reason for tier in tiers if not tier.available},
            bed=bed,
            report=report,
        )

    def told(self) -> dict[str, Any]:
        """Beside the findings, where it is now."""
        now = {
            "experiment": self.experiment,
            "case": self.case,
            "begun": self.begun,
            "left_out": self.left_out,
        }
        return {**super().told(), "now": now}

    def row(self, case: str, unit: str, samples: Sequence[float]) -> float:
        """A row without a peer; its median."""
        self.measured.add(_result.single_row(case, unit, samples))
        return _result.median(samples)

    def absent(self, case: str, unit: str, reason: str) -> None:
        """A row that says what there would be, and why there is not."""
        self.measured.rows.append(_result.empty_row(f"{case}: not run", unit))
        self.left_out.append(f"{case}: {reason}")

    def rate(self, case: str, cell: Cell, took: Sequence[Took]) -> float:
        """A row in GB/s of calls of @cell."""
        self.note_times(case, took)
        return self.row(case, "GB/s", [cell.bytes / one.seconds / 1e9 for one in took])

    def note_times(self, case: str, took: Sequence[Took]) -> None:
        """Least, median and most of each time of a call: which part of it is slow."""
        notes = self.measured.notes.setdefault("cells", {})
        notes[case] = {
            f"{name}_us": [
                round(1e6 * one, 3) for one in (min(times), _result.median(times), max(times))
            ]
            for name, times in (
                ("submitted", [one.submitted for one in took]),
                ("device", [one.device for one in took]),
                ("wall", [one.wall for one in took]),
            )
        }

    def wanted(self, case: str, unit: str, box: Box, refusal: str = "") -> bool:
        """Is that cell to be measured now? If not, it says why not, unless that is known."""
        if case in self.resumed.done:
            return False
        blamed = kind_of(case) in self.resumed.blamed
        reason = OUT_OF_TIME if box.over else refusal
        if blamed:
            reason = f"processes died in cells of {kind_of(case)!r} before it"
        if reason:
            self.absent(case, unit, reason)
        return not reason

    @contextlib.contextmanager
    def cell(self, case: str, unit: str) -> Iterator[None]:
        """One cell: what goes wrong in it is noted, and is of no other."""
        self.case = case
        self.begun.append(case)
        self.keep()
        self.watch(self.bed.effort.cell_s)
        try:
            yield
        except (*_FATAL, NotHereError):
            raise
        except Exception as error:  # the figures of the others are worth having
            self.absent(case, unit, _said(error))
        self.case = ""
        self.keep()


def kind_of(case: str) -> str:
    """What a cell is about: its name begins with that."""
    return case.partition(",")[0]


def _said(error: Exception) -> str:
    """With the place, where it is none of our own errors."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, (DmaplaneError, AssertionError)) or error.__traceback__ is None:
        return text
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{text} ({last.filename.rpartition('/')[2]}:{last.lineno})"


Run = Callable[[Sheet, Box], None]


class Experiment(NamedTuple):
    """One of the plan."""

    number: int
    name: str
    seconds: float
    """Its time box in a full run."""
    run: Run
    real: bool = False
    """About hardware: a simulated device has nothing to say of it."""
    packages: tuple[str, ...] = ()
    """Imported before its time begins, if they are there: it takes long."""

    @property
    def title(self) -> str:
        """By which it is known."""
        return f"{self.number} {self.name}"


def outcome(
    one: Experiment,
    state: State,
    reason: str = "",
    *,
    left_out: Sequence[str] = (),
    seconds: float = 0.0,
    trace: str = "",
) -> dict[str, Any]:
    """How an experiment went, for the notes."""
    return {
        "number": one.number,
        "name": one.name,
        "state": state,
        "reason": reason,
        "left_out": list(left_out),
        "seconds": round(seconds, 3),
        **({"trace": trace} if trace else {}),
    }


def note_outcome(measured: _result.Measured, told: dict[str, Any]) -> None:
    """Into the notes; an experiment without figures has a row that says so."""
    measured.notes.setdefault("experiments", []).append(told)
    if told["state"] in ("failed", "not run"):
        title = f"{told['number']} {told['name']}: {told['state']}"
        measured.rows.append(_result.empty_row(title, "-"))


def perform(sheet: Sheet, experiments: Sequence[Experiment], seconds: float) -> None:
    """All of them in order, in @seconds; one that fails is noted, and the rest goes on.

    DeviceLostError and TimedOutError end it: nothing behind them could work here.
    """
    end = time.monotonic() + seconds
    for one in experiments:
        sheet.report(one.title)
        sheet.experiment, sheet.case, sheet.begun = one.title, "", list(sheet.resumed.done)
        sheet.left_out = list(sheet.resumed.left_out)
        sheet.keep()
        effort = sheet.bed.effort
        allowed = 1.5 * one.seconds * effort.share + effort.cell_s
        sheet.watch(allowed + _IMPORTING_S * len(one.packages))
        for package in one.packages:
            with contextlib.suppress(Exception):  # the experiment says that it is not there
                importlib.import_module(package)
        begin = time.monotonic()
        state: State = "measured"
        reason = trace = ""
        box = Box(min(one.seconds * effort.share, end - begin))
        try:
            if one.real and sheet.modelled:
                raise NotHereError("it is about hardware, and this device is simulated")
            if end <= begin:
                raise NotHereError("the time of the whole run was used up before it")
            one.run(sheet, box)
        except _FATAL:
            raise
        except (NotHereError, UnsupportedError) as error:
            state, reason = "not run", str(error)
        except Exception as error:  # the figures of the others are worth having; it is noted
            state, reason = "failed", f"{type(error).__name__}: {error}"
            trace = traceback.format_exc()[-_TRACE_CHARACTERS:]
        if state == "measured" and sheet.left_out:
            state = "in part"
        told = outcome(
            one,
            state,
            reason,
            left_out=sheet.left_out,
            seconds=time.monotonic() - begin,
            trace=trace,
        )
        note_outcome(sheet.measured, told)
        sheet.experiment = ""
        sheet.resumed = Resumed(blamed=sheet.resumed.blamed)
        sheet.keep()

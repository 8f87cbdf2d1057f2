# SPDX-License-Identifier: MIT
"""The groups of `bench stream-tiers`: starts a process for each, ends it if it must be, and puts
together what they leave.

A process that dies in a cell, hangs in it, or loses the device costs that cell: another one goes
on behind it. Cells of one kind are given up after two such ends, an experiment after four. What a
process wrote before it ended is kept in any case, so nothing here depends on how it ended.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from dmaplane.bench import _result, _tiers_child
from dmaplane.bench._tiers_child import Orders
from dmaplane.bench._tiers_findings import Findings, read
from dmaplane.bench._tiers_sheet import (
    Experiment,
    Resumed,
    kind_of,
    note_outcome,
    outcome,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dmaplane.bench._tiers_bed import Effort
    from dmaplane.bench._tiers_plan import Group
    from dmaplane.bench._tiers_sheet import State

COMMAND: Final = (sys.executable, "-m", "dmaplane.bench._tiers_child")
OPENING_S: Final = 30.0
"""Allowed to a group beside its experiments' time."""
GRACE_S: Final = 15.0
"""Between the time it is to have measured in and the one at which it ends itself."""
KILLED_S: Final = 5.0
"""After that it is killed; and so long it may take to be gone."""
LEAST_S: Final = 2.0
_DEATHS_OF_A_KIND: Final = 2
_DEATHS_OF_AN_EXPERIMENT: Final = 4
_POLL_S: Final = 0.1
_LOG_CHARACTERS: Final = 6000
_OUT_OF_TIME: Final = "the time of the whole run was used up before it"


@dataclasses.dataclass(frozen=True, slots=True)
class Ended:
    """A process that was, and what it left."""

    code: int | None
    """None: it was killed and is not gone."""
    log: str
    told: dict[str, Any]
    seconds: float

    @property
    def why(self) -> str:
        """How it ended, for who reads the notes."""
        for key in ("ending", "unopened"):
            if key in self.told:
                return str(self.told[key])
        if "refused" in self.told:
            return str(_tiers_child.refused(self.told["refused"]))
        if "Timeout (" in self.log:
            return "it hung; notes.groups says where"
        if self.code is None:
            return "it hung, was killed, and is not gone"
        if self.code < 0:
            return f"its process was ended by {signal.Signals(-self.code).name}"
        return f"its process ended with {self.code}"


class _Course:
    """A group under way."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.left = list(group.experiments)
        self.resumed = Resumed()
        """What the first one that is left need not do again."""
        self.deaths: collections.Counter[str] = collections.Counter()
        """Of processes, by experiment; "": before one."""
        self._kinds: collections.Counter[str] = collections.Counter()

    def finished(self, outcomes: Sequence[dict[str, Any]]) -> None:
        """Those experiments are over."""
        titles = {f"{one['number']} {one['name']}" for one in outcomes}
        if titles:
            self.left = [one for one in self.left if one.title not in titles]
            self.resumed = Resumed(blamed=self.resumed.blamed)

    def blame(self, kind: str) -> None:
        """A process died in a cell of @kind."""
        self._kinds[kind] += 1
        if self._kinds[kind] == _DEATHS_OF_A_KIND:
            self.resumed.blamed.append(kind)


class Groups:
    """Performs groups into @findings within @seconds. @saved: called after each."""

    def __init__(
        self,
        findings: Findings,
        *,
        device: str,
        effort: Effort,
        seconds: float,
        report: Callable[[str], None],
        saved: Callable[[], None],
    ) -> None:
        self._findings = findings
        self._device = device
        self._effort = effort
        self._end = time.monotonic() + seconds
        self._report = report
        self._saved = saved
        self._opened = False

    def perform(self, groups: Sequence[Group]) -> None:
        """All of them in order. Raises only what says that there is no such device at all."""
        for group in groups:
            if self._findings.modelled and all(one.real for one in group.experiments):
                reason = "it is about hardware, and this device is simulated"
                self._note(group.experiments, "not run", reason)
            else:
                self._perform(group)
            self._saved()

    def _perform(self, group: Group) -> None:
        course = _Course(group)
        boxes = sum(one.seconds for one in group.experiments) * self._effort.share
        end = min(self._end, time.monotonic() + boxes + OPENING_S)
        while course.left:
            seconds = end - time.monotonic()
            if seconds < LEAST_S:
                begun = course.left[:1] if course.resumed.done else []
                self._note(begun, "in part", _OUT_OF_TIME, left_out=course.resumed.left_out)
                self._note(course.left[len(begun) :], "not run", _OUT_OF_TIME)
                return
            ended = self._child(course, seconds)
            self._absorb(group, ended)
            if "refused" in ended.told and not self._opened:
                raise _tiers_child.refused(ended.told["refused"])
            self._opened = self._opened or "now" in ended.told
            course.finished(ended.told.get("notes", {}).get("experiments", ()))
            if course.left:
                self._died(course, ended)

    def _died(self, course: _Course, ended: Ended) -> None:
        """A process has ended with something left: notes what that cost, and no more."""
        now, first = ended.told.get("now"), course.left[0]
        if now is None or now["experiment"] != first.title:
            # Before an experiment. Once more: a device takes a while after a process was killed.
            course.deaths[""] += 1
            if course.deaths[""] == _DEATHS_OF_A_KIND:
                self._note(course.left, "failed", f"its group could not begin: {ended.why}")
                course.left.clear()
            return
        case = now["case"]
        course.deaths[first.title] += 1
        course.resumed.done, course.resumed.left_out = now["begun"], now["left_out"]
        if case:
            self._findings.measured.rows.append(_result.empty_row(f"{case}: not run", "-"))
            course.resumed.left_out.append(f"{case}: {ended.why}")
            course.blame(kind_of(case))
        if not case or course.deaths[first.title] == _DEATHS_OF_AN_EXPERIMENT:
            self._note([first], "failed", ended.why, left_out=course.resumed.left_out)
            course.finished([outcome(first, "failed")])

    def _note(
        self,
        experiments: Sequence[Experiment],
        state: State,
        reason: str,
        *,
        left_out: Sequence[str] = (),
    ) -> None:
        """How those went that no process can tell of; @left_out is of the first one."""
        for number, one in enumerate(experiments):
            told = outcome(one, state, reason, left_out=() if number else left_out)
            note_outcome(self._findings.measured, told)

    def _absorb(self, group: Group, ended: Ended) -> None:
        told = ended.told
        if "now" in told:
            self._findings.absorb(told)
        wrong = ended.code != 0 or "ended" not in told
        notes = self._findings.measured.notes.setdefault("groups", {})
        notes.setdefault(group.name, []).append(
            {
                "exit": ended.code,
                "seconds": round(ended.seconds, 3),
                **({"why": ended.why, "log": ended.log} if wrong else {}),
            }
        )

    def _child(self, course: _Course, seconds: float) -> Ended:
        """Runs a process to its end, which comes."""
        with tempfile.TemporaryDirectory(prefix="dmaplane-bench-") as folder:
            path, log = pathlib.Path(folder, "part.json"), pathlib.Path(folder, "log")
            orders = Orders(
                group=course.group.name,
                titles=[one.title for one in course.left],
                device=self._device,
                effort=dataclasses.asdict(self._effort.with_pool(course.group.pool)),
                seconds=seconds,
                deadline_s=seconds + GRACE_S,
                path=str(path),
                resumed=dataclasses.asdict(course.resumed),
            )
            begin = time.monotonic()
            with log.open("wb") as stderr:
                process = subprocess.Popen(
                    [*COMMAND, json.dumps(dataclasses.asdict(orders))],
                    stdin=subprocess.DEVNULL,
                    stdout=stderr,
                    stderr=stderr,
                    start_new_session=True,  # a group of its own, to be killed with what it began
                )
                try:
                    self._watched(process, path, begin + orders.deadline_s + KILLED_S)
                finally:
                    code = _gone(process)
            said = log.read_text(encoding="utf-8", errors="replace")[-_LOG_CHARACTERS:]
            return Ended(code, said, read(path), time.monotonic() - begin)

    def _watched(self, process: subprocess.Popen[bytes], path: pathlib.Path, end: float) -> None:
        """Until it has ended, or @end; says meanwhile what it does."""
        told = ""
        while process.poll() is None and time.monotonic() < end:
            doing = read(path).get("now", {}).get("experiment", "")
            if doing and doing != told:
                told = doing
                self._report(told)
            try:
                process.wait(_POLL_S if not told else 10 * _POLL_S)
            except subprocess.TimeoutExpired:
                continue


def _gone(process: subprocess.Popen[bytes]) -> int | None:
    """Ends the process and what it began, if there is any of it; how it ended."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    try:
        return process.wait(KILLED_S)
    except subprocess.TimeoutExpired:
        return None

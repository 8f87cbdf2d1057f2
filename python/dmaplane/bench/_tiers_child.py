# SPDX-License-Identifier: MIT
"""A process of `bench stream-tiers` that performs one group of experiments.

    python -m dmaplane.bench._tiers_child ORDERS

ORDERS is JSON (see `Orders`). What is found out is written to the file named there before and
after each cell, each time as a whole. Its end says little: who started it reads the file.

A watchdog of the C library's own thread ends the process where all of Python stands in a call
of a driver, and writes where that was to stderr. It ends with its parent, too.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import faulthandler
import json
import os
import pathlib
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, Final, NoReturn

from dmaplane._errors import DeviceLostError, DmaplaneError, InvalidError, UnsupportedError
from dmaplane.bench import _loops, _result, _tiers_plan
from dmaplane.bench._tiers_bed import Bed, Effort
from dmaplane.bench._tiers_findings import written
from dmaplane.bench._tiers_sheet import Resumed, Sheet, perform
from dmaplane.stream import open_device

if TYPE_CHECKING:
    from dmaplane.bench._tiers_sheet import Experiment

_PR_SET_PDEATHSIG: Final = 1
_OPENING_S: Final = 60.0
_CLOSING_S: Final = 15.0


@dataclasses.dataclass(frozen=True, slots=True)
class Orders:
    """What a child is told."""

    group: str
    titles: list[str]
    """Of the experiments to perform."""
    device: str
    effort: dict[str, Any]
    seconds: float
    """In which it is to have measured."""
    deadline_s: float
    """After which it ends itself."""
    path: str
    resumed: dict[str, Any]


class Child:
    """Its orders, and what it leaves behind."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._path = pathlib.Path(orders.path)
        self._begin = time.monotonic()
        self._sheet: Sheet | None = None
        self._ending: dict[str, Any] = {}

    def keep(self) -> None:
        """Leaves behind what there is now."""
        told = {} if self._sheet is None else self._sheet.told()
        written(self._path, {**told, **self._ending})

    def watch(self, seconds: float) -> None:
        """What comes now may take so long, and no longer than the deadline."""
        left = self._begin + self._orders.deadline_s - time.monotonic()
        faulthandler.dump_traceback_later(max(0.1, min(seconds, left)), exit=True)

    def end(self, why: str) -> NoReturn:
        """Ends it here: to close anything would wait for what never comes."""
        self._ending["ending"] = why
        self.keep()
        faulthandler.dump_traceback(all_threads=True)
        os._exit(1)

    def run(self) -> None:
        """All of it."""
        orders = self._orders
        self.watch(_OPENING_S)
        with contextlib.ExitStack() as stack:
            try:
                sheet = self._prepared(stack)
            except (InvalidError, UnsupportedError) as error:
                self._ending["refused"] = refusal(error)
                self.keep()
                return
            except DmaplaneError as error:
                self._ending["unopened"] = f"{type(error).__name__}: {error}"
                self.keep()
                return
            left = orders.seconds - (time.monotonic() - self._begin)
            try:
                perform(sheet, chosen(orders.titles), left)
            except DeviceLostError as error:
                self.end(str(error))
            self._ending["ended"] = True
            self.keep()
            self.watch(_CLOSING_S)

    def _prepared(self, stack: contextlib.ExitStack) -> Sheet:
        orders = self._orders
        plane = stack.enter_context(_loops.opened("embedded"))
        device = stack.enter_context(open_device(orders.device))
        bed = Bed(stack, plane, device, Effort.of(orders.effort))
        bed.stuck = self.end
        sheet = Sheet.over(bed, _result.Measured("embedded"), lambda what: None)
        sheet.measured.notes["pools"] = {
            orders.group: {"bytes": bed.effort.pool_bytes, "pages": bed.pages}
        }
        sheet.keep, sheet.watch = self.keep, self.watch
        sheet.resumed = Resumed(**orders.resumed)
        self._sheet = sheet
        return sheet


def chosen(titles: list[str]) -> list[Experiment]:
    """The experiments of the plan with those titles."""
    plan = {one.title: one for group in _tiers_plan.GROUPS for one in group.experiments}
    return [plan[title] for title in titles]


def refusal(error: InvalidError | UnsupportedError) -> dict[str, str]:
    """An error about what was asked for, in words; refused() makes it again."""
    if isinstance(error, InvalidError):
        return {"field": error.field, "problem": str(error).removeprefix(f"{error.field}: ")}
    return {"feature": error.feature, "needs": error.needs}


def refused(words: dict[str, str]) -> DmaplaneError:
    """The error of a child, in its parent."""
    if "field" in words:
        return InvalidError(words["field"], words["problem"])
    return UnsupportedError(words["feature"], words["needs"])


def main(text: str) -> None:
    """What the process does."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    faulthandler.enable()
    Child(Orders(**json.loads(text))).run()
    # Nothing that is left could change what was written; a driver's exit handlers may hang.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])

# SPDX-License-Identifier: MIT
"""A process of `bench stream-tiers` in which something goes wrong, and its plan.

    python tiers_faults.py FAULT ORDERS

Whatever the fault is, it comes in the cells whose names begin with "kernel".
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from dmaplane._errors import NoMemoryError
from dmaplane.bench import _tiers_child, _tiers_plan
from dmaplane.bench._tiers_bed import KIB, MIB, Bed, Box, whole
from dmaplane.bench._tiers_blocks import lanes
from dmaplane.bench._tiers_plan import Group
from dmaplane.bench._tiers_sheet import Experiment, Sheet
from dmaplane.stream.sim import Faults


def stall(bed: Bed) -> None:
    """A copy that never ends: the next but one, which is the cell's own."""
    bed.device.faults = Faults(stall=frozenset({bed.device._calls + 2}))


def lose(bed: Bed) -> None:
    """The device is lost."""
    bed.device.lose("as ordered")


def crash(bed: Bed) -> None:
    """A segmentation fault."""
    ctypes.string_at(0)


def kill(bed: Bed) -> None:
    """Somebody else's SIGKILL."""
    os.kill(os.getpid(), signal.SIGKILL)


def hang(bed: Bed) -> None:
    """A call of a library that never returns and keeps the interpreter to itself."""
    ctypes.PyDLL(None).pause()


FAULTS = {"stall": stall, "lose": lose, "crash": crash, "kill": kill, "hang": hang}


def cells(sheet: Sheet, box: Box) -> None:
    """Some cells; those of "kernel" go wrong."""
    fault = FAULTS.get(sys.argv[1])
    names = ("batch, 1", "kernel, 1", "batch, 2")
    if sys.argv[1] == "kill":
        names = ("batch, 1", "kernel, 1", "kernel, 2", "kernel, 3", "batch, 2")
    with lanes(sheet.bed, 1) as (lane,):
        for case in names:
            if not sheet.wanted(case, "GB/s", box):
                continue
            with sheet.cell(case, "GB/s"):
                cell = whole("h2d", block_bytes=4 * KIB, total_bytes=MIB)
                if case.startswith("kernel") and fault is not None:
                    fault(sheet.bed)
                sheet.rate(case, cell, sheet.bed.sampled(lane, "batch", cell))


def after(sheet: Sheet, box: Box) -> None:
    """What comes behind it."""
    if sys.argv[1] == "die" and sheet.experiment == "2 after":
        os._exit(3)
    sheet.row(sheet.experiment, "x", [1.0])


GROUPS = (
    Group("first", 1.0, (Experiment(1, "cells", 10, cells), Experiment(2, "after", 10, after))),
    Group("second", 1.0, (Experiment(3, "second", 10, after),)),
)


def no_room(*arguments: object) -> None:
    raise NoMemoryError("as ordered")


if __name__ == "__main__":
    _tiers_plan.GROUPS = GROUPS  # type: ignore[misc]
    if sys.argv[1] == "room":
        _tiers_child.Bed = no_room  # type: ignore[assignment,misc]
    _tiers_child.main(sys.argv[2])

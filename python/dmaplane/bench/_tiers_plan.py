# SPDX-License-Identifier: MIT
"""The plan of `bench stream-tiers`: its experiments, in groups.

A group is a process with a context of its own, so that what hangs, crashes or loses the device
takes nothing else with it. Groups are in the order they are run: what the goals are judged by
comes first; other people's code, and the kernel that is likeliest to end its context, late.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final, NamedTuple

from dmaplane.bench import _tiers_blocks, _tiers_machine
from dmaplane.bench._tiers_sheet import Experiment

if TYPE_CHECKING:
    from dmaplane.bench._tiers_bed import Box
    from dmaplane.bench._tiers_sheet import Run, Sheet


class Group(NamedTuple):
    """Experiments that share a process."""

    name: str
    pool: float
    """Share of the full pool that they need."""
    experiments: tuple[Experiment, ...]


def _of_cuda(name: str, module: str = "_tiers_cuda") -> Run:
    """An experiment about a GPU: its module is imported on such a device only."""

    def run(sheet: Sheet, box: Box) -> None:
        found: Run = getattr(importlib.import_module(f"dmaplane.bench.{module}"), name)
        found(sheet, box)

    return run


def _beside(name: str) -> Run:
    return _of_cuda(name, "_tiers_beside")


GROUPS: Final = (
    Group(
        "core",
        1.0,
        (
            Experiment(0, "machine", 10, _tiers_machine.machine),
            Experiment(1, "copy engine", 25, _tiers_blocks.engine),
            Experiment(2, "processors over mapped memory", 35, _of_cuda("ceilings"), real=True),
            Experiment(3, "block sizes", 90, _tiers_blocks.sweep),
            Experiment(6, "small calls", 35, _tiers_blocks.small),
            Experiment(6, "launches", 5, _of_cuda("launching"), real=True),
            Experiment(13, "submitting", 5, _tiers_blocks.submitting),
            Experiment(14, "choosing", 20, _tiers_blocks.choosing),
        ),
    ),
    Group(
        "batch",
        0.5,
        (
            Experiment(4, "access order", 40, _of_cuda("orders"), real=True),
            Experiment(8, "two ways", 30, _tiers_blocks.two_ways),
        ),
    ),
    Group(
        "variants",
        0.5,
        (Experiment(5, "variants of kernels", 40, _of_cuda("variants"), real=True),),
    ),
    Group(
        "host",
        0.125,
        (
            Experiment(9, "pinning", 30, _tiers_blocks.pinning),
            Experiment(9, "pinning by the driver", 10, _of_cuda("pinned"), real=True),
        ),
    ),
    Group(
        "busy",
        0.25,
        (Experiment(7, "busy device", 40, _beside("busy"), real=True, packages=("torch",)),),
    ),
    Group(
        "others",
        0.25,
        (
            Experiment(
                *(10, "what others do", 20, _beside("others")),
                real=True,
                packages=("torch", "triton"),
            ),
        ),
    ),
    Group("bulk", 0.25, (Experiment(5, "bulk copy unit", 30, _of_cuda("bulk"), real=True),)),
    Group(
        "bar",
        0.125,
        (
            Experiment(11, "dma-bufs", 45, _of_cuda("dmabufs"), real=True),
            Experiment(12, "BAR", 40, _of_cuda("bar"), real=True),
        ),
    ),
)

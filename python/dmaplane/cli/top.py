# SPDX-License-Identifier: MIT
"""`dmaplane top`."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from dmaplane.cli._boards import Sample

EPILOG = """\
Example: bytes per second of every plane, for a collector:

  dmaplane top --once --interval 5 --json

Exit codes: 0 shown (also when no plane is open); 2 wrong usage. Ctrl-C ends the live view.
"""

_FIGURES_COLUMNS: Final = 66
"""What the seven columns of figures take at most, the space between them included."""


def command(
    interval: Annotated[
        float, typer.Option(help="Seconds between two samples.", min=0.05, max=3600)
    ] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Two samples, print, exit.")] = False,
    everyone: Annotated[
        bool, typer.Option("--all", help="Processes of other users too, where readable.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object (implies --once).")
    ] = False,
) -> None:
    """Live counters of the open planes of your processes.

    Nothing has to be switched on, and nothing is ever left to clean up. Planes of the
    kernel module are listed for root only.
    """
    from dmaplane.cli import _boards, _output

    before = _boards.samples(everyone=everyone)
    if once or as_json:
        time.sleep(interval)
        after = _boards.samples(everyone=everyone)
        if as_json:
            _output.emit(_answer(before, after, interval))
        else:
            out = _output.console()
            out.print(_table(before, after, out.width))
        return
    _live(before, interval, everyone)


def _live(before: list[Sample], interval: float, everyone: bool) -> None:
    from rich.live import Live

    from dmaplane.cli import _boards, _output

    out = _output.console()
    with Live(_table([], before, out.width), console=out, auto_refresh=False) as live:
        try:
            while True:
                time.sleep(interval)
                after = _boards.samples(everyone=everyone)
                live.update(_table(before, after, out.width), refresh=True)
                before = after
        except KeyboardInterrupt:
            return


def _pairs(before: list[Sample], after: list[Sample]) -> list[tuple[Sample, Any]]:
    from dmaplane.cli import _boards

    earlier = {sample.incarnation: sample for sample in before}
    return [(sample, _boards.rates(earlier.get(sample.incarnation), sample)) for sample in after]


def _answer(before: list[Sample], after: list[Sample], interval: float) -> dict[str, Any]:
    return {
        "interval_s": interval,
        "planes": [
            {
                "plane": sample.plane,
                "pid": sample.pid,
                "command": sample.command,
                "incarnation": f"{sample.incarnation:016x}",
                "age_s": None if sample.age_s is None else round(sample.age_s, 3),
                "in_flight": sample.statistics.in_flight,
                "statistics": dataclasses.asdict(sample.statistics),
                "rates": dataclasses.asdict(rates),
            }
            for sample, rates in _pairs(before, after)
        ],
    }


def _table(before: list[Sample], after: list[Sample], width: int) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from dmaplane.cli._output import gibibytes

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption_justify="left")
    for heading, justify in (
        ("PID", "right"), ("ops/s", "right"), ("GB/s", "right"), ("in flight", "right"),
        ("errors", "right"), ("buffers", "right"), ("memory", "right"),
    ):  # fmt: skip
        table.add_column(heading, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("command", no_wrap=True)
    # Only the command may be cut: rich would take the width from every column alike.
    room = max(8, width - _FIGURES_COLUMNS)
    for sample, rates in _pairs(before, after):
        counters = sample.statistics
        table.add_row(
            str(sample.pid),
            _short(rates.completions_per_s),
            f"{rates.bytes_per_s / 1e9:.2f}",
            str(counters.in_flight),
            str(counters.errors),
            str(counters.buffers),
            gibibytes(counters.buffer_bytes),
            Text(_cut(sample.command, room)),
        )
    if not after:
        table.caption = "no plane is open in the processes of this user"
    return table


def _cut(text: str, columns: int) -> str:
    return text if len(text) <= columns else text[: columns - 1] + "…"


def _short(rate: float) -> str:
    """1234567.0 as '1.23M'."""
    for unit in ("", "k", "M"):
        if rate < 1000:
            return f"{rate:.0f}" if not unit else f"{rate:.3g}{unit}"
        rate /= 1000
    return f"{rate:.3g}G"

# SPDX-License-Identifier: MIT
"""`dmaplane demo`."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dmaplane.demo import Outcome

EPILOG = """\
Example: 1 GiB on node 1, as JSON:

  dmaplane demo --node 1 --size 1G --json

Exit codes: 0 every check passed; 1 one did not, or no plane; 2 wrong usage.
"""


def command(
    node: Annotated[
        int | None, typer.Option(help="NUMA node; by default the first with memory.", min=0, max=63)
    ] = None,
    size: Annotated[str, typer.Option(help="Bytes to move: 64M, 1G, ...")] = "256M",
    plane: Annotated[str, typer.Option(help="auto, kernel or embedded.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Place, copy and share a buffer; kill its user; lose nothing.

    Needs twice SIZE of memory, and no root, module or hardware.
    """
    from dmaplane import demo
    from dmaplane.cli import _output
    from dmaplane.cli.topology import plane_name

    try:
        length_bytes = _output.parse_size(size)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--size") from None
    with _progress() as progress:
        outcome = demo.run(
            plane=plane_name(plane), node=node, length_bytes=length_bytes, progress=progress
        )
    if as_json:
        _output.emit({**dataclasses.asdict(outcome), "passed": outcome.passed})
    else:
        _show(outcome)
    if not outcome.passed:
        raise typer.Exit(1)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, float], None]]:
    """A bar on stderr, and only where someone can watch it."""
    from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn

    from dmaplane.cli import _output

    console = _output.progress_console()
    columns = (TextColumn("{task.description:<10}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        tasks: dict[str, TaskID] = {}

        def told(stage: str, part: float) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=1.0)
            bar.update(tasks[stage], completed=part)

        yield told


def _show(outcome: Outcome) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from dmaplane.cli import _output

    out = _output.console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("check", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("what was done")
    for step in outcome.checks:
        verdict: Any = Text("ok", "green") if step.passed else Text("FAILED", "bold red")
        table.add_row(step.name, verdict, Text(step.detail))
    out.print(f"{outcome.plane} plane: {outcome.reason}", markup=False)
    out.print(table)
    out.print(
        f"{_output.gibibytes(outcome.bytes)} through the channel with CRC32C: "
        f"{outcome.gb_per_s:.1f} GB/s; plain memcpy beside it: "
        f"{outcome.memcpy_gb_per_s:.1f} GB/s",
        markup=False,
    )
    failed = [step.name for step in outcome.checks if not step.passed]
    out.print(f"FAILED: {', '.join(failed)}" if failed else "all checks passed", markup=False)
